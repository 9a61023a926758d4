from __future__ import annotations

import pytest

from solojax.config import (
    from_json,
    load_config,
    milestone_steps,
    scaled_learning_rate,
    shipped_configs,
    to_json,
)
from solojax.structures import GridSpec

SPECS = [
    *(f"configs/solov2.py:{depth},{x}" for depth in ("r18", "r34", "r50", "r101") for x in "13"),
    "configs/solov2.py",
    "configs/solov2.py:mushrooms",
    "configs/solov2.py:fruits_nuts",
    "configs/quickstart.py",
]
SPECS = [spec + "x" if spec[-1] in "13" else spec for spec in SPECS]


@pytest.mark.parametrize("spec", SPECS)
def test_every_variant_is_valid_and_survives_json(spec):
    config = load_config(spec)
    assert from_json(to_json(config)).to_dict() == config.to_dict()
    grid = GridSpec(**config.model.grid.to_dict())
    assert grid.num_levels == config.model.neck.num_outputs


def test_every_shipped_config_is_tried_here():
    assert {spec.partition(":")[0] for spec in SPECS} == set(shipped_configs())


def test_schedules_of_the_published_runs():
    one, three = load_config("configs/solov2.py:1x"), load_config("configs/solov2.py:r101,3x")
    assert (one.train.epochs, one.data.short_sides) == (12, (800,))
    assert milestone_steps(one, 12 * 7330) == (9 * 7330, 11 * 7330)
    assert three.model.backbone.depth == 101
    assert (three.train.epochs, len(three.data.short_sides)) == (36, 6)
    assert milestone_steps(three, 36 * 7330) == (27 * 7330, 33 * 7330)


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
