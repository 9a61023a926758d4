"""What training carries from step to step, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import struct, traverse_util

from solojax.structures import Array, Batch, PyTree
from solojax.tasks import Task


@struct.dataclass
class TrainState:
    """State and step are all there is: the data plan and all randomness follow from them."""

    step: Array  # () int32, finished steps
    params: PyTree  # float32, frozen ones included
    opt_state: PyTree  # of the trainable parameters alone
    batch_stats: PyTree  # running statistics of BatchNorm
    ema_params: PyTree  # moving average of params, or None
    extra: PyTree  # what only the task understands


def split_params(
    params: PyTree, is_trainable: Callable[[tuple[str, ...]], bool]
) -> tuple[PyTree, PyTree]:
    """Splits nested parameters into (trainable, frozen), empty branches left out."""
    flat = traverse_util.flatten_dict(params)
    trainable = {path: value for path, value in flat.items() if is_trainable(path)}
    frozen = {path: value for path, value in flat.items() if path not in trainable}
    return traverse_util.unflatten_dict(trainable), traverse_util.unflatten_dict(frozen)


def merge_params(trainable: PyTree, frozen: PyTree) -> PyTree:
    """Undoes `split_params`."""
    flat = traverse_util.flatten_dict(trainable) | traverse_util.flatten_dict(frozen)
    return traverse_util.unflatten_dict(flat)


def create_state(
    task: Task,
    optimizer: optax.GradientTransformation,
    rng: Array,
    batch: Batch,
    *,
    ema: bool = False,
) -> TrainState:
    """A fresh state for batches of the given shape.

    Args:
      task: initialises the variables.
      optimizer: initialises its state for the trainable parameters.
      rng: key of the initialisation.
      batch: any batch of the task's; only shapes are read.
      ema: whether a moving average of the parameters is kept.
    """
    variables = task.init(rng, batch)
    params = variables["params"]
    trainable, _ = split_params(params, task.is_trainable)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(trainable),
        batch_stats=variables.get("batch_stats", {}),
        ema_params=jax.tree.map(jnp.copy, params) if ema else None,
        extra=variables.get("extra", {}),
    )


def inference_variables(state: TrainState) -> PyTree:
    """Variables for `Task.predict`: the moving average where it is kept."""
    params = state.params if state.ema_params is None else state.ema_params
    return {"params": params, "batch_stats": state.batch_stats}
