"""Batches of NumPy arrays for one host, read ahead by threads or worker processes.

The plan says what a step reads; grain fetches and transforms. Nothing here has a position that
would have to be saved: to go on after step s, start at step s.
"""

from __future__ import annotations

import dataclasses
import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from solojax.data.canvas import Size
from solojax.data.plan import PADDING, EvalPlan, StepPlan, TrainPlan
from solojax.data.view_plan import ViewPlan
from solojax.errors import BrokenImage, InputError
from solojax.structures import Batch, Instances

Example = dict[str, Any]
LoadRow = Callable[[int, int, bool, Size, int], Example]
MakeEmptyRow = Callable[[Size], Example]
Stack = Callable[[Sequence[Example]], Any]

_INSTANCE_FIELDS = {
    "boxes": "boxes",
    "labels": "labels",
    "centers": "centers",
    "masks": "masks",
    "valid": "instance_valid",
    "mask_valid": "mask_valid",
}
_BATCH_FIELDS = (
    "image", "image_size", "original_size", "valid", "image_index", "seed", "dropped_instances",
)  # fmt: skip

# Worker processes hand over larger arrays through shared memory, smaller ones through a pipe.
_MIN_SHARED_BYTES = 64 * 1024

_logger = logging.getLogger(__name__)


def train_batches(
    plan: TrainPlan | ViewPlan,
    load_row: LoadRow,
    make_empty_row: MakeEmptyRow,
    *,
    start_step: int = 0,
    num_steps: int,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 8,
    workers: int = 0,
    prefetch: int = 2,
    stack: Stack | None = None,
) -> Iterator[Any]:
    """Yields this process's rows of the global steps start_step .. start_step + num_steps - 1.

    Process p of P takes the p-th of P equal, contiguous parts of each global batch. The values do
    not depend on threads, workers or prefetch.

    A row whose image cannot be read (`load_row` raises BrokenImage) becomes an empty row with
    valid=False, which keeps its image_index and seed, so that the hosts stay in step; the message
    is logged once for each image. Any other error of `load_row` is raised where the batch is asked
    for. With worker processes, an error that cannot be pickled arrives as a RuntimeError with its
    text.

    Args:
      plan: the order of training.
      load_row: maps (image_index, short_side, flip, canvas, seed) to an example, the fields of
        `Batch` and, beside them, of `Instances` (with `instance_valid`), without the axis B.
        Called from several threads. With workers it must be picklable, and the main module must be
        importable without side effects (`if __name__ == "__main__":`), since they are spawned.
      make_empty_row: maps a canvas to an example of the same shapes and dtypes.
      start_step: first global step.
      num_steps: number of steps.
      process_index: p, of this process.
      process_count: P; must divide the batch size.
      threads: that read rows, in this process or in each worker; 0 reads when asked.
      workers: processes that read rows; 0 uses the threads of this process alone. Workers pay where
        `load_row` holds Python's lock for long; they take seconds to start, and handing over a row
        of 800 x 1344 pixels costs milliseconds.
      prefetch: batches that are read ahead.
      stack: maps the examples of a step to what is yielded; None makes a `Batch`.

    Returns:
      An iterator whose `close()` ends the threads and workers before the last step.

    Raises:
      InputError: the batch size is no multiple of process_count, or a count is out of range.
    """
    rows = _Rows(
        plan, load_row, make_empty_row, start_step, num_steps, process_index, process_count
    )
    return _read(rows, threads, workers, prefetch, stack or stack_examples)


def eval_batches(
    plan: EvalPlan,
    load_row: LoadRow,
    make_empty_row: MakeEmptyRow,
    *,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 8,
    workers: int = 0,
    prefetch: int = 2,
) -> Iterator[Batch]:
    """Yields this process's rows of every evaluation batch, each image in one row of one process.

    All processes get `plan.num_steps` batches, and the same canvas at the same step. Rows that
    fill up the last batch of a canvas have valid=False and image_index -1. The rest is as in
    `train_batches`.
    """
    rows = _Rows(plan, load_row, make_empty_row, 0, plan.num_steps, process_index, process_count)
    return _read(rows, threads, workers, prefetch, stack_examples)


def _read(rows: _Rows, threads: int, workers: int, prefetch: int, stack: Stack) -> Iterator[Any]:
    if min(threads, workers) < 0 or prefetch < 1:
        raise InputError(
            f"threads={threads} and workers={workers} must not be negative, and prefetch="
            f"{prefetch} must be at least 1"
        )
    dataset = _prefetched(rows, threads, workers, rows_ahead=prefetch * rows.local_batch)
    # Batched in this process and after prefetching: the rows of one batch are read in parallel,
    # and no array of the result lies in memory shared with a worker.
    dataset = dataset.batch(rows.local_batch, drop_remainder=True, batch_fn=_Collate(stack))
    return _iterate(dataset, rows.num_steps)


def _prefetched(rows: _Rows, threads: int, workers: int, rows_ahead: int) -> grain.IterDataset:
    """The rows, in order, with about `rows_ahead` of them being read ahead of the consumer."""
    if not workers:
        options = grain.ReadOptions(threads, prefetch_buffer_size=max(rows_ahead, threads))
        return grain.MapDataset.source(rows).to_iter_dataset(options)
    _let_grain_read_its_flag()
    dataset = grain.MapDataset.source(_PicklableErrors(rows)).to_iter_dataset(
        grain.ReadOptions(threads, prefetch_buffer_size=threads)
    )
    dataset = grain.experimental.WithOptionsIterDataset(
        dataset, grain.experimental.DatasetOptions(min_shm_size=_MIN_SHARED_BYTES)
    )
    return dataset.mp_prefetch(
        grain.MultiprocessingOptions(workers, per_worker_buffer_size=-(-rows_ahead // workers))
    )


def _let_grain_read_its_flag() -> None:
    """Marks the flag that grain reads for its workers as given, where absl has parsed no flags.

    grain 0.2.18 with JAX reads it unconditionally, which fails in any program that does not run
    through absl.app (google/grain issue 1355).
    """
    name = "grain_enable_multiprocess_worker_profiling"
    if not flags.FLAGS.is_parsed() and name in flags.FLAGS:
        flags.FLAGS[name].present = 1


def _iterate(dataset: grain.IterDataset, num_steps: int) -> Iterator[Any]:
    iterator = iter(dataset)
    try:
        # Counted, not looped over: should the data end early, the StopIteration of `next` turns
        # into a RuntimeError in a generator, where a for loop would end in silence.
        for _ in range(num_steps):
            yield next(iterator)
    finally:
        iterator.close()


@dataclasses.dataclass(frozen=True, eq=False)
class _Rows:
    """Random access to one process's rows of all steps: (example, what was wrong with it or "")."""

    plan: TrainPlan | EvalPlan | ViewPlan
    load_row: LoadRow
    make_empty_row: MakeEmptyRow
    start_step: int
    num_steps: int
    process_index: int
    process_count: int

    def __post_init__(self):
        if not 0 <= self.process_index < self.process_count:
            raise InputError(
                f"process index {self.process_index} is not in 0 .. {self.process_count - 1}"
            )
        if self.plan.batch_size % self.process_count:
            raise InputError(
                f"a batch of {self.plan.batch_size} images cannot be split evenly over "
                f"{self.process_count} processes; make it a multiple of {self.process_count}"
            )
        if self.start_step < 0 or self.num_steps < 0:
            raise InputError(
                f"start_step={self.start_step} and num_steps={self.num_steps} must not be negative"
            )

    @property
    def local_batch(self) -> int:
        return self.plan.batch_size // self.process_count

    def __len__(self) -> int:
        return self.num_steps * self.local_batch

    def __getitem__(self, position: int) -> tuple[Example, str]:
        step, row = divmod(position, self.local_batch)
        plan = self.plan.at(self.start_step + step)
        row += self.process_index * self.local_batch
        if plan.image_indices[row] == PADDING:
            return self._empty_row(plan, row), ""
        try:
            return self._load(plan, row), ""
        except BrokenImage as error:
            return self._empty_row(plan, row), str(error)

    def _load(self, plan: StepPlan, row: int) -> Example:
        try:
            return self.load_row(
                int(plan.image_indices[row]),
                int(plan.short_sides[row]),
                bool(plan.flips[row]),
                plan.canvas,
                int(plan.seeds[row]),
            )
        except StopIteration as error:
            # To grain it would mean that the data ends here.
            raise RuntimeError("load_row raised StopIteration") from error

    def _empty_row(self, plan: StepPlan, row: int) -> Example:
        return {
            **self.make_empty_row(plan.canvas),
            "valid": np.bool_(False),
            "image_index": plan.image_indices[row],
            "seed": plan.seeds[row],
        }


class _PicklableErrors:
    """Rows whose errors survive the way from a worker process.

    A worker that fails to pickle an error, or that ends as if all were well, leaves the consumer
    waiting for ever.
    """

    def __init__(self, rows: _Rows):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> tuple[Example, str]:
        try:
            return self._rows[position]
        except (Exception, SystemExit) as error:
            if isinstance(error, Exception) and _survives_pickling(error):
                raise
            raise RuntimeError(f"{type(error).__name__}: {error}") from error


def _survives_pickling(error: Exception) -> bool:
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:
        # Any exception at all: pickling runs the error's own methods.
        return False


class _Collate:
    """Stacks rows to a batch and logs what was wrong with them, once for each image."""

    def __init__(self, stack: Stack):
        self._stack = stack
        self._logged: set[int] = set()

    def __call__(self, rows: Sequence[tuple[Example, str]]) -> Batch:
        examples = [example for example, _ in rows]
        for example, problem in rows:
            index = int(example["image_index"])
            if problem and index not in self._logged:
                self._logged.add(index)
                _logger.warning("image left out: %s", problem)
        return self._stack(examples)


def stack_examples(examples: Sequence[Example]) -> Batch:
    """Makes a batch of rows of one canvas; see `train_batches` for the form of an example."""
    factors = sorted(int(key.split("/")[1]) for key in examples[0] if key.startswith("masks/"))
    return Batch(
        **{name: stack_field(examples, name) for name in _BATCH_FIELDS},
        instances=Instances(
            **{name: stack_field(examples, key) for name, key in _INSTANCE_FIELDS.items()},
            coarse_masks=tuple(stack_field(examples, f"masks/{factor}") for factor in factors),
            embeddings=stack_field(examples, "embeddings") if "embeddings" in examples[0] else None,
        ),
    )


def stack_field(examples: Sequence[Example], key: str) -> np.ndarray:
    """Stacks to a plain array of the first row's shape and dtype, which all rows must have."""
    arrays = [np.asarray(example[key]) for example in examples]
    out = np.empty((len(arrays), *arrays[0].shape), arrays[0].dtype)
    try:
        return np.stack(arrays, out=out, casting="no")
    except (TypeError, ValueError) as error:
        error.add_note(f"rows of one batch differ in the shape or dtype of {key!r}")
        raise
