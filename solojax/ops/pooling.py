"""Average pooling to a grid of any size."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from solojax.structures import Array


def adaptive_average_pool(features: Array, grid: tuple[int, int]) -> Array:
    """Means over bins that cover the map, bin i from floor(i h / S) to ceil((i + 1) h / S).

    The bins overlap where S does not divide h, and pixels repeat where S > h, as PyTorch's adaptive
    pooling has it. Both axes are matrix products with a table of weights, at full precision.

    Args:
      features: (B, h, w, C).
      grid: (S_h, S_w).

    Returns:
      (B, S_h, S_w, C) of the same type; the map itself where it has this size.
    """
    height, width = features.shape[1:3]
    if (height, width) == tuple(grid):
        return features
    exact = jnp.promote_types(features.dtype, jnp.float32)
    rows = jnp.asarray(_bin_weights(height, grid[0]), exact)
    columns = jnp.asarray(_bin_weights(width, grid[1]), exact)
    pooled = jnp.einsum(
        "bhwc,sh,tw->bstc", features.astype(exact), rows, columns,
        precision=jax.lax.Precision.HIGHEST,
    )  # fmt: skip
    return pooled.astype(features.dtype)


def _bin_weights(length: int, bins: int) -> np.ndarray:
    """(S, h) weights of the pixels in every bin's mean."""
    starts = np.arange(bins) * length // bins
    stops = -(-np.arange(1, bins + 1) * length // bins)
    pixels = np.arange(length)
    inside = (pixels >= starts[:, None]) & (pixels < stops[:, None])
    return inside / inside.sum(axis=1, keepdims=True)
