"""Which images a step of contrastive pre-training reads: like `TrainPlan`, without image sizes."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from solojax.data.canvas import Size
from solojax.data.plan import IMAGE_ORDER, ROWS, EpochStream, StepPlan
from solojax.data.random_bits import permutation, philox
from solojax.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class ViewPlan(EpochStream):
    """An endless stream of shuffled epochs, cut into batches; see `TrainPlan`.

    All views have one size, so that nobody has to open 1.28 million files for theirs before
    training begins. The order of images and the seeds of rows are those of a `TrainPlan` of the
    same seed that does not group by orientation. In a `StepPlan` of this plan, short sides are the
    views' and flips are False: what is done to an image is drawn from the row's seed.

    Attributes:
      num_images: n.
      batch_size: B, the images of a global step, of which each gives two views.
      seed: non-negative integer.
      canvas: (H, W) of every view.

    Raises:
      InputError: a value out of its range.
    """

    num_images: int
    batch_size: int
    seed: int
    canvas: Size

    def __post_init__(self):
        if self.num_images < 1:
            raise InputError("the training set has no images; check its folder")
        if self.batch_size < 1:
            raise InputError(f"the training batch size is {self.batch_size}; give at least 1")
        if self.seed < 0:
            raise InputError(f"the seed is {self.seed}; give a non-negative integer")
        if len(self.canvas) != 2 or min(self.canvas) < 1:
            raise InputError(
                f"the size of the views is {self.canvas}; give (height, width) in pixels"
            )

    def at(self, step: int) -> StepPlan:
        """The plan of global step `step`, counted from 0. Safe to call from several threads."""
        if step < 0:
            raise ValueError(f"step is {step}, steps are counted from 0")
        return _view_step(self, step)


# Caches outside of the plan, as for `TrainPlan`: the plan travels to worker processes.
@functools.lru_cache(maxsize=64)
def _view_step(plan: ViewPlan, step: int) -> StepPlan:
    epochs, places = np.divmod(
        np.arange(step * plan.batch_size, (step + 1) * plan.batch_size), plan.num_images
    )
    indices = np.empty(plan.batch_size, np.int32)
    for epoch in np.unique(epochs).tolist():
        in_epoch = epochs == epoch
        indices[in_epoch] = _epoch_order(plan, epoch)[places[in_epoch]]
    bits = philox(plan.seed, ROWS, counter=step * plan.batch_size)
    return StepPlan(
        image_indices=indices,
        seeds=(bits.random_raw(4 * plan.batch_size)[::4] >> 32).astype(np.uint32),
        short_sides=np.full(plan.batch_size, min(plan.canvas), np.int32),
        flips=np.zeros(plan.batch_size, bool),
        canvas=plan.canvas,
    )


@functools.lru_cache(maxsize=4)
def _epoch_order(plan: ViewPlan, epoch: int) -> np.ndarray:
    return permutation(plan.num_images, plan.seed, IMAGE_ORDER, epoch)
