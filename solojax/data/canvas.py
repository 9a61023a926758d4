"""Canvas policies: which fixed (height, width) holds a batch of images of several sizes.

A policy is any function from the sizes [(height, width), ...] of a batch to one (H, W), both
multiples of 32. Coordinates, the S x S grid and GroupNorm see the whole canvas, so a larger one
changes results, as in the published systems; a smaller number of canvases means fewer compiled
programs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from solojax.errors import InputError

Size = tuple[int, int]
CanvasPolicy = Callable[[Iterable[Size]], Size]

CANVAS_STEP = 32  # the coarsest stride of the network


def multiple_of_32(sizes: Iterable[Size]) -> Size:
    """The smallest canvas that holds all (height, width): the published padding."""
    height, width = _enclosing(sizes)
    return _round_up(height), _round_up(width)


@dataclasses.dataclass(frozen=True)
class Buckets:
    """A policy of a few canvases: each batch gets the smallest one that holds all its images.

    Attributes:
      canvases: the (H, W) to choose from, multiples of 32.
    """

    canvases: tuple[Size, ...]

    def __post_init__(self):
        if not self.canvases:
            raise InputError("canvas buckets: the list is empty; name at least one (height, width)")
        for canvas in self.canvases:
            if len(canvas) != 2 or any(side <= 0 or side % CANVAS_STEP for side in canvas):
                raise InputError(
                    f"canvas buckets: {canvas} is not a pair of positive multiples of "
                    f"{CANVAS_STEP}; round (height, width) up"
                )

    @classmethod
    def from_scales(
        cls,
        short_sides: Sequence[int],
        long_side: int,
        aspect_ratios: Sequence[float] = (1, 4 / 3, 3 / 2),
    ) -> Buckets:
        """Canvases by scale and orientation for images resized by `resized_shape`.

        Per short side: landscape and portrait of each aspect ratio (4/3 and 3/2 are most photos).
        For the rare longer images, the same up to `long_side` at the largest scale, and a square
        that holds anything, for the few batches of both orientations: every resized image has a
        canvas. Fewer short sides make fewer programs; the largest has to be among them.
        """
        if (
            not short_sides
            or min(short_sides) <= 0
            or long_side <= 0
            or not aspect_ratios
            or min(aspect_ratios) < 1
        ):
            raise InputError(
                f"canvas buckets: short sides {tuple(short_sides)}, long side {long_side} and "
                f"aspect ratios {tuple(aspect_ratios)} make no canvas; give positive sides and "
                "ratios of at least 1"
            )
        pairs = [
            (min(short, long_side), min(int(short * ratio + 0.5), long_side))
            for short in short_sides
            for ratio in aspect_ratios
        ]
        pairs += [(min(max(short_sides), long_side), long_side), (long_side, long_side)]
        canvases = set()
        for short, long in pairs:
            short, long = _round_up(short), _round_up(long)
            canvases |= {(short, long), (long, short)}
        return cls(tuple(sorted(canvases, key=_area_first)))

    @classmethod
    def for_images(cls, short_sides: Sequence[int], long_side: int) -> Buckets:
        """The canvases for images whose short side is drawn from `short_sides`, row by row.

        Those of the largest and of the middle short side: the largest row of a batch decides, and
        among many rows one is large, so that canvases for every scale would be compiled for
        next to nothing.
        """
        scales = sorted(short_sides)
        if len(scales) > 2:
            scales = [scales[(len(scales) - 1) // 2], scales[-1]]
        return cls.from_scales(scales, long_side)

    def __call__(self, sizes: Iterable[Size]) -> Size:
        """The canvas of least area that holds all (height, width); InputError if none does."""
        height, width = _enclosing(sizes)
        fitting = [(h, w) for h, w in self.canvases if h >= height and w >= width]
        if not fitting:
            raise InputError(
                f"canvas buckets: none of {self.canvases} holds {height}x{width} (height x width); "
                f"add one of at least {_round_up(height)}x{_round_up(width)}"
            )
        return min(fitting, key=_area_first)


def _area_first(canvas: Size) -> tuple[int, int, int]:
    return canvas[0] * canvas[1], *canvas


def _enclosing(sizes: Iterable[Size]) -> Size:
    heights, widths = zip(*sizes, strict=True)
    return max(heights), max(widths)


def _round_up(side: int) -> int:
    return -(-side // CANVAS_STEP) * CANVAS_STEP
