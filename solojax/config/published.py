"""What the published COCO configs have in common: schedules, image sizes, backbones."""

from __future__ import annotations

from ml_collections import ConfigDict

from solojax.config.base import base_config

# Epochs of the run, epochs after which the rate drops, whether the scale varies in training.
_SCHEDULES = {
    "1x": (12, (9, 11), False),
    "3x": (36, (27, 33), True),
    "6x": (72, (54, 66), True),
}
SCHEDULES = tuple(_SCHEDULES)
# Short sides in training (the last one with a fixed scale), long side, short side in tests, and
# the scale ranges of the five levels.
_FULL_RANGES = ((1, 96), (48, 192), (96, 384), (192, 768), (384, 2048))
_LIGHT_SIDES = (352, 384, 416, 448, 480, 512)
_SIZES = {
    "800": ((640, 672, 704, 736, 768, 800), 1333, 800, _FULL_RANGES),
    "512": (_LIGHT_SIDES, 852, 512, ((1, 64), (32, 128), (64, 256), (128, 512), (256, 2048))),
    "448": (_LIGHT_SIDES, 768, 448, ((1, 56), (28, 112), (56, 224), (112, 448), (224, 896))),
}
_BACKBONES = {
    "r18": {"depth": 18},
    "r34": {"depth": 34},
    "r50": {"depth": 50},
    "r101": {"depth": 101},
    "x101": {"depth": 101, "groups": 64, "base_width": 4},
}


def published_config(backbone: str, schedule: str, size: str = "800") -> ConfigDict:
    """The base config with a published backbone, schedule and image size.

    Args:
      backbone: r18, r34, r50, r101 or x101 (ResNeXt-101-64x4d).
      schedule: 1x (12 epochs at one scale), 3x (36 epochs at several), 6x (72 epochs).
      size: the short side in tests: 800, or 512 and 448 for the small and light models.
    """
    config = base_config()
    config.model.backbone.update(_BACKBONES[backbone])
    epochs, drops, varied = _SCHEDULES[schedule]
    config.train.epochs = epochs
    config.optimizer.milestones = tuple(drop / epochs for drop in drops)
    short_sides, long_side, test_side, ranges = _SIZES[size]
    config.data.short_sides = short_sides if varied else short_sides[-1:]
    config.data.long_side = config.evaluation.long_side = long_side
    config.evaluation.short_side = test_side
    config.model.grid.scale_ranges = ranges
    return config
