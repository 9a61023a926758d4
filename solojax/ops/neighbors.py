"""Pixels beside their neighbours: which of them are of one colour (thesis 6.2.3; BoxInst).

The neighbours stand on an axis before the pixels, (..., 8, h, w), since eight would fill a
sixteenth of a TPU's lanes. They go row by row through the 3x3 neighbourhood without its centre.
"""

from __future__ import annotations

import jax.numpy as jnp

from solojax.ops.images import valid_pixels
from solojax.ops.lab_color import rgb_to_lab
from solojax.structures import Array

SCALE = 4  # of masks against the canvas


def neighbor_offsets(size: int = 3, dilation: int = 1) -> tuple[tuple[int, int], ...]:
    """(rows down, columns right) to every neighbour, row by row, without the centre."""
    steps = [dilation * step for step in range(-(size // 2), size // 2 + 1)]
    return tuple((y, x) for y in steps for x in steps if (y, x) != (0, 0))


def unfold_neighbors(x: Array, *, size: int = 3, dilation: int = 1) -> Array:
    """Every pixel's neighbours, zeros outside the map.

    Args:
      x: (..., h, w).
      size: side of the neighbourhood, odd.
      dilation: pixels from one neighbour to the next.

    Returns:
      (..., size^2 - 1, h, w).
    """
    height, width = x.shape[-2:]
    reach = dilation * (size // 2)
    padded = jnp.pad(x, ((0, 0),) * (x.ndim - 2) + ((reach, reach),) * 2)
    shifted = [
        padded[..., reach + y : reach + y + height, reach + x : reach + x + width]
        for y, x in neighbor_offsets(size, dilation)
    ]
    return jnp.stack(shifted, axis=-3)


def color_similarity(lab: Array, valid: Array, *, size: int = 3, dilation: int = 2) -> Array:
    """exp(-|d| / 2) of the distance d between a pixel's Lab colour and its neighbour's.

    Args:
      lab: (..., h, w, 3).
      valid: (..., h, w) bool, pixels that may be a neighbour.
      size: see `unfold_neighbors`.
      dilation: likewise.

    Returns:
      (..., size^2 - 1, h, w) in [0, 1], 0 where the neighbour is not valid or outside.
    """
    squares = 0.0
    for channel in jnp.moveaxis(lab, -1, 0):
        neighbors = unfold_neighbors(channel, size=size, dilation=dilation)
        squares += jnp.square(channel[..., None, :, :] - neighbors)
    similarity = jnp.exp(-0.5 * jnp.sqrt(squares))
    return jnp.where(unfold_neighbors(valid, size=size, dilation=dilation), similarity, 0.0)


def shrink_colors(image: Array) -> Array:
    """Means over 4x4 pixels, rounded down as published: (B, H, W, 3) uint8 to (B, H/4, W/4, 3)."""
    rows, height, width, channels = image.shape
    blocks = image.reshape(rows, height // SCALE, SCALE, width // SCALE, SCALE, channels)
    return (jnp.sum(blocks, axis=(2, 4), dtype=jnp.int32) // SCALE**2).astype(jnp.uint8)


def colored_pixels(
    height: int, width: int, image_size: Array, original_size: Array, ignored_bottom_rows: int
) -> Array:
    """Which pixels of a canvas at 1/4 scale have a colour of the image, (B, H/4, W/4) bool.

    The canvas' pixel (2, 2) of every 4x4 decides, as published: it lies inside the image, and not
    in its lowest rows, where many files have a border.

    Args:
      height: H.
      width: W.
      image_size: (B, 2) int32, (height, width) of the image on the canvas.
      original_size: (B, 2) int32, of the file.
      ignored_bottom_rows: of the file.
    """
    file_heights = jnp.maximum(original_size[:, 0], 1)
    cut = ignored_bottom_rows * image_size[:, 0] // file_heights
    size = jnp.stack([image_size[:, 0] - cut, image_size[:, 1]], axis=1)
    half = SCALE // 2
    return valid_pixels(height, width, size)[:, half::SCALE, half::SCALE]


def image_color_similarity(
    image: Array,
    image_size: Array,
    original_size: Array,
    *,
    dilation: int = 2,
    ignored_bottom_rows: int = 10,
) -> Array:
    """`color_similarity` of images at 1/4 scale, with invalid padding and lowest rows.

    Args:
      image: (B, H, W, 3) uint8 RGB on its canvas, H and W multiples of 4.
      image_size: see `colored_pixels`.
      original_size: likewise.
      dilation: see `unfold_neighbors`.
      ignored_bottom_rows: see `colored_pixels`.

    Returns:
      (B, 8, H/4, W/4) float32.
    """
    valid = colored_pixels(*image.shape[1:3], image_size, original_size, ignored_bottom_rows)
    return color_similarity(rgb_to_lab(shrink_colors(image)), valid, dilation=dilation)
