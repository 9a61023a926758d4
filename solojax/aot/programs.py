"""The real train and predict steps, for arguments of which only shape and place are known.

Nothing is computed: the arguments are shapes with shardings over the devices of a mesh, which may
be those of a slice that is not there.
"""

from __future__ import annotations

import math

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from solojax.build import build_optimizer, build_task, canvas_policy
from solojax.build_network import coarse_factors
from solojax.config import total_steps
from solojax.config.validation import validate
from solojax.data.canvas import multiple_of_32
from solojax.data.loader import stack_examples
from solojax.data.transforms import empty_example
from solojax.inference import jit_predict
from solojax.structures import Batch, PyTree
from solojax.tasks import Task
from solojax.train.sharding import batch_sharding, replicated, state_sharding
from solojax.train.state import TrainState, create_state
from solojax.train.step import jit_train_step

COCO_CLASSES = 80
_COCO_TRAINING_IMAGES = 117_266  # train2017 images that have an object


def num_classes_of(config: ConfigDict) -> int:
    """K of a config, COCO's where the data would say."""
    return COCO_CLASSES if config.model.num_classes is None else config.model.num_classes


def largest_canvas(config: ConfigDict, step: str) -> tuple[int, int]:
    """The (H, W) of most pixels to which a recipe pads images.

    Args:
      config: valid.
      step: "train" or "predict".
    """
    data, evaluation = config.data, config.evaluation
    training = step == "train"
    policy, short_sides, long = (
        (data.canvas, data.short_sides, data.long_side)
        if training
        else (evaluation.canvas, (evaluation.short_side,), evaluation.long_side)
    )
    if policy == "buckets":
        return max(canvas_policy(policy, data.buckets, short_sides, long).canvases, key=math.prod)
    short = min(max(short_sides), long)
    # A batch of both orientations is padded to what holds both.
    mixed = training and not data.group_by_orientation and config.train.batch_size > 1
    return multiple_of_32([(long if mixed else short, long)])


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
    config = config.copy_and_resolve_references()
    config.train.batch_size = per_chip_batch * mesh.size
    validate(config)  # whose parts have to divide the batch
    task = build_task(config, num_classes_of(config))
    optimizer, schedule = build_optimizer(config, _length(config))
    batch = abstract_train_batch(config, mesh, config.train.batch_size, canvas)
    state = abstract_state(config, task, optimizer, batch)
    shardings = state_sharding(state, mesh, config.train.shard_optimizer)
    step = jit_train_step(
        task,
        optimizer,
        shardings,
        mesh,
        schedule=schedule,
        seed=config.seed,
        accumulate_steps=config.train.accumulate_steps,
        ema_decay=config.train.ema_decay,
        shard_optimizer=config.train.shard_optimizer,
    )
    return step.lower(_placed(state, shardings), batch)


def lower_predict_step(
    config: ConfigDict, mesh: Mesh, per_chip_batch: int, canvas: tuple[int, int]
) -> jax.stages.Lowered:
    """The prediction step of a config, suppression included; arguments as `lower_train_step`."""
    task = build_task(config, num_classes_of(config))
    batch = _abstract_batch(mesh, per_chip_batch * mesh.size, empty_example(canvas, 0))
    variables = jax.eval_shape(task.init, jax.random.key(config.seed), batch)
    everywhere = jax.tree.map(lambda _: replicated(mesh), variables)
    return jit_predict(task, mesh).lower(_placed(variables, everywhere), batch)


def abstract_train_batch(
    config: ConfigDict, mesh: Mesh, rows: int, canvas: tuple[int, int]
) -> Batch:
    """Shapes of a global training batch, its rows spread over the mesh."""
    example = empty_example(canvas, config.data.max_instances, coarse_factors(config))
    return _abstract_batch(mesh, rows, example)


def abstract_state(
    config: ConfigDict, task: Task, optimizer: optax.GradientTransformation, batch: Batch
) -> TrainState:
    """Shapes of the training state."""
    ema = config.train.ema_decay is not None
    return jax.eval_shape(
        lambda key: create_state(task, optimizer, key, batch, ema=ema),
        jax.random.key(config.seed),
    )


def _abstract_batch(mesh: Mesh, rows: int, example: dict) -> Batch:
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=sharding),
        stack_examples([example]),
    )


def _placed(shapes: PyTree, shardings: PyTree) -> PyTree:
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def _length(config: ConfigDict) -> int:
    """Steps of the run, on COCO where the config counts in epochs; they only set constants."""
    return total_steps(config, math.ceil(_COCO_TRAINING_IMAGES / config.train.batch_size))
