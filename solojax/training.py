"""A training run: a config and a work directory in, checkpoints and metrics out."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from solojax.build import (
    build_optimizer,
    build_task,
    build_train_batches,
    build_train_plan,
    check_same_classes,
    example_shape,
    load_train_set,
    load_val_set,
)
from solojax.config import (
    evaluation_interval,
    from_json,
    scaled_learning_rate,
    to_json,
    total_steps,
)
from solojax.config.schema import flatten
from solojax.data.coco import CocoDataset
from solojax.errors import InputError
from solojax.evaluation import Evaluation, write_json
from solojax.foreign_models import start_from_backbone
from solojax.tasks import Task
from solojax.train.checkpoints import Checkpointer
from solojax.train.loop import Intervals, train
from solojax.train.metric_writer import MetricWriter, run_header
from solojax.train.sharding import check_batch_size, make_mesh, replicated, state_sharding
from solojax.train.start_checks import check_data
from solojax.train.state import TrainState, create_state

_logger = logging.getLogger(__name__)

# Metrics that count what was left out, and what to do about it.
_ADVICE = {
    "data/broken_images": "the images that cannot be read are named above: mend or remove them",
    "data/dropped_instances": "objects beyond data.max_instances do not train: raise it",
    "targets/overflow": "positive pairs beyond model.max_positives do not train: raise it",
}


def run_training(config: ConfigDict, workdir: Path) -> TrainState:
    """Trains as the config says; goes on where an earlier run in the work directory stopped.

    Args:
      config: valid.
      workdir: takes `config.json`, `metrics.jsonl`, TensorBoard events and `checkpoints/`.

    Returns:
      The final state.

    Raises:
      InputError: bad data, config, checkpoint or work directory.
      Preempted: SIGTERM asked the run to end; its state is saved.
    """
    mesh = make_mesh()
    check_batch_size(config.train.batch_size, mesh, "train.batch_size")
    train_set = load_train_set(config)
    check_data(training=train_set)
    task = build_task(config, _num_classes(config, train_set))
    plan = build_train_plan(config, train_set)
    steps = total_steps(config, plan.steps_per_epoch)
    every = evaluation_interval(config, plan.steps_per_epoch)
    evaluation = _evaluation(config, task, train_set) if every else None
    optimizer, schedule = build_optimizer(config, steps)
    _say(config, train_set, steps, mesh.size)
    _warn_of_random_layers(config)

    with Checkpointer(
        workdir / "checkpoints",
        keep=config.train.keep_checkpoints,
        best_metric=config.train.best_metric,
    ) as checkpointer:
        example = example_shape(config, plan)
        key = jax.random.key(config.seed)
        create = functools.partial(
            create_state, task, optimizer, batch=example, ema=config.train.ema_decay is not None
        )
        shapes = jax.eval_shape(create, rng=key)
        shardings = state_sharding(shapes, mesh, config.train.shard_optimizer)
        restored = _restore(checkpointer, shapes, shardings, train_set)
        # Not before the checkpoint has proved to be of this config.
        _save_config(config, workdir)
        if restored is None:
            fresh = jax.jit(create, out_shardings=shardings)(rng=key)
            state = _start(fresh, config, mesh)
        else:
            state = restored
        step = int(state.step)
        if step >= steps:
            _logger.info(
                "the run is complete: its checkpoint is at step %d of %d; set train.total_steps or "
                "train.epochs higher to go on",
                step,
                steps,
            )
            return state
        if restored is not None:
            _logger.info("going on from step %d of %d", step, steps)
        _logger.info("compiling the training step, which takes a while")
        with MetricWriter(
            workdir,
            header=run_header(config.train.batch_size),
            resume_step=None if restored is None else step,
        ) as writer:
            state = train(
                task,
                optimizer,
                state,
                schedule=schedule,
                make_batches=build_train_batches(
                    config,
                    train_set,
                    plan,
                    steps,
                    process_index=jax.process_index(),
                    process_count=jax.process_count(),
                ),
                mesh=mesh,
                total_steps=steps,
                batch_size=config.train.batch_size,
                intervals=Intervals(config.train.log_every, every, config.train.checkpoint_every),
                workdir=workdir,
                checkpointer=checkpointer,
                writer=writer,
                metadata=checkpoint_metadata(config, train_set),
                evaluate=evaluation.run if evaluation else None,
                watched=_ADVICE,
                seed=config.seed,
                accumulate_steps=config.train.accumulate_steps,
                ema_decay=config.train.ema_decay,
                shard_optimizer=config.train.shard_optimizer,
            )
    _logger.info("the run is complete: step %d of %d is in %s", steps, steps, workdir)
    return state


def _evaluation(config: ConfigDict, task: Task, train_set: CocoDataset) -> Evaluation:
    val_set = load_val_set(config)
    check_data(validation=val_set)
    check_same_classes(train_set.category_names, val_set)
    return Evaluation(task, config, val_set)


def _restore(
    checkpointer: Checkpointer, shapes: TrainState, shardings: TrainState, dataset: CocoDataset
) -> TrainState | None:
    """The newest state, laid out as the shardings say; None where the run has none yet."""
    restored = checkpointer.restore(
        jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            shapes,
            shardings,
        )
    )
    if restored is None:
        return None
    state, metadata, step = restored
    learned, given = metadata.get("categories"), _categories(dataset)
    if learned is not None and learned != given:
        new, old = next((g, k) for g, k in zip(given, learned, strict=True) if g != k)
        raise InputError(
            f"{dataset.annotation_path}: its classes are not those that checkpoint {step} in "
            f"{checkpointer.directory} has learned ({new} instead of {old}); use the annotations "
            "of that run or another --workdir"
        )
    return state


def _start(state: TrainState, config: ConfigDict, mesh: Mesh) -> TrainState:
    """A fresh state with the pretrained backbone, if the config names one."""
    if not config.model.backbone.checkpoint:
        return state
    params, stats = start_from_backbone(state.params, state.batch_stats, config)
    params, stats = jax.device_put((params, stats), replicated(mesh))
    ema = None if state.ema_params is None else jax.tree.map(jnp.copy, params)
    return state.replace(params=params, batch_stats=stats, ema_params=ema)


def _warn_of_random_layers(config: ConfigDict) -> None:
    """Layers that never train are of use with trained weights alone."""
    backbone = config.model.backbone
    if backbone.checkpoint:
        return
    stuck = []
    if backbone.norm == "frozen_batch_norm":
        stuck.append("model.backbone.norm=frozen_batch_norm")
    if backbone.frozen_stages >= 0:
        stuck.append(f"model.backbone.frozen_stages={backbone.frozen_stages}")
    if stuck:
        _logger.warning(
            "warning: the backbone starts from random weights, part of which never train under %s; "
            "such a model learns badly: use --config.model.backbone.norm=batch_norm "
            "--config.model.backbone.frozen_stages=-1",
            " and ".join(stuck),
        )


def checkpoint_metadata(config: ConfigDict, dataset: CocoDataset) -> dict:
    """What a checkpoint says of itself: its config and its classes."""
    return {
        "config": to_json(config),
        "categories": _categories(dataset),
    }


def _categories(dataset: CocoDataset) -> list[dict]:
    return [{"id": category.id, "name": category.name} for category in dataset.categories]


def _num_classes(config: ConfigDict, dataset: CocoDataset) -> int:
    """K, from the data unless the config insists."""
    found, wanted = len(dataset.categories), config.model.num_classes
    if wanted is not None and wanted != found:
        raise InputError(
            f"model.num_classes is {wanted} but {dataset.annotation_path} names {found} "
            "categories; leave num_classes None, or use the annotations it was meant for"
        )
    return found


def _save_config(config: ConfigDict, workdir: Path) -> None:
    """Writes config.json; says which keys differ from those of the run that is gone on with."""
    if jax.process_index() != 0:
        return
    path = workdir / "config.json"
    if path.exists() and (old := path.read_text()) != to_json(config):
        _logger.warning("%s is replaced; new in it: %s", path, _changes(old, config))
    write_json(config.to_dict(), path)


def _changes(old: str, config: ConfigDict) -> str:
    """The keys whose values are not those of an earlier config.json, with both."""
    try:
        before = flatten(from_json(old))
    except InputError:  # of another version, or written half
        return "everything, since the old one cannot be read"
    return ", ".join(
        f"{key} {value!r} (was {before[key]!r})"
        for key, value in flatten(config).items()
        if before[key] != value
    )


def _say(config: ConfigDict, dataset: CocoDataset, steps: int, devices: int) -> None:
    _logger.info(
        "%d images, %d objects, %d classes; %d steps of %d images on %d device(s)",
        len(dataset.images),
        dataset.num_objects,
        len(dataset.categories),
        steps,
        config.train.batch_size,
        devices,
    )
    _logger.info(
        "learning rate %g at %d images a step (%g at %d)",
        scaled_learning_rate(config),
        config.train.batch_size,
        config.optimizer.learning_rate,
        config.optimizer.reference_batch or config.train.batch_size,
    )
