"""From a config to components: every setting arrives, and what cannot be built is refused."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest
from helpers.tiny_config import get_config
from helpers.tiny_run import edit_json, write_data

from solojax.builders import network, segmentation
from solojax.config import load_config
from solojax.data.canvas import Buckets
from solojax.errors import InputError

# Parameters of the convolutions and norms of torchvision's networks, without the classifier.
TORCHVISION = {18: 11_176_512, 34: 21_284_672, 50: 23_508_032, 101: 42_500_160}


@pytest.fixture
def config(tmp_path):
    config = get_config("nano")
    config.data.root = str(write_data(tmp_path / "data"))
    return config


@pytest.mark.parametrize("depth", TORCHVISION)
def test_backbones_have_the_published_number_of_parameters(depth):
    config = load_config("configs/solov2.py")
    config.model.backbone.depth = depth
    backbone = network.build_model(config, 80).backbone
    variables = jax.eval_shape(
        lambda: backbone.init(jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32))
    )
    sizes = [np.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"])]
    assert sum(sizes) == TORCHVISION[depth]


def test_the_task_has_the_settings_of_the_config():
    config = load_config("configs/solov2.py")
    config.model.grid.center_sigma = 0.3
    config.loss.mask_weight, config.loss.focal_gamma = 7.0, 1.5
    config.loss.group_images = 2
    config.evaluation.sigma, config.evaluation.kernel = 3.0, "linear"
    config.evaluation.max_detections, config.evaluation.nms_pre = 50, 60
    task = segmentation.build_task(config, 9)
    assert task.num_classes == task.model.head.num_classes == 9
    assert task.grid.center_sigma == 0.3 and task.loss_group_images == 2
    assert (task.mask_weight, task.focal_gamma, task.max_positives) == (7.0, 1.5, 512)
    detection = task.detection
    assert (detection.nms_kernel, detection.nms_sigma) == ("linear", 3.0)
    assert (detection.max_detections, detection.nms_pre, detection.max_candidates) == (50, 60, 1000)
    assert task.frozen_stages == 1 and task.model.backbone.norm == "frozen_batch_norm"


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_optimizer_takes_the_scaled_rate(name):
    config = load_config("configs/solov2.py:1x")
    config.optimizer.name = name
    config.train.batch_size = 8
    optimizer, schedule = segmentation.build_optimizer(config, 12_000)
    # 0.01 for 16 images; warm-up over 500 steps; a tenth after epochs 9 and 11 of 12.
    rates = [float(schedule(step)) for step in (500, 8999, 9000, 10_999, 11_000)]
    np.testing.assert_allclose(rates, [5e-3, 5e-3, 5e-4, 5e-4, 5e-5], rtol=1e-6)
    assert float(schedule(0)) < 1e-4
    params = {"w": np.ones(3, np.float32)}
    updates, _ = optimizer.update({"w": np.ones(3, np.float32)}, optimizer.init(params), params)
    moved = optax.apply_updates(params, updates)["w"]
    assert (moved < 1).all() and (moved > 0.99).all()


@pytest.mark.parametrize(
    "num_grids, outputs, problem",
    [
        ((8, 6), 5, "list 2 levels but 'model.neck' gives 5"),
        ((8, 6, 4), 3, "'model.neck' gives 3 levels: unified mask features need 4"),
    ],
)
def test_levels_that_do_not_fit(num_grids, outputs, problem):
    config = load_config("configs/solov2.py")
    config.model.grid.num_grids, config.model.neck.num_outputs = num_grids, outputs
    with pytest.raises(InputError, match=problem):
        network.build_model(config, 3)


def test_the_plan_follows_the_data(config):
    dataset = segmentation.load_train_set(config)
    config.data.short_sides, config.data.long_side = (32, 64), 64
    config.seed = 3
    plan = segmentation.build_train_plan(config, dataset)
    assert (plan.num_images, plan.batch_size, plan.seed) == (6, 4, 3)
    assert set(plan.at(0).short_sides) | set(plan.at(1).short_sides) == {32, 64}
    assert {plan.at(step).canvas for step in range(20)} <= {(32, 32), (64, 64)}
    config.data.canvas, config.data.buckets = "buckets", ((96, 128),)
    assert segmentation.build_train_plan(config, dataset).at(0).canvas == (96, 128)
    assert segmentation.example_shape(config, plan).image.shape[1:] == (64, 64, 3)


def test_canvas_policies():
    def policy(name, buckets):
        return segmentation.canvas_policy(name, buckets, short_sides=(64,), long_side=128)

    assert policy("multiple_of_32", ())([(33, 64)]) == (64, 64)
    assert policy("buckets", [[64, 96]]) == Buckets(((64, 96),))
    assert policy("buckets", ()) == Buckets.for_images((64,), 128)


def test_buckets_that_are_not_listed_suit_the_images_of_the_published_recipe(config):
    dataset = segmentation.load_train_set(config)
    config.data.short_sides, config.data.long_side = (640, 672, 704, 736, 768, 800), 1333
    config.data.canvas = config.evaluation.canvas = "buckets"
    canvases = segmentation.build_train_plan(config, dataset).choose_canvas.canvases
    assert {(800, 1088), (1088, 800), (800, 1344), (1344, 800), (1344, 1344)} < set(canvases)
    config.evaluation.short_side, config.evaluation.long_side = 64, 128
    for batch in segmentation.build_eval_batches(config, dataset)():
        assert batch.image.shape[1:3] in Buckets.for_images((64,), 128).canvases


def test_training_batches_begin_where_they_are_told(config):
    dataset = segmentation.load_train_set(config)
    plan = segmentation.build_train_plan(config, dataset)
    make = segmentation.build_train_batches(
        config, dataset, plan, 5, process_index=0, process_count=1
    )
    batches = make(3)
    indices = [batch.image_index for batch in batches]
    np.testing.assert_array_equal(indices, [plan.at(3).image_indices, plan.at(4).image_indices])


def test_every_image_is_evaluated_once(config):
    dataset = segmentation.load_val_set(config)
    batches = list(segmentation.build_eval_batches(config, dataset)())
    indices = np.concatenate([batch.image_index for batch in batches])
    valid = np.concatenate([batch.valid for batch in batches])
    assert sorted(indices[valid]) == [0, 1, 2] and (indices[~valid] == -1).all()


@pytest.mark.parametrize(
    ("size", "processes", "whole"), [(1, 2, 2), (4, 3, 6), (7, 8, 8), (4, 2, 4), (3, 1, 3)]
)
def test_evaluation_batches_are_raised_to_what_the_processes_divide(size, processes, whole):
    config = get_config("nano")
    config.evaluation.batch_size = size
    raised = segmentation.with_whole_batches(config, processes)
    assert raised.evaluation.batch_size == whole and config.evaluation.batch_size == size
    raised.evaluation.batch_size = size
    assert raised == config


def test_first_images(config):
    dataset = segmentation.load_train_set(config)
    assert segmentation.first_images(dataset, None) is dataset
    first = segmentation.first_images(dataset, 2)
    assert first.images == dataset.images[:2] and first.categories == dataset.categories


def test_paths_are_relative_to_the_root_unless_they_are_absolute(config, tmp_path, monkeypatch):
    assert segmentation.data_path(config, "val_images") == tmp_path / "data" / "images"
    config.data.val_images = "/elsewhere"
    assert str(segmentation.data_path(config, "val_images")) == "/elsewhere"
    monkeypatch.setenv("HOME", str(tmp_path))
    config.data.root, config.data.val_images = "~/data", "images"
    assert segmentation.data_path(config, "val_images") == tmp_path / "data" / "images"


def test_one_readable_image_is_enough(config, tmp_path):
    images = tmp_path / "data" / "images"
    for number in range(5):
        (images / f"image_{number}.png").unlink()
    assert len(segmentation.load_train_set(config).images) == 6
    (images / "image_5.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"train.json: none of its 6 images can be read.*image_0"):
        segmentation.load_train_set(config)


def test_classes_are_compared_by_name_and_order(config, tmp_path):
    dataset = segmentation.load_val_set(config)
    segmentation.check_same_classes(dataset.category_names, dataset)
    edit_json(tmp_path / "data" / "val.json", lambda d: d["categories"][0].update(name="star"))
    with pytest.raises(InputError, match="val.json.*star.*5 that the model knows.*same categories"):
        segmentation.check_same_classes(dataset.category_names, segmentation.load_val_set(config))
