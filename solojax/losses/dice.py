"""Dice loss between soft masks."""

from __future__ import annotations

import jax.numpy as jnp

from solojax.structures import Array


def dice_loss(probabilities: Array, targets: Array, *, epsilon: float = 1e-3) -> Array:
    """1 - 2 sum(p q) / (sum(p^2) + sum(q^2)) per mask (thesis 3.2.3, equations 3.3 and 3.4).

    Args:
      probabilities: (..., h, w) in [0, 1].
      targets: (..., h, w) in [0, 1], any dtype.
      epsilon: added to each of the two squared sums, as the published code does; 0 is the thesis.

    Returns:
      (...) in [0, 1]; 1 for an empty target, also where the mask is all 0 and epsilon too.
    """
    targets = targets.astype(probabilities.dtype)
    overlap = jnp.sum(probabilities * targets, axis=(-2, -1))
    squares = jnp.sum(probabilities * probabilities, axis=(-2, -1)) + epsilon
    target_squares = jnp.sum(targets * targets, axis=(-2, -1)) + epsilon
    total = squares + target_squares
    # Without epsilon two empty masks would divide 0 by 0, and spoil the gradient even where a
    # padded pair is masked out afterwards.
    return 1.0 - 2.0 * overlap / jnp.where(total > 0, total, 1.0)
