"""Image batches on the device."""

from __future__ import annotations

import jax.numpy as jnp

from solojax.structures import Array


def valid_pixels(height: int, width: int, image_size: Array) -> Array:
    """(B, height, width) bool: True inside each image's valid (height, width)."""
    rows = jnp.arange(height)[None, :, None] < image_size[:, 0, None, None]
    columns = jnp.arange(width)[None, None, :] < image_size[:, 1, None, None]
    return rows & columns


def normalize_pixels(image: Array, mean, std, dtype=jnp.float32) -> Array:
    """(image - mean) / std in float32 at least, then rounded to the type.

    Args:
      image: (..., 3) uint8 RGB, or float in [0, 255].
      mean: three channel means in [0, 255].
      std: three channel deviations.
      dtype: of the result.
    """
    exact = jnp.promote_types(dtype, jnp.float32)
    normalized = (image.astype(exact) - jnp.asarray(mean, exact)) / jnp.asarray(std, exact)
    return normalized.astype(dtype)


def normalize_image(image: Array, image_size: Array, mean, std, dtype=jnp.float32) -> Array:
    """(image - mean) / std inside the image, 0 outside: padding is added after normalising.

    Args:
      image: (B, H, W, 3) uint8 RGB, or float in [0, 255].
      image_size: (B, 2) valid (height, width).
      mean: three channel means in [0, 255].
      std: three channel deviations.
      dtype: of the result.
    """
    inside = valid_pixels(image.shape[1], image.shape[2], image_size)
    normalized = normalize_pixels(image, mean, std, dtype)
    return jnp.where(inside[..., None], normalized, jnp.zeros((), dtype))
