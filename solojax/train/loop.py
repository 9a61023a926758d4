"""The one training loop; every task runs through it.

The order of a step, and why:

1. The batch of step n comes from plan(seed, n) alone, so that a restarted run sees what an
   uninterrupted one would have seen; its copy to the devices began while step n - 1 ran.
2. The step is dispatched; the metrics of the step before are read only then, so the devices never
   wait for the host.
3. A loss or gradient that is not finite ends the run before anything of it can be saved.
4. Evaluation comes before the checkpoint, so that the checkpoint knows its metric; the line in
   metrics.jsonl comes before both, so that a killed run's log never lacks a step it saved.
5. What is evaluated is saved, so that the best checkpoint is one of those that were scored.
6. Bad input that turns up half-way (an image unlike its annotation, a log or a checkpoint that
   cannot be written) ends the run, but not before a single process has saved its state. A save in
   the background is asked about with every log line, so that its failure costs few steps.
7. A preemption notice ends the run after a whole step, with what belongs to it: its log line, its
   evaluation, its checkpoint. So the run that goes on from there leaves nothing out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from solojax.errors import InputError
from solojax.structures import Array, Batch, PyTree
from solojax.tasks import Task
from solojax.train.checkpoints import Checkpointer
from solojax.train.guard import check_finite
from solojax.train.metric_writer import MetricWriter
from solojax.train.preemption import Preempted, preemption_notices
from solojax.train.progress import TrainProgress
from solojax.train.sharding import prefetch
from solojax.train.state import TrainState, inference_variables
from solojax.train.step import jit_train_step

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Intervals:
    """Steps between two of each; 0 is never. The last step logs, evaluates and saves unless 0.

    A step that evaluates saves too, unless `checkpoint` is 0.
    """

    log: int = 50
    evaluate: int = 0
    checkpoint: int = 1000


def train(
    task: Task,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    *,
    schedule: optax.Schedule,
    make_batches: Callable[[int], Iterator[Batch]],
    mesh: Mesh,
    total_steps: int,
    batch_size: int,
    intervals: Intervals,
    workdir: Path,
    checkpointer: Checkpointer,
    writer: MetricWriter,
    metadata: dict,
    evaluate: Callable[[PyTree], dict[str, float]] | None = None,
    watched: Mapping[str, str] | None = None,
    seed: int = 0,
    accumulate_steps: int = 1,
    ema_decay: float | None = None,
    shard_optimizer: bool = False,
) -> TrainState:
    """Trains from `state.step` to `total_steps`.

    Args:
      task: what is learned.
      optimizer: see `make_train_step`.
      state: fresh or restored, lying as `state_sharding` says.
      schedule: learning rate of a step, for the log.
      make_batches: maps the first step to this process's host batches from there on.
      mesh: the devices.
      total_steps: where the run ends.
      batch_size: global, for the rate that is shown.
      intervals: when to log, evaluate and save.
      workdir: where the batch of a non-finite loss is put.
      checkpointer: saves the state.
      writer: takes the metrics.
      metadata: goes into every checkpoint.
      evaluate: maps inference variables to metrics.
      watched: metrics that are 0 if all is well, with what to do where they are not; a log line
        that has one above 0 is followed by that advice, once per metric.
      seed: of the run's keys.
      accumulate_steps: micro-batches per step.
      ema_decay: of the moving average.
      shard_optimizer: whether the optimizer's state is spread over the mesh.

    Returns:
      The final state.

    Raises:
      InputError: bad data, storage that cannot be written, a loss or gradient that is not finite.
      Preempted: SIGTERM asked the run to end; its state is saved.
    """
    step_function = jit_train_step(
        task,
        optimizer,
        jax.tree.map(lambda x: x.sharding, state),
        mesh,
        shard_optimizer=shard_optimizer,
        seed=seed,
        accumulate_steps=accumulate_steps,
        ema_decay=ema_decay,
        schedule=schedule,
    )
    start = step = int(state.step)
    progress = TrainProgress(
        total_steps=total_steps,
        start_step=start,
        batch_size=batch_size,
        enabled=jax.process_index() == 0,
    )
    meter = _Meter(workdir, averages=bool(intervals.log))
    watched = dict(watched or {})
    batches = make_batches(step)
    feed = prefetch(batches, mesh)

    @contextlib.contextmanager
    def saving_on_failure():
        try:
            yield
        except InputError:
            meter.settle()
            # It takes all processes to save, and the others do not know of this yet.
            if intervals.checkpoint and step > start and jax.process_count() == 1:
                _save_all_the_same(checkpointer, step, state, metadata)
            raise

    with preemption_notices() as preemption_is_due, _closing(progress, batches):
        while step < total_steps:
            with saving_on_failure():
                host_batch, batch = next(feed)
            state, metrics = step_function(state, batch)
            step += 1
            if step == start + 1:  # the call has just compiled the step
                meter.skip_time()
                progress.skip_time()
            meter.add(step, metrics, host_batch)
            log, assess, save = (
                _is_due(step, every, total_steps) for every in dataclasses.astuple(intervals)
            )
            assess = assess and evaluate is not None
            save = save or (assess and bool(intervals.checkpoint))
            if log or assess or save:
                meter.settle()
            shown, results = None, None
            with saving_on_failure():
                if log:
                    shown = meter.means()
                    writer.write(step, shown)
                    checkpointer.check()
                    _give_advice(shown, watched)
                progress.advance(shown)
                if assess:
                    results = evaluate(inference_variables(state))
                    writer.write(step, results)
                    progress.note(_summary(step, results))
            preempted = preemption_is_due(step) and step < total_steps
            if save or (preempted and intervals.checkpoint):
                meter.settle()
                checkpointer.save(step, state, metadata, metrics=results)
            if preempted:
                checkpointer.wait()
                raise Preempted(_farewell(step, total_steps, bool(intervals.checkpoint)))
            if assess or save:
                meter.skip_time()
                progress.skip_time()
    meter.settle()
    checkpointer.wait()
    return state


@contextlib.contextmanager
def _closing(progress: TrainProgress, batches: Iterator[Batch]) -> Iterator[None]:
    try:
        yield
    finally:
        progress.close()
        close = getattr(batches, "close", None)
        if close is not None:
            close()


def _is_due(step: int, every: int, total_steps: int) -> bool:
    return bool(every) and (step % every == 0 or step == total_steps)


def _farewell(step: int, total_steps: int, saved: bool) -> str:
    done = "saved" if saved else "not saved (train.checkpoint_every is 0)"
    return (
        f"asked to end by SIGTERM: step {step} of {total_steps} is {done}; the same command goes on"
    )


def _summary(step: int, results: Mapping[str, float]) -> str:
    """The first figures of every group: step 400: mask AP 0.412, AP50 0.743, AP75 0.400; box ..."""
    groups: dict[str, list[str]] = {}
    for key, value in results.items():
        group, _, name = key.rpartition("/")
        groups.setdefault(group, []).append(f"{name} {value:.3f}")
    shown = "; ".join(f"{group} {', '.join(each[:3])}".strip() for group, each in groups.items())
    return f"step {step}: {shown}"


def _give_advice(shown: Mapping[str, float], watched: dict[str, str]) -> None:
    for name in [name for name in watched if shown.get(name, 0.0) > 0.0]:
        _logger.warning("%s: %.3g a step; %s", name, shown[name], watched.pop(name))


def _save_all_the_same(
    checkpointer: Checkpointer, step: int, state: TrainState, metadata: dict
) -> None:
    """Saves before the run ends in an error, which a failure to do so must not hide."""
    try:
        checkpointer.save(step, state, metadata, wait=True)
        _logger.warning("the run ends early; checkpoint %d holds what it has learned", step)
    except InputError as error:
        _logger.error("%s", error)


class _Meter:
    """Reads metrics one step late, checks them, and averages them between two lines of the log."""

    def __init__(self, directory: Path, averages: bool = True):
        self._directory, self._averages = directory, averages
        self._pending: tuple[int, dict[str, Array], Batch] | None = None
        self._values: list[dict[str, float]] = []
        self._seconds: list[float] = []
        self._since = time.perf_counter()

    def add(self, step: int, metrics: dict[str, Array], host_batch: Batch) -> None:
        self.settle()
        self._pending = (step, metrics, host_batch)

    def settle(self) -> None:
        """Waits for the pending step's metrics; raises where its loss is not finite."""
        if self._pending is None:
            return
        step, metrics, host_batch = self._pending
        self._pending = None
        values = {key: float(value) for key, value in jax.device_get(metrics).items()}
        check_finite(step, values, host_batch, self._directory)
        now = time.perf_counter()
        if self._averages:
            self._values.append(values)
            self._seconds.append(now - self._since)
        self._since = now

    def skip_time(self) -> None:
        """Leaves out what has passed since the last step: compilation, evaluation, saving."""
        self._since = time.perf_counter()

    def means(self) -> dict[str, float]:
        """Means since the last call, and the median time of a step (compilation apart)."""
        values, self._values = self._values, []
        seconds, self._seconds = self._seconds, []
        means = {key: float(np.mean([v[key] for v in values])) for key in values[0]}
        return means | {"seconds_per_step": float(np.median(seconds))}
