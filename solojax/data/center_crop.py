"""Rows for feature extraction: the middle of an image, resized by its short side."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from solojax.data.antialias import resize_antialiased
from solojax.data.canvas import Size
from solojax.data.image_folder import ImageList
from solojax.data.loader import Example, stack_field

_FIELDS = ("image", "valid", "image_index")


@dataclasses.dataclass(frozen=True)
class CenterCropRows:
    """Reads rows {image, valid, image_index, seed}. Picklable, for worker processes.

    The short side is resized to a length, the long one in proportion (rounded down), with
    antialiasing; of the result the middle is taken. These are the sizes and places of the field's
    evaluation transform (torchvision's Resize and CenterCrop).

    Attributes:
      dataset: where the images come from.
    """

    dataset: ImageList

    def __call__(
        self, image_index: int, short_side: int, flip: bool, canvas: Size, seed: int
    ) -> Example:
        """One row; the canvas is no larger than `short_side`. Raises BrokenImage."""
        del flip
        image = self.dataset.read_image(image_index)
        return {
            "image": center_crop(_resize_short_side(image, short_side), *canvas),
            "valid": np.bool_(True),
            "image_index": np.int32(image_index),
            "seed": np.uint32(seed),
        }

    def empty(self, canvas: Size) -> Example:
        """The row that fills up a batch or stands for an unreadable image."""
        return {
            "image": np.zeros((*canvas, 3), np.uint8),
            "valid": np.bool_(False),
            "image_index": np.int32(0),
            "seed": np.uint32(0),
        }


def _resize_short_side(image: np.ndarray, short_side: int) -> np.ndarray:
    height, width = image.shape[:2]
    short = min(height, width)
    return resize_antialiased(image, height * short_side // short, width * short_side // short)


def center_crop(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle (height, width) of an image (H, W, ...) that is no smaller.

    Where the margins cannot be equal, halves are rounded to the even number of pixels.
    """
    top, left = (round((a - b) / 2) for a, b in zip(image.shape, (height, width), strict=False))
    return image[top : top + height, left : left + width]


def stack_rows(examples: Sequence[Example]) -> dict[str, np.ndarray]:
    """Makes a batch of the rows: image (B, H, W, 3) uint8, valid (B,) and image_index (B,)."""
    return {name: stack_field(examples, name) for name in _FIELDS}
