"""Which images a step of feature extraction reads: every image once, in order."""

from __future__ import annotations

import dataclasses

import numpy as np

from solojax.data.canvas import Size
from solojax.data.plan import PADDING, StepPlan
from solojax.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class SequencePlan:
    """Every image once, in order, cut into batches; nothing is drawn at random.

    All rows have one size, so that nobody has to open the files for theirs. The last batch is
    filled up with rows of index `PADDING`.

    Attributes:
      num_images: n.
      batch_size: B, the rows of a global step.
      short_side: in pixels, that an image's short side is resized to.
      canvas: (H, W) of every row.

    Raises:
      InputError: a value out of its range.
    """

    num_images: int
    batch_size: int
    short_side: int
    canvas: Size

    def __post_init__(self):
        if min(self.num_images, self.batch_size, self.short_side, *self.canvas) < 1:
            raise InputError(
                f"{self.num_images} images in batches of {self.batch_size}, resized to "
                f"{self.short_side}, on a canvas of {self.canvas}: give positive numbers"
            )

    @property
    def num_steps(self) -> int:
        """The batches that hold all images."""
        return -(-self.num_images // self.batch_size)

    def at(self, step: int) -> StepPlan:
        """The plan of global batch `step`, from 0 to `num_steps` - 1."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        indices = np.where(positions < self.num_images, positions, PADDING)
        return StepPlan(
            image_indices=indices.astype(np.int32),
            seeds=np.zeros(self.batch_size, np.uint32),
            short_sides=np.full(self.batch_size, self.short_side, np.int32),
            flips=np.zeros(self.batch_size, bool),
            canvas=self.canvas,
        )
