"""The one training loop; every task runs through it.

The order of a step, and why:

1. The batch of step n comes from plan(seed, n) alone, so that a restarted run sees what an
   uninterrupted one would have seen; its copy to the devices began while step n - 1 ran.
2. The step is dispatched; the metrics of the step before are read only then, so the devices never
   wait for the host.
3. A loss that is not finite ends the run before anything of it can be saved.
4. Evaluation comes before the checkpoint, so that the checkpoint knows its metric; the line in
   metrics.jsonl comes before both, so that a killed run's log never lacks a step it saved.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from solojax.structures import Array, Batch, PyTree
from solojax.tasks import Task
from solojax.train.checkpoints import Checkpointer
from solojax.train.guard import check_finite
from solojax.train.metric_writer import MetricWriter
from solojax.train.progress import TrainProgress
from solojax.train.sharding import prefetch, replicated
from solojax.train.state import TrainState, inference_variables
from solojax.train.step import make_train_step


@dataclasses.dataclass(frozen=True)
class Intervals:
    """Steps between two of each; 0 is never. The last step logs, evaluates and saves unless 0."""

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
    seed: int = 0,
    accumulate_steps: int = 1,
    ema_decay: float | None = None,
) -> TrainState:
    """Trains from `state.step` to `total_steps`.

    Args:
      task: what is learned.
      optimizer: see `make_train_step`.
      state: fresh or restored, replicated over the mesh.
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
      seed: of the run's keys.
      accumulate_steps: micro-batches per step.
      ema_decay: of the moving average.

    Returns:
      The final state.
    """
    step_function = jax.jit(
        make_train_step(
            task,
            optimizer,
            seed=seed,
            accumulate_steps=accumulate_steps,
            ema_decay=ema_decay,
            schedule=schedule,
        ),
        donate_argnums=0,
        out_shardings=replicated(mesh),
    )
    step = int(state.step)
    progress = TrainProgress(
        total_steps=total_steps,
        start_step=step,
        batch_size=batch_size,
        enabled=jax.process_index() == 0,
    )
    meter = _Meter(workdir)
    batches = make_batches(step)
    try:
        for host_batch, batch in prefetch(batches, mesh):
            state, metrics = step_function(state, batch)
            step += 1
            meter.add(step, metrics, host_batch)
            log, assess, save = (
                _is_due(step, every, total_steps) for every in dataclasses.astuple(intervals)
            )
            shown = None
            if log or assess or save:
                meter.settle()
            if log:
                shown = meter.means()
                writer.write(step, shown)
            results = {}
            if assess and evaluate is not None:
                results = evaluate(inference_variables(state))
                writer.write(step, results)
                progress.note(_summary(step, results))
            if save:
                checkpointer.save(step, state, metadata, metrics=results or None)
            if assess or save:
                meter.skip_time()
            progress.advance(shown)
    finally:
        progress.close()
        close = getattr(batches, "close", None)
        if close is not None:
            close()
    meter.settle()
    checkpointer.wait()
    return state


def _is_due(step: int, every: int, total_steps: int) -> bool:
    return bool(every) and (step % every == 0 or step == total_steps)


def _summary(step: int, results: dict[str, float]) -> str:
    shown = "  ".join(
        f"{key} {value:.3f}" for key, value in results.items() if key.count("/") == 1
    )
    return f"step {step}: {shown}"


class _Meter:
    """Reads metrics one step late, checks them, and averages them between two lines of the log."""

    def __init__(self, directory: Path):
        self._directory = directory
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
        self._values.append(values)
        now = time.perf_counter()
        self._seconds.append(now - self._since)
        self._since = now

    def skip_time(self) -> None:
        """Leaves out what has passed since the last step: evaluation, saving."""
        self._since = time.perf_counter()

    def means(self) -> dict[str, float]:
        """Means since the last call, and the median time of a step (compilation apart)."""
        values, self._values = self._values, []
        seconds, self._seconds = self._seconds, []
        means = {key: float(np.mean([v[key] for v in values])) for key in values[0]}
        return means | {"seconds_per_step": float(np.median(seconds))}
