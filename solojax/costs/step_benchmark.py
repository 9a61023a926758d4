"""Times of whole training steps, of one config or of two that take turns."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from solojax.builders.network import coarse_factors
from solojax.costs.inference_benchmark import random_batch
from solojax.costs.operations import count_step_operations
from solojax.costs.timing import Program, Timing, compile_program, repeat_in_turns
from solojax.costs.workloads import TrainingParts, num_classes_of, training_parts
from solojax.structures import PyTree, ViewBatch
from solojax.train.step import make_train_step

_OBJECTS = 15  # of every random image


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Training steps of two configs on the same machine, in turns.

    Attributes:
      timings: of both.
      operations: of a step of both, see `count_step_operations`.
    """

    timings: tuple[Timing, Timing]
    operations: tuple[float, float]

    @property
    def time_ratios(self) -> tuple[float, ...]:
        """Seconds of the first by seconds of the second, of every pair of turns."""
        first, second = (timing.seconds for timing in self.timings)
        return tuple(a / b for a, b in zip(first, second, strict=True))


def time_training(
    config: ConfigDict,
    rows: int,
    canvas: tuple[int, int],
    *,
    objects: int = _OBJECTS,
    repeats: int = 5,
) -> Timing:
    """Times a whole training step on random images, of so many objects each where it has any."""
    program = _step_program(training_parts(config, rows, canvas), objects, "training step")
    return program.timing(repeat_in_turns((program.run,), repeats)[0])


def compare_training(
    configs: tuple[ConfigDict, ConfigDict],
    sizes: tuple[tuple[int, tuple[int, int]], tuple[int, tuple[int, int]]],
    *,
    repeats: int = 5,
) -> Comparison:
    """Times the training steps of two configs in turns.

    Args:
      configs: both.
      sizes: (rows, canvas) of each.
      repeats: turns of each.
    """
    parts = tuple(training_parts(c, *size) for c, size in zip(configs, sizes, strict=True))
    programs = tuple(
        _step_program(each, _OBJECTS, name)
        for name, each in zip(("training step", "against: step"), parts, strict=True)
    )
    seconds = repeat_in_turns(tuple(program.run for program in programs), repeats)
    return Comparison(
        tuple(program.timing(times) for program, times in zip(programs, seconds, strict=True)),
        tuple(count_step_operations(each) for each in parts),
    )


def comparison_lines(comparison: Comparison, names: tuple[str, str]) -> Iterator[str]:
    """The ratios for a person."""
    ratios = comparison.time_ratios
    yield (
        f"a step of {names[0]} takes {statistics.median(ratios):.3f} times as long as one of "
        f"{names[1]} (median of {len(ratios)} pairs of turns, {min(ratios):.3f} to "
        f"{max(ratios):.3f})"
    )
    first, second = comparison.operations
    yield (
        f"operations of a step: {first / 1e9:.2f} and {second / 1e9:.2f} GFLOP, "
        f"{first / second:.3f} times as many"
    )


def random_views(rows: int, canvas: tuple[int, int]) -> ViewBatch:
    """Two views of noise of every image."""
    rng = np.random.default_rng(0)
    return ViewBatch(
        views=rng.integers(0, 256, (rows, 2, *canvas, 3)).astype(np.uint8),
        valid=np.ones(rows, bool),
        image_index=np.arange(rows, dtype=np.int32),
        seed=np.arange(rows, dtype=np.uint32),
    )


def _step_program(parts: TrainingParts, objects: int, name: str) -> Program:
    batch = _random_training_batch(parts.config, parts.example, objects)
    state = jax.jit(parts.create_state)(jax.random.key(0))
    rows, (height, width) = parts.config.train.batch_size, _canvas_of(parts.example)
    step = make_train_step(parts.task, parts.optimizer, schedule=parts.schedule)
    return compile_program(f"{name}, {rows} x {height}x{width}", step, state, batch)


def _random_training_batch(config: ConfigDict, example: PyTree, objects: int) -> PyTree:
    rows, canvas = config.train.batch_size, _canvas_of(example)
    if isinstance(example, ViewBatch):
        return random_views(rows, canvas)
    batch = random_batch(rows, canvas, objects, coarse_factors(config), num_classes_of(config))
    if example.instances.embeddings is None:
        return batch
    shape = (*batch.instances.labels.shape, example.instances.embeddings.shape[-1])
    vectors = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return batch.replace(instances=batch.instances.replace(embeddings=vectors))


def _canvas_of(example: PyTree) -> tuple[int, int]:
    images = example.views if isinstance(example, ViewBatch) else example.image
    return images.shape[-3:-1]
