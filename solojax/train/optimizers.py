"""SGD in PyTorch's semantics, AdamW, and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
import optax

from solojax.errors import InputError

SCHEDULES = ("step", "cosine", "constant")


def make_schedule(
    kind: str,
    *,
    peak: float,
    total_steps: int,
    warmup_steps: int = 0,
    warmup_factor: float = 0.01,
    milestones: Sequence[int] = (),
    decay_factor: float = 0.1,
) -> optax.Schedule:
    """Learning rate of every step.

    The warm-up multiplies the schedule by a line from `warmup_factor` at step 0 to 1 at step
    `warmup_steps`, as in mmdetection and detectron2.

    Args:
      kind: "step" (times `decay_factor` from each milestone on), "cosine" (to 0 at `total_steps`)
        or "constant".
      peak: learning rate after the warm-up.
      total_steps: steps of the run.
      warmup_steps: length of the warm-up, 0 for none.
      warmup_factor: where the warm-up starts.
      milestones: steps, ascending; "step" alone reads them.
      decay_factor: "step" alone reads it.

    Raises:
      InputError: on another kind.
    """
    if kind not in SCHEDULES:
        raise InputError(f"optimizer.schedule {kind!r} is unknown; use one of {SCHEDULES}")
    boundaries = jnp.asarray(sorted(milestones), jnp.int32)

    def learning_rate(step):
        rate = jnp.asarray(peak, jnp.result_type(float))
        if kind == "step":
            rate = rate * decay_factor ** jnp.sum(step >= boundaries)
        elif kind == "cosine":
            rate = rate * 0.5 * (1 + jnp.cos(math.pi * jnp.minimum(step / total_steps, 1.0)))
        if warmup_steps:
            progress = jnp.minimum(step / warmup_steps, 1.0)
            rate = rate * (warmup_factor + (1 - warmup_factor) * progress)
        return rate

    return learning_rate


def sgd(
    schedule: optax.Schedule,
    *,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    clip_norm: float | None = 35.0,
) -> optax.GradientTransformation:
    """torch.optim.SGD after clip_grad_norm_: clip, add the decay, then momentum, then the rate.

    Unlike optax.sgd with decoupled decay, the decay goes through the momentum; the buffer holds
    gradients and not steps, so that a drop of the rate acts at once.

    Args:
      schedule: step to learning rate.
      momentum: decay of the buffer.
      weight_decay: of every trainable parameter, norms and biases too.
      clip_norm: global norm of the trainable parameters' gradient; None does not clip.
    """
    return optax.chain(
        _clip(clip_norm),
        optax.add_decayed_weights(weight_decay),
        optax.trace(decay=momentum),
        optax.scale_by_learning_rate(schedule),
    )


def adamw(
    schedule: optax.Schedule, *, weight_decay: float = 0.05, clip_norm: float | None = None
) -> optax.GradientTransformation:
    """AdamW with optax's defaults: learns faster than SGD where a run is only minutes long.

    Args:
      schedule: step to learning rate.
      weight_decay: decoupled, of every trainable parameter.
      clip_norm: see `sgd`.
    """
    return optax.chain(_clip(clip_norm), optax.adamw(schedule, weight_decay=weight_decay))


def _clip(norm: float | None) -> optax.GradientTransformation:
    return optax.identity() if norm is None else optax.clip_by_global_norm(norm)
