from __future__ import annotations

import functools
import json
import math

import jax
import numpy as np
import pytest
from helpers import tiny_run
from helpers.tiny_config import TOTAL_STEPS, get_config, shrink
from helpers.tiny_run import write_data

from solojax.builders.contrast import build_contrast_task, example_views
from solojax.builders.network import coarse_factors
from solojax.builders.segmentation import build_optimizer, build_task
from solojax.config import (
    from_json,
    load_config,
    milestone_steps,
    scaled_learning_rate,
    shipped_configs,
    to_json,
)
from solojax.data.loader import stack_examples
from solojax.data.transforms import empty_example
from solojax.runs.training import run_training
from solojax.structures import GridSpec
from solojax.train.metric_writer import read_metrics
from solojax.train.state import create_state
from solojax.train.step import make_train_step

SPECS = [
    *(f"configs/solov2.py:{depth},{x}" for depth in ("r18", "r34", "r50", "r101") for x in "13"),
    "configs/solov2.py",
    "configs/solov2.py:6x",
    "configs/solov2.py:mushrooms",
    "configs/solov2.py:fruits_nuts",
    "configs/solov2.py:dcn,r101",
    "configs/solov2.py:dcn,x101",
    *(f"configs/solov2.py:light448,{depth}" for depth in ("r18", "r34", "r50")),
    "configs/solov2.py:light512,dcn",
    *(f"configs/solo.py:{head},{x}" for head in ("solo", "decoupled", "light") for x in "136"),
    "configs/solo.py",
    "configs/solo.py:512,6x",
    "configs/solo.py:r101",
    "configs/solo.py:decoupled,dcn,r101,6x",
    "configs/solo.py:light,dcn",
    "configs/finetune.py",
    "configs/finetune.py:semi10",
    "configs/quickstart.py",
    "configs/quickstart.py:solo",
    "configs/quickstart.py:decoupled",
]
CONTRASTIVE = [
    f"configs/densecl.py:{data},{method}"
    for data in ("imagenet", "coco", "tiny")
    for method in ("densecl", "moco")
] + ["configs/densecl.py:tiny,close"]
FREE_SOLO = ["configs/freesolo.py"]  # see test_free_solo_config.py
# Of every architecture one trains in the everyday suite; the quickstart is the SOLOv2.
DAILY = ("configs/quickstart.py:solo", "configs/quickstart.py:decoupled")
SPECS = [spec + "x" if spec[-2:] in (",1", ",3", ",6") else spec for spec in SPECS]


@pytest.mark.parametrize("spec", SPECS)
def test_every_variant_is_valid_and_survives_json(spec):
    config = load_config(spec)
    assert from_json(to_json(config)).to_dict() == config.to_dict()
    grid = GridSpec(**config.model.grid.to_dict())
    assert grid.num_levels == config.model.neck.num_outputs


def test_every_shipped_config_is_tried_here():
    specs = [*SPECS, *CONTRASTIVE, *FREE_SOLO]
    assert {spec.partition(":")[0] for spec in specs} == set(shipped_configs())


def test_schedules_of_the_published_runs():
    one, three = load_config("configs/solov2.py:1x"), load_config("configs/solov2.py:r101,3x")
    assert (one.train.epochs, one.data.short_sides) == (12, (800,))
    assert milestone_steps(one, 12 * 7330) == (9 * 7330, 11 * 7330)
    assert three.model.backbone.depth == 101
    assert (three.train.epochs, len(three.data.short_sides)) == (36, 6)
    assert milestone_steps(three, 36 * 7330) == (27 * 7330, 33 * 7330)


def test_fine_tuning_is_the_published_1x():
    """Iterations, drops and norms of the runs of thesis table 5.2, from AdelaiDet's configs."""
    whole, part = (load_config(f"configs/finetune.py:{name}") for name in ("all", "semi10"))
    for config in (whole, part):
        assert milestone_steps(config, config.train.total_steps) == (60_000, 80_000)
        assert (config.train.total_steps, config.train.batch_size) == (90_000, 16)
        assert scaled_learning_rate(config) == 0.01 and config.optimizer.warmup_steps == 1000
        assert config.optimizer.clip_norm is None
        backbone = config.model.backbone
        assert (backbone.depth, backbone.norm, backbone.frozen_stages) == (50, "batch_norm", -1)
        assert config.data.short_sides == (640, 672, 704, 736, 768, 800)
    name = "annotations/instances_train2017{}.json"
    assert whole.data.train_annotations == name.format("")
    assert part.data.train_annotations == name.format("_images10")


def test_deformable_parts_of_the_published_models():
    parts = {}
    for spec in ("solov2.py:dcn", "solov2.py:light512,dcn", "solo.py:light,dcn", "solo.py:dcn"):
        model = load_config(f"configs/{spec}").model
        convs = model.head.deformable_convs if model.head.deformable != "none" else 0
        parts[spec] = (model.backbone.deformable, convs, model.mask_features.deformable)
    assert parts == {
        "solov2.py:dcn": ("v2", 4, "v2"),
        "solov2.py:light512,dcn": ("v1", 1, "none"),
        "solo.py:light,dcn": ("v1", 1, "none"),
        "solo.py:dcn": ("v1", 0, "none"),
    }


def test_the_default_is_r50_3x():
    assert to_json(load_config("configs/solov2.py")) == to_json(
        load_config("configs/solov2.py:3x,r50")
    )


def test_mushrooms_is_the_measured_recipe():
    config = load_config("configs/solov2.py:mushrooms")
    backbone = config.model.backbone
    assert (backbone.depth, backbone.norm, backbone.frozen_stages) == (18, "batch_norm", -1)
    assert backbone.stride_in_1x1 is False and config.model.neck.channels == 128
    assert (config.model.head.num_convs, config.model.head.channels) == (2, 128)
    features = config.model.mask_features
    assert (features.channels, features.out_channels) == (64, 128)
    assert config.data.short_sides == (384, 416, 448, 480) and config.evaluation.short_side == 448
    assert config.data.min_mask_area == 4
    assert (config.train.total_steps, config.train.batch_size) == (800, 4)
    assert scaled_learning_rate(config) == 0.01 and config.optimizer.warmup_steps == 100
    assert milestone_steps(config, 800) == (600, 736)


@functools.cache
def shapes_of_step(text: str):
    """Shapes of the state, then of state and metrics after a training step; see `program`."""
    config = from_json(text)
    task = build_task(config, 80)
    optimizer, schedule = build_optimizer(config, 1000)
    row = empty_example((800, 1344), config.data.max_instances, coarse_factors(config))
    batch = stack_examples([row] * 2)
    key = jax.random.key(0)
    state = jax.eval_shape(lambda key: create_state(task, optimizer, key, batch), key)
    return state, *jax.eval_shape(make_train_step(task, optimizer, schedule=schedule), state, batch)


def program(config) -> str:
    """What of a config shapes the training step, the rest being the default's.

    1x and 3x are one program, and so are the two small recipes: tracing takes seconds.
    """
    default = load_config("configs/solov2.py")
    default.model, default.loss = config.model, config.loss
    default.model.max_positives = 64
    default.optimizer.name = config.optimizer.name
    return to_json(default)


@pytest.mark.parametrize("spec", SPECS)
def test_the_whole_training_step_of_every_variant_has_the_right_shapes(spec):
    config = load_config(spec)
    before, after, metrics = shapes_of_step(program(config))
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert (old.shape, old.dtype) == (new.shape, new.dtype)
    assert all((value.shape, value.dtype) == ((), np.float32) for value in metrics.values())
    head = before.params["head"]
    channels, kernels = config.model.head.channels, config.model.mask_features.out_channels
    assert head["category_pred"]["kernel"].shape == (3, 3, channels, 80)
    assert f"category_tower_{config.model.head.num_convs - 1}" in head
    if config.model.head.kind == "solov2":
        assert head["kernel_pred"]["kernel"].shape == (3, 3, channels, kernels)
    elif config.model.head.kind == "solo":
        cells = config.model.grid.num_grids[0] ** 2
        assert head["mask_pred_0"]["kernel"].shape == (1, 1, channels, cells)
    else:
        assert head["x_pred_0"]["kernel"].shape == head["y_pred_0"]["kernel"].shape
        side = config.model.grid.num_grids[0]
        assert head["x_pred_0"]["kernel"].shape == (3, 3, channels, side)
    blocks = [name for name in before.params["backbone"] if name.startswith("layer")]
    assert len(blocks) == {18: 8, 34: 16, 50: 16, 101: 33}[config.model.backbone.depth]


@pytest.mark.parametrize("spec", CONTRASTIVE)
def test_the_whole_step_of_every_contrastive_variant_has_the_right_shapes(spec):
    config = load_config(spec)
    assert from_json(to_json(config)).to_dict() == config.to_dict()
    task, rows = build_contrast_task(config), config.train.batch_size
    optimizer, schedule = build_optimizer(config, 1000)
    example = example_views(config)
    batch = jax.tree.map(lambda x: np.broadcast_to(x[:1], (rows, *x.shape[1:])), example)
    key = jax.random.key(0)
    before = jax.eval_shape(lambda key: create_state(task, optimizer, key, example), key)
    step = make_train_step(task, optimizer, schedule=schedule)
    after, metrics = jax.eval_shape(step, before, batch)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert (old.shape, old.dtype) == (new.shape, new.dtype)
    dense = "moco" not in spec
    assert ("loss/dense" in metrics, "dense" in before.extra["queues"]) == (dense, dense)
    length = config.contrast.queue_length
    assert before.extra["queues"]["global"]["vectors"].shape == (length, 128)


def test_the_published_model_has_its_published_size():
    """Weights and biases of AdelaiDet's R50 checkpoint for COCO, counted in its state dict."""
    state, *_ = shapes_of_step(program(load_config("configs/solov2.py:r50,3x")))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))
    assert count == 46_592_912


def test_the_quickstart_trains(tmp_path_factory):
    """The run that the tests of the commands share: `shrink` leaves its kind as it is."""
    assert json.loads(to_json(get_config()))["model"]["backbone"] == json.loads(
        to_json(load_config("configs/quickstart.py"))
    )["model"]["backbone"] | {"width": 16}
    run = tiny_run.finished_run(tmp_path_factory)
    losses = [line["loss"] for line in read_metrics(run.workdir)[1] if "loss" in line]
    assert len(losses) == TOTAL_STEPS and np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])


@pytest.mark.parametrize(
    "spec",
    [pytest.param(spec, marks=() if spec in DAILY else pytest.mark.slow) for spec in SPECS],
)
def test_every_variant_trains_two_steps(spec, tmp_path):
    config = shrink(load_config(spec))
    config.data.root = str(write_data(tmp_path / "data"))
    config.train.total_steps = 2
    # The demo evaluates by itself; of every day, the tests of commands do.
    config.train.eval_every = 0 if spec in DAILY else 2
    config.train.log_every = 1
    state = run_training(config, tmp_path / "run")
    assert int(state.step) == 2
    _, lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == ([1, 2] if spec in DAILY else [1, 2, 2])
    assert ("mask/AP" in lines[-1]) == (spec not in DAILY)
    assert all(math.isfinite(line["loss"]) for line in lines[:2])
