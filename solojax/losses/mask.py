"""Losses of single pixels, averaged over a mask: what the Dice loss is compared with.

Both take logits, because the logarithm of a rounded probability is inaccurate, and infinite from a
logit of about 17 on. They compute in float32 at least, and in float64 for float64 logits.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from solojax.structures import Array


def focal_mask_loss(
    logits: Array, targets: Array, *, alpha: float = 0.25, gamma: float = 2.0
) -> Array:
    """Focal loss, mean over the pixels of each mask (thesis 3.3.3, Table 3.4; Lin et al. 2017).

    The thesis names the loss's weight against the category loss, 20, which is the task's affair,
    and neither alpha nor gamma nor the average: the defaults are the category branch's, and the
    mean is over all pixels of the map, padding included.

    Args:
      logits: (..., h, w).
      targets: (..., h, w) in [0, 1], any dtype; soft targets mix both terms.
      alpha: weight of the foreground; the background weighs 1 - alpha.
      gamma: exponent that plays down what is already right.

    Returns:
      (...) one value per mask, not negative.
    """
    logits, targets = _in_full_precision(logits, targets)
    # A power of an exact 0 would have no derivative for exponents below 1.
    tiny = jnp.finfo(logits.dtype).tiny
    missed = jnp.maximum(jax.nn.sigmoid(-logits), tiny) ** gamma * jax.nn.softplus(-logits)
    invented = jnp.maximum(jax.nn.sigmoid(logits), tiny) ** gamma * jax.nn.softplus(logits)
    return _mean(alpha * targets * missed + (1.0 - alpha) * (1.0 - targets) * invented)


def bce_mask_loss(logits: Array, targets: Array, *, positive_weight: float = 2.0) -> Array:
    """Binary cross entropy, mean over the pixels of each mask (thesis 3.3.3, Table 3.4).

    The thesis gives foreground pixels the weight 2, and the loss the weight 10 against the category
    loss, which is the task's affair. The mean divides by the number of all pixels of the map,
    padding included, not by the sum of their weights; the thesis does not say.

    Args:
      logits: (..., h, w).
      targets: (..., h, w) in [0, 1], any dtype; soft targets mix both terms.
      positive_weight: weight of the foreground; the background weighs 1.

    Returns:
      (...) one value per mask, not negative.
    """
    logits, targets = _in_full_precision(logits, targets)
    missed, invented = jax.nn.softplus(-logits), jax.nn.softplus(logits)
    return _mean(positive_weight * targets * missed + (1.0 - targets) * invented)


def _in_full_precision(logits: Array, targets: Array) -> tuple[Array, Array]:
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    return logits.astype(dtype), targets.astype(dtype)


def _mean(values: Array) -> Array:
    return jnp.mean(values, axis=(-2, -1))
