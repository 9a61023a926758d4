from __future__ import annotations

import pytest

from solojax.config import base_config, load_config, validate
from solojax.errors import InputError


def changed(**values):
    """The base config with `model__head__channels=…` and the like changed."""
    config = base_config()
    for path, value in values.items():
        group = config
        *groups, name = path.split("__")
        for part in groups:
            group = group[part]
        group[name] = value
    return config


def test_the_defaults_are_valid():
    validate(base_config())


@pytest.mark.parametrize(
    "values",
    [
        {"train__total_steps": 10, "train__epochs": None},
        {"train__total_steps": 10},
        {"optimizer__milestones": (0.6, 0.9)},
        {"optimizer__milestones": (), "optimizer__schedule": "cosine"},
        {"train__batch_size": 8, "train__accumulate_steps": 4},
        {"loss__group_images": 2},
        {"data__canvas": "buckets", "data__buckets": ((832, 1344), (1344, 832))},
        {"data__canvas": "buckets", "evaluation__canvas": "buckets"},
        {"model__pixel_mean": (0.0, -1.0, 103), "model__pixel_std": (1.0, 1.0, 1.0)},
        {"train__eval_every": 0, "train__log_every": 0, "train__checkpoint_every": 0},
        {"model__grid__scale_ranges": ((1, 48.5),) * 5},
        {"loss__dice_epsilon": 0.0, "optimizer__weight_decay": 0.0},
    ],
)
def test_sensible_changes_are_valid(values):
    validate(changed(**values))


@pytest.mark.parametrize(
    "values, parts",
    [
        ({"train__epochs": None}, ["train.total_steps", "train.epochs"]),
        ({"train__accumulate_steps": 3}, ["train.accumulate_steps", "3", "16"]),
        ({"loss__group_images": 5}, ["loss.group_images", "5", "16"]),
        ({"optimizer__milestones": (27, 33)}, ["optimizer.milestones", "fractions"]),
        ({"optimizer__milestones": (0.5, 1.0)}, ["optimizer.milestones", "below 1"]),
        ({"optimizer__milestones": (0.9, 0.75)}, ["optimizer.milestones", "rising"]),
        ({"optimizer__milestones": (0.5, 0.5)}, ["optimizer.milestones", "rising"]),
        ({"optimizer__milestones": ()}, ["optimizer.milestones"]),
        ({"optimizer__milestones": ("a",)}, ["optimizer.milestones", "'a'"]),
        ({"optimizer__schedule": "cosin"}, ["'cosin'", "constant", "did you mean cosine"]),
        ({"optimizer__name": "adam"}, ["'adam'", "sgd"]),
        ({"model__backbone__norm": "bn"}, ["'bn'", "frozen_batch_norm", "group_norm"]),
        ({"model__backbone__depth": 49}, ["49", "18, 34, 50, 101"]),
        ({"model__backbone__frozen_stages": 5}, ["model.backbone.frozen_stages", "5"]),
        ({"evaluation__kernel": "gausian"}, ["did you mean gaussian"]),
        ({"evaluation__backend": "slow"}, ["fast, reference"]),
        ({"model__dtype": "float16"}, ["'float16'", "bfloat16"]),
        ({"model__head__channels": 48}, ["model.head.channels", "48", "32"]),
        ({"model__mask_features__out_channels": 100}, ["model.mask_features.out_channels"]),
        ({"data__buckets": ((100, 64),)}, ["data.buckets", "(100, 64)", "32"]),
        ({"data__buckets": (64, 96)}, ["data.buckets", "pairs"]),
        ({"data__short_sides": (640.0,)}, ["data.short_sides", "640.0", "whole"]),
        ({"data__short_sides": ()}, ["data.short_sides"]),
        ({"data__short_sides": (True,)}, ["data.short_sides"]),
        ({"data__long_side": 700}, ["data.long_side", "700"]),
        ({"evaluation__long_side": 700}, ["evaluation.long_side", "700"]),
        ({"evaluation__max_candidates": 400}, ["evaluation.max_candidates", "400", "500"]),
        ({"model__grid__scale_ranges": ((48, 1),) * 5}, ["model.grid.scale_ranges", "(48, 1)"]),
        ({"model__grid__scale_ranges": (1, 48)}, ["model.grid.scale_ranges", "pair"]),
        ({"model__pixel_std": (1.0, 0.0, 1.0)}, ["model.pixel_std", "0.0"]),
        ({"model__pixel_mean": (1.0,)}, ["model.pixel_mean", "3"]),
        ({"optimizer__learning_rate": 0.0}, ["optimizer.learning_rate", "more than 0"]),
        ({"optimizer__learning_rate": float("nan")}, ["optimizer.learning_rate", "finite"]),
        ({"train__batch_size": 0}, ["train.batch_size", "more than 0"]),
        ({"train__total_steps": -1}, ["train.total_steps", "-1"]),
        ({"data__prefetch": 0}, ["data.prefetch", "more than 0"]),
        ({"train__log_every": -1}, ["train.log_every", "0 or more"]),
        ({"train__ema_decay": 1.5}, ["train.ema_decay", "from 0 to 1"]),
        ({"evaluation__score_threshold": float("nan")}, ["evaluation.score_threshold"]),
        ({"seed": -1}, ["'seed'", "-1"]),
        ({"seed": 2**32}, ["'seed'"]),
        ({"model__max_positives": None}, ["model.max_positives", "None"]),
    ],
)
def test_errors_name_key_value_and_what_is_allowed(values, parts):
    with pytest.raises(InputError) as error:
        validate(changed(**values))
    assert "\n" not in str(error.value)
    assert all(part in str(error.value) for part in parts), str(error.value)


@pytest.mark.parametrize(
    "key, value",
    [
        ("model.backbone.frozen_stages", "1"),
        ("model.backbone.train_norm_affine", "False"),
        ("train.eval_every", "100"),
        ("train.eval_every_epochs", "1"),
        ("train.best_metric", "mask/AP"),
        ("contrast.queue_length", "1000"),
        ("train.accumulate_steps", "2"),
    ],
)
def test_pretraining_refuses_what_it_would_ignore(key, value):
    with pytest.raises(InputError, match=f"'{key}' is .*{value}"):
        load_config("configs/densecl.py", [f"--config.{key}={value}"])


def test_pretraining_freezes_no_statistics_of_random_weights():
    frozen = "--config.model.backbone.norm=frozen_batch_norm"
    with pytest.raises(InputError, match="'model.backbone.norm' is 'frozen_batch_norm': random"):
        load_config("configs/densecl.py", [frozen])
    load_config("configs/densecl.py", [frozen, "--config.model.backbone.checkpoint=r50.pth"])
