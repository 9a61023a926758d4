"""Vectors on the unit sphere."""

from __future__ import annotations

import jax.numpy as jnp

from solojax.structures import Array


def l2_normalize(x: Array, *, epsilon: float = 1e-12) -> Array:
    """Divides vectors by their length, or by `epsilon` where they are shorter.

    Args:
      x: (..., C); computed in float32 at least.
      epsilon: the least length.

    Returns:
      (..., C) float32 (float64 for float64 inputs); zero vectors stay zero and have gradients.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(squares, epsilon**2))
