"""Whether the values of a config make sense, each and together."""

from __future__ import annotations

import math
from typing import Any

from ml_collections import ConfigDict

from solojax.config.names import nearest_name
from solojax.config.schema import TASKS, check_keys, flatten
from solojax.errors import InputError

_DEFORMABLE = ("none", "v1", "v2")
_CHOICES = {
    "task": tuple(TASKS),
    "model.dtype": ("float32", "bfloat16"),
    "model.semantics": ("release", "thesis"),
    "model.head.kind": ("solov2", "solo", "decoupled", "decoupled_light"),
    "model.head.align": ("interpolate", "adaptive_max_pool", "region_grid"),
    "model.head.deformable": _DEFORMABLE,
    "model.mask_features.kind": ("unified", "separate"),
    "model.mask_features.kernel_size": (1, 3),
    "model.mask_features.deformable": _DEFORMABLE,
    "model.neck.kind": ("fpn", "single_scale"),
    "model.backbone.depth": (18, 34, 50, 101, 152),
    "model.backbone.deformable": _DEFORMABLE,
    "model.backbone.norm": ("frozen_batch_norm", "batch_norm", "group_norm"),
    "model.backbone.frozen_stages": (-1, 0, 1, 2, 3, 4),
    "data.canvas": ("multiple_of_32", "buckets"),
    "data.format": ("coco", "records"),
    "train.remat": ("none", "blocks", "blocks_convs", "all", "all_convs"),
    "optimizer.name": ("sgd", "adamw"),
    "optimizer.schedule": ("step", "cosine", "constant"),
    "evaluation.canvas": ("multiple_of_32", "buckets"),
    "loss.mask": ("dice", "focal", "bce"),
    "evaluation.nms": ("matrix", "soft", "hard", "fast"),
    "evaluation.kernel": ("gaussian", "linear"),
    "evaluation.backend": ("fast", "reference"),
}
_CHOICES_OF_TASK = {
    "densecl": {
        "data.format": ("folder", "coco", "records"),
        "contrast.correspondence": ("max_sim_features", "max_sim_embeddings", "random"),
        "contrast.negatives": ("pooled", "sampled"),
    },
    "free_solo": {
        "data.format": ("coco",),
        "loss.semantics": ("thesis", "release"),
        "model.head.kind": ("solov2",),
        "model.mask_features.kind": ("unified",),
        "free_mask.canvas": ("multiple_of_32", "buckets"),
        "free_mask.stage": (2, 3, 4, 5),
        "free_mask.semantics": ("thesis", "release"),
    },
}
# (lowest, highest) value, both allowed. None is checked only where it is set.
_RANGES = {
    "seed": (0, 2**32 - 1),
    "model.grid.center_sigma": (0, 1),
    "loss.focal_alpha": (0, 1),
    "data.flip_probability": (0, 1),
    "train.ema_decay": (0, 1),
    "optimizer.momentum": (0, 1),
    "optimizer.warmup_factor": (0, 1),
    "optimizer.decay_factor": (0, 1),
    "evaluation.score_threshold": (0, 1),
    "evaluation.mask_threshold": (0, 1),
    "evaluation.update_threshold": (0, 1),
    "evaluation.nms_threshold": (0, 1),
    "contrast.dense_weight": (0, 1),
    "contrast.momentum": (0, 1),
    "views.flip_probability": (0, 1),
    "views.jitter_probability": (0, 1),
    "views.grayscale_probability": (0, 1),
    "views.blur_probability": (0, 1),
    "views.hue": (0, 0.5),
    "strong.jitter_probability": (0, 1),
    "strong.grayscale_probability": (0, 1),
    "strong.blur_probability": (0, 1),
    "strong.hue": (0, 0.5),
    "loss.color_threshold": (0, 1),
    "free_mask.mask_threshold": (0, 1),
    "free_mask.min_maskness": (0, 1),
    "free_mask.min_center": (0, 1),
    "free_mask.max_width": (0, 1),
    "self_training.score_threshold": (0, 1),
    "self_training.picture_threshold": (0, 1),
    "self_training.max_width": (0, 1),
}
_MAY_BE_ZERO = (
    "model.head.num_coordinate_convs",
    "model.head.align_at",
    "loss.mask_weight",
    "loss.category_weight",
    "loss.focal_gamma",
    "loss.dice_epsilon",
    "data.workers",
    "train.log_every",
    "train.eval_every",
    "train.eval_every_epochs",
    "train.checkpoint_every",
    "optimizer.weight_decay",
    "optimizer.warmup_steps",
    "model.backbone.norm_group_images",
    "contrast.dense_warmup_steps",
    "views.brightness",
    "views.contrast",
    "views.saturation",
    "strong.brightness",
    "strong.contrast",
    "strong.saturation",
    "free_mask.min_piece_area",
    "loss.max_projection_weight",
    "loss.mean_projection_weight",
    "loss.projection_epsilon",
    "loss.pairwise_weight",
    "loss.pairwise_warmup_steps",
    "loss.ignored_bottom_rows",
    "loss.semantic_weight",
    "self_training.rounds",
)
_GROUP_NORM_GROUPS = 32


def validate(config: ConfigDict) -> None:
    """Checks a whole config: keys, types, every value, and values that depend on each other.

    Raises:
      InputError: with the key, its value and what is allowed.
    """
    check_keys(config)
    choices = _CHOICES | _CHOICES_OF_TASK.get(config.task, {})
    for path, value in flatten(config).items():
        if path in choices:
            _check_choice(path, value, choices[path])
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            _check_number(path, value)
    _check_backbone_and_pixels(config.model)
    _check_train(config)
    _check_optimizer(config.optimizer)
    if config.task == "densecl":
        _check_contrast(config)
        return
    if config.task == "free_solo":
        _check_free_solo(config)
    _check_model(config.model)
    _check_start(config.model)
    _check_mask_loss(config)
    _check_data(config)
    _check_evaluation(config.evaluation)


def _error(path: str, value: Any, advice: str) -> InputError:
    return InputError(f"config key '{path}' is {value!r}: {advice}")


def _check_choice(path: str, value: Any, allowed: tuple) -> None:
    if value in allowed:
        return
    listing = ", ".join(str(choice) for choice in allowed)
    advice = f"give one of {listing}" if len(allowed) > 1 else f"only {listing} is known"
    if isinstance(value, str) and len(allowed) > 1:
        advice += f" (did you mean {nearest_name(value, allowed)}?)"
    raise _error(path, value, advice)


def _check_number(path: str, value: float) -> None:
    if path in _RANGES:
        low, high = _RANGES[path]
        if not low <= value <= high:
            raise _error(path, value, f"give a number from {low} to {high}")
    elif not math.isfinite(value):
        raise _error(path, value, "give a finite number")
    elif path in _MAY_BE_ZERO:
        if value < 0:
            raise _error(path, value, "give 0 or more")
    elif value <= 0:
        raise _error(path, value, "give more than 0")


def _check_tuple(
    path: str, values: tuple, kind: type, length: int | None = None, above: float = 0
) -> None:
    """Checks that all entries are whole (kind int) or any (kind float) numbers beyond `above`."""
    allowed = (int,) if kind is int else (int, float)
    words = "whole numbers" if kind is int else "numbers"
    if not values or (length is not None and len(values) != length):
        count = length or "one or more"
        raise _error(path, values, f"give {count} {words} with commas between them")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, allowed) or not value > above:
            limit = f" above {above}" if math.isfinite(above) else ""
            raise _error(path, values, f"{value!r} is among it, give {words}{limit}")


def _check_backbone_and_pixels(model: ConfigDict) -> None:
    _check_tuple("model.pixel_mean", model.pixel_mean, float, 3, above=-math.inf)
    _check_tuple("model.pixel_std", model.pixel_std, float, 3)
    stages = model.backbone.deformable_stages
    _check_tuple("model.backbone.deformable_stages", stages, int)
    if max(stages) > 4:
        raise _error("model.backbone.deformable_stages", stages, "give stages from 1 to 4")


def _check_contrast(config: ConfigDict) -> None:
    model, contrast, views, rows = config.model, config.contrast, config.views, config.train
    if model.grid:
        _check_tuple("model.grid", model.grid, int, 2)
    for name in ("size", "scale", "ratio", "blur_sigma"):
        kind = int if name == "size" else float
        _check_tuple(f"views.{name}", views[name], kind, 2)
        if name != "size" and views[name][0] > views[name][1]:
            raise _error(f"views.{name}", views[name], "the first must not be above the second")
    if any(side % 32 for side in views.size):
        raise _error("views.size", views.size, "both sides must be multiples of 32")
    if contrast.queue_length % rows.batch_size:
        raise _error(
            "contrast.queue_length",
            contrast.queue_length,
            f"it must be a multiple of train.batch_size, {rows.batch_size}",
        )
    group = model.backbone.norm_group_images
    if group and rows.batch_size % group:
        raise _error(
            "model.backbone.norm_group_images",
            group,
            f"it must divide train.batch_size, {rows.batch_size}",
        )
    if model.backbone.norm == "frozen_batch_norm" and not model.backbone.checkpoint:
        raise _error(
            "model.backbone.norm",
            model.backbone.norm,
            "random weights have no statistics to freeze; give batch_norm, or set "
            "model.backbone.checkpoint",
        )
    if rows.accumulate_steps != 1:
        raise _error(
            "train.accumulate_steps",
            rows.accumulate_steps,
            "queues and groups of BatchNorm need the whole batch at once, give 1",
        )
    for path, value, wanted in (
        ("model.backbone.frozen_stages", model.backbone.frozen_stages, -1),
        ("model.backbone.train_norm_affine", model.backbone.train_norm_affine, True),
        ("train.best_metric", rows.best_metric, None),
    ):
        if value != wanted:
            raise _error(path, value, f"pre-training trains all and has no evaluation: {wanted}")
    name = "eval_every_epochs" if rows.eval_every is None else "eval_every"
    if rows[name]:
        raise _error(f"train.{name}", rows[name], "pre-training has no evaluation, give 0")
    if contrast.dense_weight and not model.dense:
        raise _error(
            "contrast.dense_weight", contrast.dense_weight, "without model.dense it must be 0"
        )


def _check_free_solo(config: ConfigDict) -> None:
    strong, rows, search = config.strong, config.train.batch_size, config.free_mask
    if strong.enabled and strong.paste and rows % 2:
        raise _error("train.batch_size", rows, "copy-paste takes images in pairs, give an even one")
    _check_tuple("strong.blur_sigma", strong.blur_sigma, float, 2)
    if strong.blur_sigma[0] > strong.blur_sigma[1]:
        raise _error(
            "strong.blur_sigma", strong.blur_sigma, "the first must not be above the second"
        )
    _check_tuple("free_mask.scales", search.scales, float)
    if max(search.scales) > 1:
        raise _error("free_mask.scales", search.scales, "give numbers up to 1")
    if search.short_side > search.long_side:
        raise _error("free_mask.long_side", search.long_side, "it is below free_mask.short_side")
    if not config.evaluation.class_agnostic:
        raise _error("evaluation.class_agnostic", False, "without classes it must be true")
    if config.model.num_classes not in (None, 1):
        raise _error("model.num_classes", config.model.num_classes, "there is one class: give 1")


def _check_start(model: ConfigDict) -> None:
    if model.checkpoint and model.backbone.checkpoint:
        raise _error(
            "model.checkpoint",
            model.checkpoint,
            "it has a backbone, leave model.backbone.checkpoint empty or give that alone",
        )


def _check_model(model: ConfigDict) -> None:
    for path, channels in (
        ("model.head.channels", model.head.channels),
        ("model.mask_features.channels", model.mask_features.channels),
        ("model.mask_features.out_channels", model.mask_features.out_channels),
    ):
        if channels % _GROUP_NORM_GROUPS:
            raise _error(path, channels, f"give a multiple of {_GROUP_NORM_GROUPS}, for GroupNorm")
    _check_unused(model)
    _check_tuple("model.grid.num_grids", model.grid.num_grids, int)
    _check_tuple("model.grid.strides", model.grid.strides, int)
    for low_high in model.grid.scale_ranges:
        path = "model.grid.scale_ranges"
        if not isinstance(low_high, tuple):
            raise _error(path, model.grid.scale_ranges, "give a (low, high) pair for every level")
        _check_tuple(path, low_high, float, 2)
        if low_high[0] > low_high[1]:
            raise _error(path, low_high, "the first must not be above the second")


def _check_unused(model: ConfigDict) -> None:
    """Refuses values that the chosen network would ignore."""
    head, features = model.head, model.mask_features
    if head.kind == "solov2" and head.num_coordinate_convs > 1:
        raise _error(
            "model.head.num_coordinate_convs",
            head.num_coordinate_convs,
            "the kernels of solov2 get coordinates (1) or none (0)",
        )
    if head.kind != "solov2" and model.semantics != "release":
        raise _error("model.semantics", model.semantics, f"{head.kind} has one form, give release")
    if features.kind == "separate" and features.deformable != "none":
        raise _error(
            "model.mask_features.deformable", features.deformable, "separate towers have none"
        )
    if model.neck.kind == "fpn" and model.neck.num_outputs < 4:
        raise _error("model.neck.num_outputs", model.neck.num_outputs, "give 4 or more")


def _check_mask_loss(config: ConfigDict) -> None:
    if config.loss.mask != "dice" and config.model.head.kind.startswith("decoupled"):
        raise _error(
            "loss.mask",
            config.loss.mask,
            "decoupled masks are products of probabilities and have no logits, give dice",
        )


def _check_data(config: ConfigDict) -> None:
    data = config.data
    _check_tuple("data.short_sides", data.short_sides, int)
    if max(data.short_sides) > data.long_side:
        raise _error("data.long_side", data.long_side, "it is below the largest data.short_sides")
    for bucket in data.buckets:
        if not isinstance(bucket, tuple):
            raise _error("data.buckets", data.buckets, "give (height, width) pairs")
        _check_tuple("data.buckets", bucket, int, 2)
        if any(side % 32 for side in bucket):
            raise _error("data.buckets", bucket, "both sides must be multiples of 32")


def _check_train(config: ConfigDict) -> None:
    train = config.train
    if train.total_steps is None and train.epochs is None:
        raise InputError(
            "config keys 'train.total_steps' and 'train.epochs' are both None: set one of them"
        )
    groups = {"train.accumulate_steps": train.accumulate_steps}
    if "loss" in config:
        groups["loss.group_images"] = config.loss.group_images
    for path, parts in groups.items():
        if parts is not None and train.batch_size % parts:
            raise _error(path, parts, f"it must divide train.batch_size, {train.batch_size}")


def _check_optimizer(optimizer: ConfigDict) -> None:
    path, milestones = "optimizer.milestones", optimizer.milestones
    if not milestones and optimizer.schedule != "step":
        return
    _check_tuple(path, milestones, float)
    if list(milestones) != sorted(set(milestones)) or milestones[-1] >= 1:
        raise _error(
            path, milestones, "give rising fractions of the run, below 1 (epoch 27 of 36 is 0.75)"
        )


def _check_evaluation(evaluation: ConfigDict) -> None:
    if evaluation.short_side > evaluation.long_side:
        raise _error(
            "evaluation.long_side", evaluation.long_side, "it is below evaluation.short_side"
        )
    if evaluation.max_candidates < evaluation.nms_pre:
        raise _error(
            "evaluation.max_candidates",
            evaluation.max_candidates,
            f"it must be at least evaluation.nms_pre, {evaluation.nms_pre}",
        )
