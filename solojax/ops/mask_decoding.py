"""From kernels and features to masks: one decoding for training and for inference."""

from __future__ import annotations

import jax.numpy as jnp

from solojax.structures import Array


def gather_cells(values: Array, cells: Array) -> Array:
    """Rows of the cell axis: (B, G, E) at indices (B, P) gives (B, P, E)."""
    return jnp.take_along_axis(values, cells[..., None], axis=1)


def decode_dynamic(kernels: Array, features: Array) -> Array:
    """Dynamic 1x1 convolution: every kernel over the whole map (thesis 4.2.1, equation 4.1).

    Args:
      kernels: (B, P, E).
      features: (B, h, w, E).

    Returns:
      (B, P, h, w) mask logits, float32 (float64 for float64 inputs).
    """
    accumulate = jnp.promote_types(features.dtype, jnp.float32)
    return jnp.einsum("bpe,bhwe->bphw", kernels, features, preferred_element_type=accumulate)
