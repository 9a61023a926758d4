"""Non-maximum suppression: on the points of the category grid, and Matrix NMS on masks."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from solojax.errors import InputError
from solojax.structures import Array


def points_nms(scores: Array) -> Array:
    """Zeroes a cell that is below its upper, left or upper-left neighbour of the same class.

    The published code takes a 2x2 maximum with padding 1 and drops the last row and column, so
    only those three neighbours are compared; ties survive.

    Args:
      scores: (B, S, S, K) in [0, 1].

    Returns:
      The same shape, suppressed scores 0.
    """
    peak = jax.lax.reduce_window(
        scores,
        -jnp.inf,
        jax.lax.max,
        window_dimensions=(1, 2, 2, 1),
        window_strides=(1, 1, 1, 1),
        padding=((0, 0), (1, 0), (1, 0), (0, 0)),
    )
    return jnp.where(peak == scores, scores, 0.0)


def gaussian_decay(iou: Array, compensation: Array, sigma: float) -> Array:
    """exp(-sigma iou^2) / exp(-sigma compensation^2); the published form, sigma 2 by default.

    The thesis writes exp(-iou^2 / sigma): the same with 1 / sigma.
    """
    return jnp.exp(-sigma * (iou**2 - compensation**2))


def linear_decay(iou: Array, compensation: Array) -> Array:
    """(1 - iou) / (1 - compensation); an object that is itself wholly suppressed decays nobody.

    The published code divides 0 by 0 there; such objects end below every threshold either way,
    because the mask that suppressed them suppresses their copies too.
    """
    room = 1.0 - compensation
    return jnp.where(room > 0, (1.0 - iou) / jnp.where(room > 0, room, 1.0), jnp.inf)


def matrix_nms(
    iou: Array,
    labels: Array,
    scores: Array,
    valid: Array,
    *,
    kernel: str = "gaussian",
    sigma: float = 2.0,
) -> Array:
    """Matrix NMS (thesis 4.2.2, equations 4.3 and 4.4): every score decays once, all in parallel.

    Object j decays by min over the same-class objects i with higher scores of f(iou_ij) /
    f(iou_i), where iou_i is the largest IoU of i with the objects before it.

    Args:
      iou: (..., M, M) pairwise IoU, objects in descending order of score.
      labels: (..., M) int.
      scores: (..., M).
      valid: (..., M) bool; invalid objects neither decay others nor keep a score.
      kernel: "gaussian" or "linear".
      sigma: of the Gaussian kernel.

    Returns:
      (..., M) decayed scores, 0 where invalid.

    Raises:
      InputError: on another kernel name.
    """
    count = iou.shape[-1]
    before = jnp.triu(jnp.ones((count, count), bool), k=1)
    same = labels[..., :, None] == labels[..., None, :]
    pairs = before & same & valid[..., :, None] & valid[..., None, :]
    iou = jnp.where(pairs, iou, 0.0)
    compensation = jnp.max(iou, axis=-2)[..., :, None]
    if kernel == "gaussian":
        decay = gaussian_decay(iou, compensation, sigma)
    elif kernel == "linear":
        decay = linear_decay(iou, compensation)
    else:
        raise InputError(f"Matrix NMS kernel {kernel!r} is unknown; use 'gaussian' or 'linear'")
    decay = jnp.min(jnp.where(pairs, decay, 1.0), axis=-2)
    return jnp.where(valid, scores * decay, 0.0)
