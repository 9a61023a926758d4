"""A training run: a config and a work directory in, checkpoints and metrics out."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from solojax.builders.segmentation import build_optimizer
from solojax.config import from_json, scaled_learning_rate, to_json, total_steps
from solojax.config.changes import changes
from solojax.errors import InputError
from solojax.inference.evaluation import write_json
from solojax.runs.contrast import contrast_run
from solojax.runs.free_solo import free_solo_run
from solojax.runs.segmentation import segmentation_run
from solojax.runs.task_run import TaskRun
from solojax.train.checkpoints import Checkpointer
from solojax.train.loop import Intervals, train
from solojax.train.metric_writer import MetricWriter, run_header
from solojax.train.sharding import check_batch_size, make_mesh, state_sharding
from solojax.train.state import TrainState, create_state

_logger = logging.getLogger(__name__)

_RUNS = {
    "instance_segmentation": segmentation_run,
    "free_solo": free_solo_run,
    "densecl": contrast_run,
}


def run_training(
    config: ConfigDict, workdir: Path, metadata: Mapping[str, Any] | None = None
) -> TrainState:
    """Trains as the config says; goes on where an earlier run in the work directory stopped.

    Args:
      config: valid.
      workdir: takes `config.json`, `metrics.jsonl`, TensorBoard events and `checkpoints/`.
      metadata: json that goes into every checkpoint beside what the task says.

    Returns:
      The final state.

    Raises:
      InputError: bad data, config, checkpoint or work directory.
      Preempted: SIGTERM asked the run to end; its state is saved.
    """
    mesh = make_mesh()
    check_batch_size(config.train.batch_size, mesh, "train.batch_size")
    parts = config.train.accumulate_steps
    if parts > 1:
        key = "train.batch_size / train.accumulate_steps"
        check_batch_size(config.train.batch_size // parts, mesh, key)
    run = _RUNS[config.task](config, mesh)
    steps = total_steps(config, run.steps_per_epoch)
    optimizer, schedule = build_optimizer(config, steps)
    _say(config, run, steps, mesh.size)

    with Checkpointer(
        workdir / "checkpoints",
        keep=config.train.keep_checkpoints,
        best_metric=config.train.best_metric,
    ) as checkpointer:
        key = jax.random.key(config.seed)
        create = functools.partial(
            create_state,
            run.task,
            optimizer,
            batch=run.example,
            ema=config.train.ema_decay is not None,
        )
        shapes = jax.eval_shape(create, rng=key)
        is_spread = getattr(run.task, "is_spread", None)
        shardings = state_sharding(shapes, mesh, config.train.shard_optimizer, is_spread)
        make_state = functools.partial(jax.jit(create, out_shardings=shardings), rng=key)
        restored = _restore(checkpointer, shapes, shardings, run, make_state)
        # Not before the checkpoint has proved to be of this config.
        _save_config(config, workdir)
        if restored is None:
            state = run.start(make_state())
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
                run.task,
                optimizer,
                state,
                schedule=schedule,
                make_batches=run.make_batches(steps),
                mesh=mesh,
                total_steps=steps,
                batch_size=config.train.batch_size,
                intervals=Intervals(
                    config.train.log_every, run.evaluate_every, config.train.checkpoint_every
                ),
                workdir=workdir,
                checkpointer=checkpointer,
                writer=writer,
                metadata=run.metadata | dict(metadata or {}),
                evaluate=run.evaluate,
                watched=run.advice,
                seed=config.seed,
                accumulate_steps=config.train.accumulate_steps,
                ema_decay=config.train.ema_decay,
                shard_optimizer=config.train.shard_optimizer,
            )
    _logger.info("the run is complete: step %d of %d is in %s", steps, steps, workdir)
    return state


def _restore(
    checkpointer: Checkpointer,
    shapes: TrainState,
    shardings: TrainState,
    run: TaskRun,
    make_state: Callable[[], TrainState],
) -> TrainState | None:
    """The newest state, laid out as the shardings say; None where the run has none yet.

    What the task can begin anew and the checkpoint has not comes from a fresh state.
    """
    restored = checkpointer.restore(
        jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            shapes,
            shardings,
        ),
        renewable=run.renewable,
    )
    if restored is None:
        return None
    state, metadata, step = restored
    run.check_restored(metadata, f"{step} in {checkpointer.directory}")
    if not any(map(_is_shape, jax.tree.leaves(state))):
        return state
    return jax.tree.map(lambda x, fresh: fresh if _is_shape(x) else x, state, make_state())


def _is_shape(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct)


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
        before = from_json(old)
    except InputError:  # of another version, or written half
        return "everything, since the old one cannot be read"
    return ", ".join(f"{key} {values}" for key, values in changes(before, config).items())


def _say(config: ConfigDict, run: TaskRun, steps: int, devices: int) -> None:
    first, *others = run.summary
    _logger.info(
        "%s; %d steps of %d images on %d device(s)", first, steps, config.train.batch_size, devices
    )
    for line in others:
        _logger.info("%s", line)
    _logger.info(
        "learning rate %g at %d images a step (%g at %d)",
        scaled_learning_rate(config),
        config.train.batch_size,
        config.optimizer.learning_rate,
        config.optimizer.reference_batch or config.train.batch_size,
    )
