"""What verbs know of a kind of task without reading data."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from solojax.config import load_config
from solojax.costs.workloads import num_classes_of, training_parts, workload_of
from solojax.errors import InputError


@pytest.mark.parametrize(
    "path, step, changes, expected",
    [
        ("configs/solov2.py:r50,3x", "train", {}, (800, 1344)),
        ("configs/solov2.py:r50,3x", "predict", {}, (800, 1344)),
        ("configs/solov2.py:r50,3x", "train", {"data.group_by_orientation": False}, (1344, 1344)),
        ("configs/solov2.py:mushrooms", "train", {}, (480, 480)),
        ("configs/solov2.py:mushrooms", "predict", {}, (448, 448)),
        (
            "configs/solov2.py:r50,3x",
            "train",
            {"data.canvas": "buckets", "data.buckets": ((64, 96), (96, 128), (128, 64))},
            (96, 128),
        ),
        ("configs/densecl.py:imagenet", "train", {}, (224, 224)),
    ],
)
def test_the_largest_canvas_of_a_recipe(path, step, changes, expected):
    config = load_config(path)
    config.update_from_flattened_dict(changes)
    assert workload_of(config).largest_canvas(config, step) == expected


def test_classes_are_cocos_unless_the_config_says():
    config = load_config("configs/solov2.py:r50,3x")
    facts, words = workload_of(config).facts(config)
    assert num_classes_of(config) == 80
    assert (facts, words) == ({"num_classes": 80}, "80 classes (COCO's)")
    config.model.num_classes = 3
    assert num_classes_of(config) == 3
    assert workload_of(config).facts(config)[1] == "3 classes (model.num_classes)"


def test_a_training_batch_has_the_shapes_that_the_loader_makes():
    parts = training_parts(load_config("configs/solo.py"), 6, (800, 1344))
    batch = parts.batch(jax.ShapeDtypeStruct)
    assert batch.image.shape == (6, 800, 1344, 3) and batch.image.dtype == np.uint8
    assert batch.instances.masks.shape == (6, 100, 200, 42)
    assert batch.instances.masks.dtype == np.uint8
    coarse = [masks.shape for masks in batch.instances.coarse_masks]
    assert coarse == [(6, 100, 100, 21), (6, 100, 50, 11)]
    assert batch.valid.shape == (6,) and batch.instances.boxes.shape == (6, 100, 4)


def test_a_contrastive_config_is_described_by_its_queues_and_groups():
    config = load_config("configs/densecl.py:imagenet")
    facts, words = workload_of(config).facts(config)
    assert facts == {"queues": 2, "queue_length": 65536, "norm_group_images": 32}
    assert words == (
        "an image is two views; 2 queue(s) of 65536 embeddings; BatchNorm over groups of 32 images"
    )
    moco = load_config("configs/densecl.py:imagenet,moco")
    assert workload_of(moco).facts(moco)[0]["queues"] == 1


def test_the_parts_have_the_batch_and_the_canvas_that_are_asked_for():
    given = load_config("configs/densecl.py:tiny")
    parts = training_parts(given, 128, (96, 64))
    assert parts.batch(jax.ShapeDtypeStruct).views.shape == (128, 2, 96, 64, 3)
    assert parts.task.batch_size == 128 and parts.config.train.batch_size == 128
    assert given.train.batch_size == 64 and given.views.size == (96, 96)
    with pytest.raises(InputError, match="queue_length"):
        training_parts(given, 96, (96, 96))
