"""What a training run needs to know of its task; the rest is the same for all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from solojax.structures import PyTree
from solojax.tasks import Task
from solojax.train.state import TrainState

MakeBatches = Callable[[int], Iterator[Any]]


@dataclasses.dataclass(frozen=True)
class TaskRun:
    """A task with its data.

    Attributes:
      task: what is learned.
      steps_per_epoch: rounded up.
      example: a batch of the first step's shapes.
      make_batches: (total_steps) to a function that maps a first step to this process's host
        batches from there on.
      summary: lines about the data, for the log.
      metadata: json that goes into every checkpoint.
      check_restored: raises an InputError where the metadata of a checkpoint, whose path is given
        too, is of other data than this run's.
      start: changes a fresh state, for pretrained weights.
      evaluate: inference variables to metrics; None where nothing is evaluated.
      evaluate_every: steps, 0 for never.
      advice: metrics that are 0 if all is well, and what to do where they are not.
      renewable: a branch of the state that begins anew where a checkpoint has none that fits, see
        `Checkpointer.restore`.
    """

    task: Task
    steps_per_epoch: int
    example: Any
    make_batches: Callable[[int], MakeBatches]
    summary: tuple[str, ...]
    metadata: dict
    check_restored: Callable[[dict, str], None]
    start: Callable[[TrainState], TrainState]
    evaluate: Callable[[PyTree], dict[str, float]] | None
    evaluate_every: int
    advice: Mapping[str, str]
    renewable: str | None = None
