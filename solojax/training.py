"""A training run: a config and a work directory in, checkpoints and metrics out."""

from __future__ import annotations

import logging
from importlib import metadata
from pathlib import Path

import jax
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
from solojax.config import evaluation_interval, scaled_learning_rate, to_json, total_steps
from solojax.data.coco import CocoDataset
from solojax.errors import InputError
from solojax.evaluation import Evaluation
from solojax.train.checkpoints import Checkpointer
from solojax.train.loop import Intervals, train
from solojax.train.metric_writer import MetricWriter
from solojax.train.sharding import check_batch_size, make_mesh, replicated
from solojax.train.state import TrainState, create_state

_logger = logging.getLogger(__name__)
_PACKAGES = ("solojax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def run_training(config: ConfigDict, workdir: Path) -> TrainState:
    """Trains as the config says; goes on where an earlier run in the work directory stopped.

    Args:
      config: valid.
      workdir: takes `config.json`, `metrics.jsonl`, TensorBoard events and `checkpoints/`.

    Returns:
      The final state.

    Raises:
      InputError: bad data, config, checkpoint or work directory.
    """
    mesh = make_mesh()
    check_batch_size(config.train.batch_size, mesh, "train.batch_size")
    train_set = load_train_set(config)
    task = build_task(config, _num_classes(config, train_set))
    plan = build_train_plan(config, train_set)
    steps = total_steps(config, plan.steps_per_epoch)
    every = evaluation_interval(config, plan.steps_per_epoch)
    evaluation = None
    if every:
        val_set = load_val_set(config)
        check_same_classes(train_set.category_names, val_set)
        evaluation = Evaluation(task, config, val_set)
    optimizer, schedule = build_optimizer(config, steps)
    _save_config(config, workdir)
    _say(config, train_set, steps, mesh.size)

    with Checkpointer(
        workdir / "checkpoints",
        keep=config.train.keep_checkpoints,
        best_metric=config.train.best_metric,
    ) as checkpointer:
        key = jax.random.key(config.seed)
        example = example_shape(config, plan)
        fresh = jax.jit(
            lambda key: create_state(
                task, optimizer, key, example, ema=config.train.ema_decay is not None
            ),
            out_shardings=replicated(mesh),
        )
        template = jax.eval_shape(fresh, key)
        restored = checkpointer.restore(
            jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)),
                template,
            )
        )
        state = fresh(key) if restored is None else restored[0]
        step = int(state.step)
        if restored is not None:
            _logger.info("going on from step %d of %d", step, steps)
        if step >= steps:
            _logger.info("the run is complete: its checkpoint is at step %d of %d", step, steps)
            return state
        with MetricWriter(
            workdir, header=_header(config, mesh.size), resume_step=step if restored else None
        ) as writer:
            return train(
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
                seed=config.seed,
                accumulate_steps=config.train.accumulate_steps,
                ema_decay=config.train.ema_decay,
            )


def checkpoint_metadata(config: ConfigDict, dataset: CocoDataset) -> dict:
    """What a checkpoint says of itself: its config and its classes."""
    return {
        "config": to_json(config),
        "categories": [{"id": c.id, "name": c.name} for c in dataset.categories],
    }


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
    path, text = workdir / "config.json", to_json(config)
    workdir.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.read_text() != text:
        _logger.warning("%s: the config differs from that of the run before; it is replaced", path)
    path.write_text(text)


def _say(config: ConfigDict, dataset: CocoDataset, steps: int, devices: int) -> None:
    objects = sum(len(image.annotations) for image in dataset.images)
    _logger.info(
        "%d images, %d objects, %d classes; %d steps of %d images on %d device(s)",
        len(dataset.images),
        objects,
        len(dataset.categories),
        steps,
        config.train.batch_size,
        devices,
    )
    _logger.info(
        "learning rate %g (%g for %s images a step)",
        scaled_learning_rate(config),
        config.optimizer.learning_rate,
        config.optimizer.reference_batch or config.train.batch_size,
    )


def _header(config: ConfigDict, devices: int) -> dict:
    return {
        "device_count": devices,
        "process_count": jax.process_count(),
        "global_batch": config.train.batch_size,
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None

