from __future__ import annotations

import ast
import inspect

import pytest

from solojax.config import base, base_config
from solojax.config.schema import flatten, known_keys

# The published SOLOv2 R50 3x on COCO, typed in from the papers' and releases' tables.
PUBLISHED = {
    "model.backbone.depth": 50,
    "model.backbone.norm": "frozen_batch_norm",
    "model.backbone.frozen_stages": 1,
    "model.backbone.train_norm_affine": True,
    "model.neck.channels": 256,
    "model.head.num_convs": 4,
    "model.head.channels": 512,
    "model.mask_features.channels": 128,
    "model.mask_features.out_channels": 256,
    "model.grid.num_grids": (40, 36, 24, 16, 12),
    "model.grid.strides": (8, 8, 16, 32, 32),
    "model.grid.scale_ranges": ((1, 96), (48, 192), (96, 384), (192, 768), (384, 2048)),
    "model.grid.center_sigma": 0.2,
    "model.pixel_mean": (123.675, 116.28, 103.53),
    "model.pixel_std": (58.395, 57.12, 57.375),
    "loss.mask_weight": 3.0,
    "loss.category_weight": 1.0,
    "loss.focal_alpha": 0.25,
    "loss.focal_gamma": 2.0,
    "loss.dice_epsilon": 0.001,
    "data.short_sides": (640, 672, 704, 736, 768, 800),
    "data.long_side": 1333,
    "data.flip_probability": 0.5,
    "train.batch_size": 16,
    "train.epochs": 36,
    "optimizer.learning_rate": 0.01,
    "optimizer.reference_batch": 16,
    "optimizer.momentum": 0.9,
    "optimizer.weight_decay": 0.0001,
    "optimizer.clip_norm": 35.0,
    "optimizer.warmup_steps": 500,
    "optimizer.warmup_factor": 0.01,
    "optimizer.decay_factor": 0.1,
    "evaluation.score_threshold": 0.1,
    "evaluation.mask_threshold": 0.5,
    "evaluation.nms_pre": 500,
    "evaluation.sigma": 2.0,
    "evaluation.update_threshold": 0.05,
    "evaluation.max_detections": 100,
}
OPTIONAL = {
    "model.num_classes",
    "loss.group_images",
    "train.total_steps",
    "train.epochs",
    "train.eval_every",
    "train.best_metric",
    "train.ema_decay",
    "optimizer.reference_batch",
    "optimizer.clip_norm",
    "evaluation.max_images",
}


def test_defaults_are_the_published_ones():
    values = flatten(base_config())
    assert {path: values[path] for path in PUBLISHED} == PUBLISHED


def test_a_new_key_is_refused_in_every_group():
    config = base_config()
    for group in (config, config.model, config.model.backbone, config.train):
        with pytest.raises(AttributeError):
            group.no_such_key = 1


def test_every_call_returns_a_config_of_its_own():
    first = base_config()
    first.model.backbone.depth = 18
    first.train.total_steps = 5
    assert base_config().model.backbone.depth == 50
    assert base_config().train.total_steps is None


def test_only_optional_keys_may_be_none():
    assert {path for path, key in known_keys().items() if key.optional} == OPTIONAL


def test_known_keys_are_the_leaves_of_the_config():
    config = base_config()
    assert set(known_keys()) == set(flatten(config))
    assert known_keys()["train.total_steps"].kind is int
    assert known_keys()["optimizer.learning_rate"].kind is float
    assert known_keys()["data.short_sides"].kind is tuple


def test_no_key_is_set_twice():
    """A key's comment and default stand in one place."""
    targets = [
        ast.unparse(node.targets[0])
        for node in ast.walk(ast.parse(inspect.getsource(base)))
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute)
    ]
    assert len(targets) == len(set(targets)) > 60
