"""Non-maximum suppression: on the points of the category grid, and Matrix NMS on masks.

Hard, soft and fast NMS are what Matrix NMS is compared with (thesis 4.3.1, Table 4.6). All four
read the same IoU matrix, act within a class and return new scores, 0 for what they suppress.
"""

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
    pairs = _better_of_class(labels, valid)
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


def hard_nms(
    iou: Array, labels: Array, scores: Array, valid: Array, *, threshold: float = 0.5
) -> Array:
    """Greedy NMS: the best object stays and removes what overlaps it, then the next that is left.

    Suppresses where IoU > threshold, as the common detection libraries do; the pseudo-code of
    Bodla et al. 2017 (figure 2) has IoU >= threshold.

    Every round decides all objects from the last round's survivors. Object j is right after at most
    j + 1 rounds, because it depends on objects before it alone; a round that changes nothing ends
    it. Rounds are as many as the longest chain of objects that decide one another.

    Args:
      iou: (..., M, M) pairwise IoU, objects in descending order of score.
      labels: (..., M) int.
      scores: (..., M).
      valid: (..., M) bool; invalid objects neither suppress others nor keep a score.
      threshold: IoU above which the better object removes the other.

    Returns:
      (..., M) scores, 0 where suppressed or invalid.
    """
    removes = _better_of_class(labels, valid) & (iou > threshold)

    def decide(carry):
        kept, _ = carry
        decided = valid & ~jnp.any(removes & kept[..., :, None], axis=-2)
        return decided, jnp.any(decided != kept)

    kept, _ = jax.lax.while_loop(lambda carry: carry[1], decide, (valid, jnp.array(True)))
    return jnp.where(kept, scores, 0.0)


def soft_nms(
    iou: Array,
    labels: Array,
    scores: Array,
    valid: Array,
    *,
    kernel: str = "gaussian",
    sigma: float = 0.5,
    threshold: float = 0.3,
) -> Array:
    """Soft-NMS (Bodla et al. 2017): the best object left decays the others, and leaves; repeated.

    The objects are ranked anew after every step, so there are as many steps as valid objects. The
    decay is exp(-iou^2 / sigma), or for the linear kernel 1 - iou where IoU > threshold (equation 2
    of the paper has >=, its code >). Sigma and threshold default to the paper's.

    Args:
      iou: (..., M, M) pairwise IoU.
      labels: (..., M) int.
      scores: (..., M), not negative; of equal scores the first goes first.
      valid: (..., M) bool; invalid objects neither decay others nor keep a score.
      kernel: "gaussian" or "linear".
      sigma: of the Gaussian kernel. Mind that it divides here, and multiplies in `matrix_nms`.
      threshold: of the linear kernel.

    Returns:
      (..., M) decayed scores, 0 where invalid.

    Raises:
      InputError: on another kernel name.
    """
    if kernel == "gaussian":
        decay = jnp.exp(-(iou**2) / sigma)
    elif kernel == "linear":
        decay = jnp.where(iou > threshold, 1.0 - iou, 1.0)
    else:
        raise InputError(f"soft NMS kernel {kernel!r} is unknown; use 'gaussian' or 'linear'")
    decay = jnp.where(labels[..., :, None] == labels[..., None, :], decay, 1.0)

    def step(carry):
        scores, left = carry
        best = jnp.argmax(jnp.where(left, scores, -1.0), axis=-1, keepdims=True)
        left = left & (jnp.arange(scores.shape[-1]) != best)
        factors = jnp.take_along_axis(decay, best[..., None], axis=-2)[..., 0, :]
        return jnp.where(left, scores * factors, scores), left

    start = (jnp.where(valid, scores, 0.0), valid)
    return jax.lax.while_loop(lambda carry: jnp.any(carry[1]), step, start)[0]


def fast_nms(
    iou: Array, labels: Array, scores: Array, valid: Array, *, threshold: float = 0.5
) -> Array:
    """Fast NMS (YOLACT, Bolya et al. 2019): removed objects may remove others too.

    Keeps an object whose largest IoU with a better one of its class is not above the threshold. It
    is the first round of `hard_nms`, and keeps a part of what that keeps.

    Args:
      iou: (..., M, M) pairwise IoU, objects in descending order of score.
      labels: (..., M) int.
      scores: (..., M).
      valid: (..., M) bool; invalid objects neither suppress others nor keep a score.
      threshold: IoU above which the better object removes the other.

    Returns:
      (..., M) scores, 0 where suppressed or invalid.
    """
    removes = _better_of_class(labels, valid) & (iou > threshold)
    return jnp.where(valid & ~jnp.any(removes, axis=-2), scores, 0.0)


def _better_of_class(labels: Array, valid: Array) -> Array:
    """(..., M, M) bool: both are valid and of one class, and i comes before j."""
    before = jnp.triu(jnp.ones((labels.shape[-1],) * 2, bool), k=1)
    same = labels[..., :, None] == labels[..., None, :]
    return before & same & valid[..., :, None] & valid[..., None, :]
