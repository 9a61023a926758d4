"""What the keys say about the length of a run, its evaluations and its learning rate, in steps."""

from __future__ import annotations

import math

from ml_collections import ConfigDict


def total_steps(config: ConfigDict, steps_per_epoch: int) -> int:
    """Returns the number of optimiser steps of the run: `total_steps`, or else `epochs`."""
    if config.train.total_steps is not None:
        return config.train.total_steps
    return config.train.epochs * steps_per_epoch


def evaluation_interval(config: ConfigDict, steps_per_epoch: int) -> int:
    """Returns the steps between two evaluations, 0 for never."""
    if config.train.eval_every is not None:
        return config.train.eval_every
    return config.train.eval_every_epochs * steps_per_epoch


def milestone_steps(config: ConfigDict, run_steps: int) -> tuple[int, ...]:
    """Returns the steps at which the learning rate drops, in a run of `run_steps` steps.

    The first step that takes the lower rate is `milestone`, counted from 0. Halves round up.
    """
    return tuple(math.floor(part * run_steps + 0.5) for part in config.optimizer.milestones)


def scaled_learning_rate(config: ConfigDict) -> float:
    """Returns the learning rate for the run's batch: linear in the batch size."""
    optimizer = config.optimizer
    if optimizer.reference_batch is None:
        return optimizer.learning_rate
    return optimizer.learning_rate * config.train.batch_size / optimizer.reference_batch
