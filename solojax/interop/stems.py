"""What a backbone expects of its input: channel order, mean, deviation, and where it strides.

These stay with the weights, not with the layout of the file. Inside, images and stems are RGB
always: the stem of a network that reads BGR is turned round on import, which changes the order of
a sum and nothing else, and back on export.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from solojax.interop.trees import flatten, unflatten

STEM_KERNEL = ("backbone", "conv1", "kernel")

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
UNIT_STD = (1.0, 1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Stem:
    """A convention.

    Attributes:
      name: how messages call it.
      bgr: whether the file's stem reads BGR.
      pixel_mean: per channel, RGB, on pixels in [0, 255].
      pixel_std: likewise.
      stride_in_1x1: whether bottlenecks stride in their first convolution, not in the 3x3.
    """

    name: str
    bgr: bool
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]
    stride_in_1x1: bool

    def settings(self, bottleneck: bool) -> dict[str, Any]:
        """The config keys that say the same; without bottlenecks the stride has one place."""
        return {
            "model.pixel_mean": self.pixel_mean,
            "model.pixel_std": self.pixel_std,
            "model.backbone.stride_in_1x1": self.stride_in_1x1 and bottleneck,
        }


TORCHVISION = Stem("torchvision's", False, IMAGENET_MEAN, IMAGENET_STD, stride_in_1x1=False)
MSRA = Stem("MSRA's", True, IMAGENET_MEAN, UNIT_STD, stride_in_1x1=True)


def flip_stem_channels(variables: dict[str, Any]) -> dict[str, Any]:
    """Variables whose stem reads RGB where it read BGR, or the reverse; the rest is shared.

    The means and deviations of the normalisation must be reversed with it.
    """
    return unflatten(
        {
            path: leaf[:, :, ::-1] if path[1:] == STEM_KERNEL else leaf
            for path, leaf in flatten(variables).items()
        }
    )
