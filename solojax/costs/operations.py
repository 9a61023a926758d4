"""Arithmetic operations, counted in programs that are neither compiled nor run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import numpy as np

from solojax.costs.workloads import TrainingParts
from solojax.tasks import Task
from solojax.tasks.densecl import DenseCL
from solojax.train.step import make_train_step


def count_operations(function: Callable, *shapes) -> float:
    """Operations of a function of arrays of these shapes, by XLA's `cost_analysis`.

    A multiplication and an addition are two. The program is taken as it is written, before the
    compiler changes it; the body of a loop counts once.
    """
    return (jax.jit(function).lower(*shapes).cost_analysis() or {}).get("flops", math.nan)


def count_step_operations(parts: TrainingParts) -> float:
    """Operations of a whole training step: forward, backward, optimizer and, if any, queues."""
    task = parts.task
    if isinstance(task, DenseCL):  # reads its queues in a loop: one part, so that all of it counts
        task = dataclasses.replace(task, negatives_at_once=task.queue_length)
    return _count_step(parts, task)


def count_unseen_step_operations(parts: TrainingParts) -> float:
    """What `cost_analysis` leaves out of a step, compiled or not: all but one turn of the loop in
    which contrastive losses read their queues."""
    if not isinstance(parts.task, DenseCL):
        return 0.0
    return count_step_operations(parts) - _count_step(parts, parts.task)


def _count_step(parts: TrainingParts, task: Task) -> float:
    step = make_train_step(task, parts.optimizer, schedule=parts.schedule)
    return count_operations(step, parts.abstract_state(), parts.batch(jax.ShapeDtypeStruct))


def count_parameters(params) -> dict[str, int]:
    """Parameters of every part of a network, from arrays or shapes."""
    return {
        name: sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(part))
        for name, part in params.items()
    }
