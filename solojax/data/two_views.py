"""Rows of contrastive pre-training: two random crops of an image, perhaps mirrored."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from solojax.data.antialias import resize_antialiased
from solojax.data.canvas import Size
from solojax.data.image_folder import ImageList
from solojax.data.loader import Example, stack_field
from solojax.data.random_bits import even_draws, philox
from solojax.data.random_crop import DRAWS, check_crop, random_crop_box
from solojax.errors import InputError
from solojax.structures import ViewBatch

_NUM_VIEWS = 2
# What a row's random bits are for. Part of what makes a run repeatable: never renumber.
_CROPS = 0


@dataclasses.dataclass(frozen=True)
class TwoViewRows:
    """Reads rows of `ViewBatch`. Picklable, for worker processes.

    An image is decoded once. Each of its two views is a crop of its own (`random_crop_box`),
    resized to the canvas by bilinear interpolation with antialiasing and mirrored with a
    probability; crops smaller than the canvas, hence all crops of small images, are enlarged.
    Everything is drawn from the row's seed.

    Attributes:
      dataset: where the images come from.
      scale: areas of the crops, as fractions of the image's.
      ratio: width by height of the crops.
      flip_probability: of mirroring a view left to right.

    Raises:
      InputError: a value out of its range.
    """

    dataset: ImageList
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.5

    def __post_init__(self):
        check_crop(self.scale, self.ratio)
        if not 0 <= self.flip_probability <= 1:
            raise InputError(
                f"the flip probability is {self.flip_probability}; give a number from 0 to 1"
            )

    def __call__(
        self, image_index: int, short_side: int, flip: bool, canvas: Size, seed: int
    ) -> Example:
        """One row; raises BrokenImage for a file that cannot be read."""
        del short_side, flip
        image = self.dataset.read_image(image_index)
        bits = philox(seed, _CROPS).random_raw(_NUM_VIEWS * (DRAWS + 1)).reshape(_NUM_VIEWS, -1)
        return {
            "views": np.stack([self._view(image, canvas, words) for words in bits]),
            "valid": np.bool_(True),
            "image_index": np.int32(image_index),
            "seed": np.uint32(seed),
        }

    def empty(self, canvas: Size) -> Example:
        """The row that stands for an unreadable image: zeros, valid False."""
        return {
            "views": np.zeros((_NUM_VIEWS, *canvas, 3), np.uint8),
            "valid": np.bool_(False),
            "image_index": np.int32(0),
            "seed": np.uint32(0),
        }

    def _view(self, image: np.ndarray, canvas: Size, bits: np.ndarray) -> np.ndarray:
        """A view (H, W, 3) uint8 by DRAWS + 1 raw random words."""
        height, width = image.shape[:2]
        box = random_crop_box(height, width, bits[:DRAWS], scale=self.scale, ratio=self.ratio)
        top, left, box_height, box_width = box
        crop = image[top : top + box_height, left : left + box_width]
        view = resize_antialiased(crop, *canvas)
        return view[:, ::-1] if even_draws(bits[DRAWS]) < self.flip_probability else view


def stack_views(examples: Sequence[Example]) -> ViewBatch:
    """Makes a batch of the rows of `TwoViewRows`: the `stack` of `train_batches`."""
    names = [field.name for field in dataclasses.fields(ViewBatch)]
    return ViewBatch(**{name: stack_field(examples, name) for name in names})
