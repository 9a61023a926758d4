"""Masks seen along either axis of the image (thesis 6.2.3)."""

from __future__ import annotations

import jax.numpy as jnp

from solojax.structures import Array


def project_max(masks: Array) -> tuple[Array, Array]:
    """Maxima of masks (..., h, w) over the rows, (..., w), and over the columns, (..., h)."""
    return jnp.max(masks, axis=-2), jnp.max(masks, axis=-1)


def project_mean(masks: Array, dtype=jnp.float32) -> tuple[Array, Array]:
    """Means of masks (..., h, w) over the rows, (..., w), and over the columns, (..., h).

    Args:
      masks: of any type.
      dtype: of the means, for masks that are not floating point.
    """
    if not jnp.issubdtype(masks.dtype, jnp.floating):
        masks = masks.astype(dtype)
    return jnp.mean(masks, axis=-2), jnp.mean(masks, axis=-1)
