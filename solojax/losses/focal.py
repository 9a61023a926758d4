"""Focal loss of the category branch."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from solojax.structures import Array


def category_focal_loss(
    logits: Array, category: Array, *, alpha: float = 0.25, gamma: float = 2.0
) -> Array:
    """Sigmoid focal loss of every cell and class (thesis 3.2.3; Lin et al. 2017).

    Computed in float32 at least, as in the published systems; in float64 for float64 logits.

    Args:
      logits: (B, G, K).
      category: (B, G) int in [0, K]; K is background, all of whose targets are 0.
      alpha: weight of the positive targets; negatives weigh 1 - alpha.
      gamma: exponent that plays down what is already right.

    Returns:
      (B, G, K) float32 (float64 for float64 logits), unreduced.
    """
    positive = category[..., None] == jnp.arange(logits.shape[-1])
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    logits = logits.astype(dtype)
    wrong = jnp.where(positive, -logits, logits)  # the logit of the wrong answer
    # A power of an exact 0 would have no derivative for exponents below 1.
    error = jnp.maximum(jax.nn.sigmoid(wrong), jnp.finfo(dtype).tiny)
    weight = jnp.where(positive, alpha, 1.0 - alpha).astype(dtype)
    return weight * error**gamma * jax.nn.softplus(wrong)
