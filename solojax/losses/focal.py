"""Focal loss of the category branch."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from solojax.structures import Array


def category_focal_loss(
    logits: Array, category: Array, *, alpha: float = 0.25, gamma: float = 2.0
) -> Array:
    """Sigmoid focal loss of every cell and class (thesis 3.2.3; Lin et al. 2017).

    Computed in float32 whatever the logits are, as in the published systems.

    Args:
      logits: (B, G, K).
      category: (B, G) int in [0, K]; K is background, all of whose targets are 0.
      alpha: weight of the positive targets; negatives weigh 1 - alpha.
      gamma: exponent that plays down what is already right.

    Returns:
      (B, G, K) float32, unreduced.
    """
    positive = category[..., None] == jnp.arange(logits.shape[-1])
    logits = logits.astype(jnp.float32)
    wrong = jnp.where(positive, -logits, logits)  # the logit of the wrong answer
    # A power of an exact 0 would have no derivative for exponents below 1.
    error = jnp.maximum(jax.nn.sigmoid(wrong), jnp.finfo(jnp.float32).tiny)
    weight = jnp.where(positive, alpha, 1.0 - alpha)
    return weight * error**gamma * jax.nn.softplus(wrong)
