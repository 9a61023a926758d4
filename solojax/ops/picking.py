"""Rows by their indices, batch row by batch row."""

from __future__ import annotations

import jax.numpy as jnp

from solojax.structures import Array


def pick_rows(values: Array, index: Array) -> Array:
    """Entries of axis 1, whatever axes follow: (B, G, ...) at (B, M) int gives (B, M, ...)."""
    index = index.reshape(index.shape + (1,) * (values.ndim - 2))
    return jnp.take_along_axis(values, index, axis=1)
