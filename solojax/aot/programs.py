"""The real train and predict steps, for arguments of which only shape and place are known.

Nothing is computed: the arguments are shapes with shardings over the devices of a mesh, which may
be those of a slice that is not there.
"""

from __future__ import annotations

import jax
from jax.sharding import Mesh, Sharding
from ml_collections import ConfigDict

from solojax.costs.workloads import training_parts, workload_of
from solojax.inference.segmenter import jit_predict
from solojax.structures import PyTree
from solojax.train.sharding import batch_sharding, replicated, state_sharding
from solojax.train.step import jit_train_step


def lower_train_step(
    config: ConfigDict, mesh: Mesh, per_chip_batch: int, canvas: tuple[int, int]
) -> jax.stages.Lowered:
    """The training step of a config, with its optimizer and its donated state.

    Args:
      config: valid; its batch size gives way to `per_chip_batch` images on every device.
      mesh: the devices.
      per_chip_batch: rows of one device.
      canvas: (H, W), multiples of 32.
    """
    parts = training_parts(config, per_chip_batch * mesh.size, canvas, mesh)
    config = parts.config
    state = parts.abstract_state()
    is_spread = getattr(parts.task, "is_spread", None)
    shardings = state_sharding(state, mesh, config.train.shard_optimizer, is_spread)
    step = jit_train_step(
        parts.task,
        parts.optimizer,
        shardings,
        mesh,
        schedule=parts.schedule,
        seed=config.seed,
        accumulate_steps=config.train.accumulate_steps,
        ema_decay=config.train.ema_decay,
        shard_optimizer=config.train.shard_optimizer,
    )
    return step.lower(_placed(state, shardings), parts.batch(_rows_over(mesh)))


def lower_predict_step(
    config: ConfigDict, mesh: Mesh, per_chip_batch: int, canvas: tuple[int, int]
) -> jax.stages.Lowered:
    """The prediction step of a config, suppression included; arguments as `lower_train_step`."""
    work = workload_of(config)
    task = work.build(config, mesh)
    rows, make = per_chip_batch * mesh.size, _rows_over(mesh)
    example = work.example(config, canvas, "predict")
    batch = jax.tree.map(lambda x: make((rows, *x.shape[1:]), x.dtype), example)
    variables = jax.eval_shape(task.init, jax.random.key(config.seed), batch)
    everywhere = jax.tree.map(lambda _: replicated(mesh), variables)
    return jit_predict(task, mesh).lower(_placed(variables, everywhere), batch)


def _rows_over(mesh: Mesh):
    """Makes arrays that are not there, their rows spread over the mesh."""
    sharding = batch_sharding(mesh)
    return lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _placed(shapes: PyTree, shardings: PyTree) -> PyTree:
    def place(x: jax.ShapeDtypeStruct, sharding: Sharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(place, shapes, shardings)
