"""How much of the canvases of a plan is padding: pixels that are computed and hold no image."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from solojax.data.canvas import Size, multiple_of_32
from solojax.data.plan import PADDING, EvalPlan, TrainPlan


@dataclasses.dataclass(frozen=True)
class PaddingWaste:
    """Shares of canvas pixels that hold no image, from 0 to 1.

    Attributes:
      share: over all steps.
      canvases: (H, W) to (steps on it, share), the most frequent first.
      square: the (side, side), a multiple of 32, that holds every image of these steps.
      square_share: what the share would be with that square as the only canvas.
    """

    share: float
    canvases: dict[Size, tuple[int, float]]
    square: Size
    square_share: float

    def __str__(self) -> str:
        """One line for a person."""
        count, steps = len(self.canvases), sum(steps for steps, _ in self.canvases.values())
        return (
            f"{count} {'canvas' if count == 1 else 'canvases'} in {steps} steps, padding "
            f"{self.share:.1%} of their pixels ({self.square_share:.1%} with one square canvas of "
            f"{self.square[0]})"
        )


def padding_waste(plan: TrainPlan | EvalPlan, steps: Iterable[int]) -> PaddingWaste:
    """Measures the padding of some steps of a plan, from the image sizes alone.

    A row without an image is all padding.

    Args:
      plan: of training or of an evaluation.
      steps: at least one global step.

    Raises:
      ValueError: no steps.
    """
    image_pixels: dict[Size, list[int]] = {}
    longest = 1
    for step in steps:
        sizes = _resized_sizes(plan, step)
        image_pixels.setdefault(plan.at(step).canvas, []).append(sum(h * w for h, w in sizes))
        longest = max([longest, *(max(size) for size in sizes)])
    if not image_pixels:
        raise ValueError("padding_waste needs at least one step")
    counts = {canvas: len(pixels) for canvas, pixels in image_pixels.items()}
    used = {canvas: sum(pixels) for canvas, pixels in image_pixels.items()}
    square = multiple_of_32([(longest, longest)])

    def padding(pixels: int, canvases: dict[Size, int]) -> float:
        return 1 - pixels / sum(plan.batch_size * h * w * n for (h, w), n in canvases.items())

    return PaddingWaste(
        share=padding(sum(used.values()), counts),
        canvases={
            canvas: (counts[canvas], padding(used[canvas], {canvas: counts[canvas]}))
            for canvas in sorted(counts, key=lambda canvas: (-counts[canvas], canvas))
        },
        square=square,
        square_share=padding(sum(used.values()), {square: sum(counts.values())}),
    )


def _resized_sizes(plan: TrainPlan | EvalPlan, step: int) -> list[Size]:
    """(height, width) of every row of a step that has an image, as it lies on the canvas."""
    rows = plan.at(step)
    return [
        plan.resized_shape(*plan.sizes[index].tolist(), short_side, plan.long_side)
        for index, short_side in zip(
            rows.image_indices.tolist(), rows.short_sides.tolist(), strict=True
        )
        if index != PADDING
    ]
