"""One training step: loss, gradient, update."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from solojax.structures import Array, Batch, PyTree
from solojax.tasks import Task
from solojax.train.sharding import replicated, spread
from solojax.train.state import TrainState, merge_params, split_params


def make_train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    *,
    seed: int = 0,
    accumulate_steps: int = 1,
    ema_decay: float | None = None,
    schedule: optax.Schedule | None = None,
    optimizer_mesh: Mesh | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """Builds the pure function (state, batch) -> (state, metrics).

    Args:
      task: what is learned.
      optimizer: moves the trainable parameters; the others get no gradient at all.
      seed: of the run; the step's key is folded from it and the step.
      accumulate_steps: micro-batches that the batch is cut into.
      ema_decay: of `state.ema_params`, None where none are kept.
      schedule: reported as the metric "learning_rate".
      optimizer_mesh: the devices over which the optimizer's state is spread (`state_sharding`):
        each then gets its part of the summed gradient alone and moves its part of the parameters.
        None where every device keeps the whole state.

    Returns:
      The step, to be jitted by the caller; metrics are float32 scalars.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        trainable, frozen = split_params(state.params, task.is_trainable)
        prepare = getattr(task, "prepare", None)
        batch = batch if prepare is None else prepare(batch)
        # Denominators come from the whole batch, before it is cut.
        weights = task.row_weights(batch)

        def gradient(state, batch, weights, rng):
            def loss_of(trainable):
                params = merge_params(trainable, frozen)
                return task.loss_fn(params, state, batch, rng, weights)

            (_, aux), grads = jax.value_and_grad(loss_of, has_aux=True)(trainable)
            return aux, grads

        if accumulate_steps == 1:
            (updates, metrics), grads = gradient(state, batch, weights, rng)
            state = state.replace(**updates)
        else:
            state, metrics, grads = _accumulate(
                gradient, state, batch, weights, rng, accumulate_steps
            )

        if optimizer_mesh is not None:
            grads = jax.tree.map(
                lambda x: jax.lax.with_sharding_constraint(x, spread(x.shape, optimizer_mesh)),
                grads,
            )
        moves, opt_state = optimizer.update(grads, state.opt_state, trainable)
        params = merge_params(optax.apply_updates(trainable, moves), frozen)
        metrics = dict(metrics, grad_norm=optax.tree.norm(grads))
        if schedule is not None:
            metrics["learning_rate"] = schedule(state.step)
        return (
            state.replace(
                step=state.step + 1,
                params=params,
                opt_state=opt_state,
                ema_params=_moving_average(state.ema_params, params, ema_decay),
            ),
            metrics,
        )

    return train_step


def jit_train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    shardings: TrainState,
    mesh: Mesh,
    *,
    shard_optimizer: bool = False,
    **options,
) -> jax.stages.Wrapped:
    """The training step as every run compiles it; the state that goes in is given away.

    Args:
      task: what is learned.
      optimizer: see `make_train_step`.
      shardings: where every array of the state lies, from `state_sharding`.
      mesh: the devices.
      shard_optimizer: whether the optimizer's state is spread over them.
      **options: of `make_train_step`.
    """
    step = make_train_step(
        task, optimizer, optimizer_mesh=mesh if shard_optimizer else None, **options
    )
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))


def _accumulate(gradient, state, batch, weights, rng, parts: int):
    """Sums gradients and metrics over micro-batches; updates pass from one to the next."""

    def cut(x):
        # Interleaved, so that every device keeps its own rows and nothing moves between devices.
        return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)

    micro_batches = jax.tree.map(cut, (batch, weights))

    def body(carry, inputs):
        state, sums = carry
        index, (micro_batch, micro_weights) = inputs
        key = jax.random.fold_in(rng, index)
        (updates, metrics), grads = gradient(state, micro_batch, micro_weights, key)
        return (state.replace(**updates), jax.tree.map(jnp.add, sums, (metrics, grads))), None

    first = jax.tree.map(lambda x: x[0], micro_batches)
    (_, metrics), grads = jax.eval_shape(gradient, state, *first, rng)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (metrics, grads))
    (state, (metrics, grads)), _ = jax.lax.scan(
        body, (state, zeros), (jnp.arange(parts), micro_batches)
    )
    return state, metrics, grads


def _moving_average(average: PyTree, params: PyTree, decay: float | None) -> PyTree:
    if average is None or decay is None:
        return average
    return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)
