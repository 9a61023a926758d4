"""The random resized crop of contrastive pre-training: which box is cut out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from solojax.data.random_bits import even_draws
from solojax.errors import InputError

_TRIES = 10
DRAWS = 4 * _TRIES  # raw words that `random_crop_box` takes


def random_crop_box(
    height: int,
    width: int,
    bits: np.ndarray,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """Draws a box as torchvision's RandomResizedCrop does (thesis 5.3.1).

    The area is drawn evenly from `scale` times the image's, the logarithm of width by height evenly
    from that of `ratio`, then the place. After ten boxes that do not fit: the largest central box
    whose ratio is allowed.

    Args:
      height: of the image, in pixels.
      width: likewise.
      bits: (DRAWS,) uint64 raw random words. All are accounted for, however many tries it takes.
      scale: (low, high), fractions of the image's area.
      ratio: (low, high), width by height.

    Returns:
      (top, left, height, width) in pixels, inside the image.
    """
    for u_area, u_ratio, u_top, u_left in even_draws(bits).reshape(_TRIES, 4).tolist():
        area = height * width * _between(u_area, scale)
        aspect = math.exp(_between(u_ratio, [math.log(r) for r in ratio]))
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(u_top * (height - box_height + 1))
            return top, int(u_left * (width - box_width + 1)), box_height, box_width
    return _central_box(height, width, ratio)


def check_crop(scale: tuple[float, float], ratio: tuple[float, float]) -> None:
    """Raises InputError unless 0 < low <= high for both, and no box is larger than the image."""
    if not 0 < scale[0] <= scale[1] <= 1:
        raise InputError(f"crop scale {tuple(scale)}: give (low, high) with 0 < low <= high <= 1")
    if not 0 < ratio[0] <= ratio[1]:
        raise InputError(f"crop ratio {tuple(ratio)}: give (low, high) with 0 < low <= high")


def _between(draw: float, bounds: Sequence[float]) -> float:
    return bounds[0] + draw * (bounds[1] - bounds[0])


def _central_box(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    box_height, box_width = height, width
    if width / height < ratio[0]:
        box_height = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        box_width = max(1, round(height * ratio[1]))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width
