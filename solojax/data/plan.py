"""Which images a global step reads, and how: a pure function of the seed and the step.

A plan holds no position. `plan.at(step)` returns the same answer in any process, in any order of
calls and after any interruption, so a step number is the whole state of a loader. The random bits
come from Philox, a counter-based generator: the bits of the p-th row of training are block p of one
stream, whatever the batch size and the number of hosts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from solojax.data.canvas import CanvasPolicy, Size
from solojax.data.random_bits import even_draws, permutation, philox
from solojax.errors import InputError

ResizedShape = Callable[[int, int, int, int], Size]

# What a stream of random bits is for. Part of what makes a run repeatable: never renumber.
IMAGE_ORDER, CHUNK_ORDER, ROWS = 0, 1, 2

PADDING = -1


@dataclasses.dataclass(frozen=True, eq=False)
class StepPlan:
    """What one global step reads. The arrays are read-only.

    Attributes:
      image_indices: (B,) int32, positions in the data set; `PADDING` for a row without an image.
      seeds: (B,) uint32, each row's own random seed.
      short_sides: (B,) int32, pixels that the image's short side is resized to.
      flips: (B,) bool, whether the image is mirrored left to right.
      canvas: (H, W) of every row.
    """

    image_indices: np.ndarray
    seeds: np.ndarray
    short_sides: np.ndarray
    flips: np.ndarray
    canvas: Size

    def __post_init__(self):
        for array in (self.image_indices, self.seeds, self.short_sides, self.flips):
            array.setflags(write=False)


class EpochStream:
    """An endless stream of epochs of `num_images` images, cut into steps of `batch_size`."""

    num_images: int
    batch_size: int

    @property
    def steps_per_epoch(self) -> int:
        """The steps that one epoch takes, rounded up."""
        return -(-self.num_images // self.batch_size)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TrainPlan(EpochStream):
    """The order of training: an endless stream of shuffled epochs, cut into batches.

    Position p of the stream is row p % B of step p // B, and belongs to epoch p // n. Every image
    occurs exactly once in an epoch. Where B does not divide n, a batch spans two epochs (or more,
    if the data set is smaller than the batch), and no image is left out or repeated for it.

    With `group_by_orientation`, images wider than high (or square) and images higher than wide do
    not share a batch if it can be helped, since a canvas for both is larger than either needs.
    Within an epoch: shuffle; let the first images complete the batch that the epoch before began;
    split the others by orientation; cut both parts into whole batches; shuffle the batches; let
    the left-overs of both parts follow at the end. So the batches of mixed orientation are at most
    the one across each boundary between epochs and one of left-overs just before it.

    Attributes:
      sizes: (n, 2) int, (height, width) of every image file.
      batch_size: B, the images of a global step.
      seed: non-negative integer.
      short_sides: the lengths, in pixels, that a row's short side is drawn from, evenly.
      long_side: the longest that a resized image's long side may be, in pixels.
      flip_probability: of mirroring a row left to right.
      choose_canvas: maps the resized (height, width) of all B rows to one (H, W).
      resized_shape: maps (height, width, short_side, long_side) to the resized (height, width).
      group_by_orientation: see above.

    Raises:
      InputError: no images, or a value out of its range.
    """

    sizes: np.ndarray
    batch_size: int
    seed: int
    short_sides: tuple[int, ...]
    long_side: int
    flip_probability: float
    choose_canvas: CanvasPolicy
    resized_shape: ResizedShape
    group_by_orientation: bool

    def __post_init__(self):
        object.__setattr__(self, "sizes", _checked_sizes(self.sizes, self.batch_size, "training"))
        if self.seed < 0:
            raise InputError(f"the seed is {self.seed}; give a non-negative integer")
        if not self.short_sides:
            raise InputError("the list of short sides is empty; give at least one, as (800,)")
        if not 0 <= self.flip_probability <= 1:
            raise InputError(
                f"the flip probability is {self.flip_probability}; give a number from 0 to 1"
            )

    @property
    def num_images(self) -> int:
        """n."""
        return len(self.sizes)

    def at(self, step: int) -> StepPlan:
        """The plan of global step `step`, counted from 0. Safe to call from several threads."""
        if step < 0:
            raise ValueError(f"step is {step}, steps are counted from 0")
        return _train_step(self, step)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class EvalPlan:
    """The order of an evaluation: every image once, and only images of one canvas in a batch.

    Each image gets the canvas that it would have alone, so that its results do not depend on the
    batch. Larger canvases come first, since a lack of memory had better show at once. The last
    batch of every canvas is filled up with rows of index `PADDING`.

    Attributes:
      sizes, batch_size, long_side, choose_canvas, resized_shape: as in `TrainPlan`.
      short_side: the length, in pixels, that every image's short side is resized to.

    Raises:
      InputError: no images, or a value out of its range.
    """

    sizes: np.ndarray
    batch_size: int
    short_side: int
    long_side: int
    choose_canvas: CanvasPolicy
    resized_shape: ResizedShape

    def __post_init__(self):
        object.__setattr__(self, "sizes", _checked_sizes(self.sizes, self.batch_size, "evaluation"))

    @property
    def num_steps(self) -> int:
        """Batches of the whole evaluation."""
        return len(self._batches)

    def at(self, step: int) -> StepPlan:
        """The plan of global batch `step`, from 0 to `num_steps` - 1."""
        canvas, images = self._batches[step]
        indices = np.full(self.batch_size, PADDING, np.int32)
        indices[: len(images)] = images
        return StepPlan(
            image_indices=indices,
            seeds=np.zeros(self.batch_size, np.uint32),
            short_sides=np.full(self.batch_size, self.short_side, np.int32),
            flips=np.zeros(self.batch_size, bool),
            canvas=canvas,
        )

    @functools.cached_property
    def _batches(self) -> list[tuple[Size, list[int]]]:
        images_of: dict[Size, list[int]] = {}
        for index, (height, width) in enumerate(self.sizes.tolist()):
            resized = self.resized_shape(height, width, self.short_side, self.long_side)
            images_of.setdefault(self.choose_canvas([resized]), []).append(index)
        largest_first = sorted(images_of, key=lambda c: (-c[0] * c[1], c))
        return [
            (canvas, images_of[canvas][start : start + self.batch_size])
            for canvas in largest_first
            for start in range(0, len(images_of[canvas]), self.batch_size)
        ]


def _checked_sizes(sizes, batch_size: int, purpose: str) -> np.ndarray:
    sizes = np.asarray(sizes, np.int32)
    if sizes.size == 0:
        raise InputError(f"the {purpose} set has no images; check its annotation file")
    if sizes.ndim != 2 or sizes.shape[1] != 2:
        raise InputError(
            f"the image sizes of the {purpose} set have shape {sizes.shape}; "
            "give one row (height, width) per image"
        )
    if sizes.min() < 1:
        index = int(np.argmin(sizes.min(axis=1)))
        raise InputError(
            f"image {index} of the {purpose} set has (height, width) {tuple(sizes[index].tolist())}"
            "; correct its entry in the annotation file"
        )
    if batch_size < 1:
        raise InputError(f"the {purpose} batch size is {batch_size}; give at least 1")
    return sizes


# Every row of a batch asks for its step, from several threads, and the rows that are read ahead
# lie in a few steps; hence caches, keyed by the plan's identity, outside of the plan itself, which
# has to travel to worker processes.
@functools.lru_cache(maxsize=64)
def _train_step(plan: TrainPlan, step: int) -> StepPlan:
    first = step * plan.batch_size
    indices = _stream(plan, first, first + plan.batch_size)
    bits = philox(plan.seed, ROWS, counter=first).random_raw(4 * plan.batch_size).reshape(-1, 4)
    short_sides = np.asarray(plan.short_sides, np.int32)[bits[:, 1] % len(plan.short_sides)]
    resized = [
        plan.resized_shape(height, width, short_side, plan.long_side)
        for (height, width), short_side in zip(
            plan.sizes[indices].tolist(), short_sides.tolist(), strict=True
        )
    ]
    return StepPlan(
        image_indices=indices.astype(np.int32),
        seeds=(bits[:, 0] >> 32).astype(np.uint32),
        short_sides=short_sides,
        flips=even_draws(bits[:, 2]) < plan.flip_probability,
        canvas=plan.choose_canvas(resized),
    )


def _stream(plan: TrainPlan, first: int, last: int) -> np.ndarray:
    """The images at positions [first, last) of the endless stream of epochs."""
    n = plan.num_images
    epochs = range(first // n, (last - 1) // n + 1)
    return np.concatenate(
        [_epoch_order(plan, e)[max(first - e * n, 0) : last - e * n] for e in epochs]
    )


@functools.lru_cache(maxsize=4)
def _epoch_order(plan: TrainPlan, epoch: int) -> np.ndarray:
    order = permutation(plan.num_images, plan.seed, IMAGE_ORDER, epoch)
    if not plan.group_by_orientation:
        return order
    head = -epoch * plan.num_images % plan.batch_size
    rest = order[head:]
    is_landscape = plan.sizes[rest, 0] <= plan.sizes[rest, 1]
    batches, left_overs = [], []
    for part in (rest[is_landscape], rest[~is_landscape]):
        whole = len(part) // plan.batch_size * plan.batch_size
        batches.append(part[:whole].reshape(-1, plan.batch_size))
        left_overs.append(part[whole:])
    batches = np.concatenate(batches)
    batches = batches[permutation(len(batches), plan.seed, CHUNK_ORDER, epoch)]
    return np.concatenate([order[:head], batches.reshape(-1), *left_overs])
