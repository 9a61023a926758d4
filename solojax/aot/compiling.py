"""Compiling the steps of a config for a slice, at one batch size or until it no longer fits."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Sequence

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from solojax.aot.chips import Chip, Topology
from solojax.aot.cost import StepCost, TooLarge, measure
from solojax.aot.programs import lower_predict_step, lower_train_step
from solojax.costs.operations import count_unseen_step_operations
from solojax.costs.workloads import training_parts, workload_of
from solojax.errors import InputError

_logger = logging.getLogger(__name__)

_LOWER = {"train": lower_train_step, "predict": lower_predict_step}
_OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """One step of a config on a slice.

    Attributes:
      name: "train" or "predict".
      canvas: (H, W) of its images.
      costs: at the batch that was asked for, and at all that were compiled after it.
    """

    name: str
    canvas: tuple[int, int]
    costs: tuple[StepCost | TooLarge, ...]


def compile_steps(
    config: ConfigDict,
    mesh: Mesh,
    topology: Topology,
    *,
    steps: Sequence[str] | None = None,
    per_chip_batch: int | None = None,
    canvas: tuple[int, int] | None = None,
    find_batch: bool = False,
) -> Iterator[CompiledStep]:
    """Compiles steps one after the other.

    Args:
      config: valid.
      mesh: of the slice's devices.
      topology: the slice.
      steps: what to compile; all that the config's task has when None.
      per_chip_batch: images of a chip; the config's batch over all chips, at least 1, when None.
      canvas: (H, W) of the images; the largest of the config's recipe when None.
      find_batch: whether the batch is then doubled until a chip no longer holds it (or halved
        until it does).

    Raises:
      InputError: the config does not go with the batch or the canvas, or its task has no such step.
    """
    for name in check_steps(config, steps):
        size = workload_of(config).largest_canvas(config, name) if canvas is None else canvas
        batch = default_batch(config, name, mesh.size) if per_chip_batch is None else per_chip_batch

        def compiled(batch: int, name: str = name, size: tuple[int, int] = size):
            _logger.info(
                "compiling the %s step, which takes minutes: %d x %dx%d on each of %d chips",
                name,
                batch,
                *size,
                mesh.size,
            )
            cost = compile_step(_LOWER[name], config, mesh, batch, size)
            return _with_loops(cost, config, mesh, size) if name == "train" else cost

        costs = [compiled(batch)]
        if find_batch:
            try:
                for cost in search(compiled, costs[0], topology.chip):
                    costs.append(cost)
            except InputError as error:  # groups or queues that do not divide such a batch
                _logger.info("the search ends where the config does: %s", error)
        yield CompiledStep(name, size, tuple(costs))


def default_batch(config: ConfigDict, name: str, chips: int) -> int:
    """Images of a chip by the config's batch over all of them, at least 1."""
    part = config.train if name == "train" else config.evaluation
    return max(part.batch_size // chips, 1)


def search(
    compiled: Callable[[int], StepCost | TooLarge], first: StepCost | TooLarge, chip: Chip
) -> Iterator[StepCost | TooLarge]:
    """Yields the costs at twice the first batch and so on, up to the first that does not fit.

    Where the first does not fit, at half of it and so on, down to the first that does.
    """
    growing = first.fits(chip)
    cost = first
    while cost.fits(chip) == growing and (growing or cost.per_chip_batch > 1):
        cost = compiled(cost.per_chip_batch * 2 if growing else cost.per_chip_batch // 2)
        yield cost


def compile_step(
    lower: Callable, config: ConfigDict, mesh: Mesh, batch: int, canvas: tuple[int, int]
) -> StepCost | TooLarge:
    """Compiles one step for so many images a chip."""
    lowered = lower(config, mesh, batch, canvas)
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if _OUT_OF_MEMORY not in str(error):
            raise
        return TooLarge(batch, _first_sentence(str(error)), time.perf_counter() - start)
    return measure(compiled, batch, time.perf_counter() - start)


def _with_loops(
    cost: StepCost | TooLarge, config: ConfigDict, mesh: Mesh, canvas: tuple[int, int]
) -> StepCost | TooLarge:
    """The cost of a training step with the operations that the compiler's count leaves out."""
    if isinstance(cost, TooLarge):
        return cost
    parts = training_parts(config, cost.per_chip_batch * mesh.size, canvas)
    unseen = count_unseen_step_operations(parts) / mesh.size
    return dataclasses.replace(cost, flops=cost.flops + unseen)


def check_steps(config: ConfigDict, names: Sequence[str] | None) -> Sequence[str]:
    """The steps to compile, all that the config's task has for None.

    Raises:
      InputError: the task has no step of a name.
    """
    known = workload_of(config).steps
    for name in names or ():
        if name not in known:
            raise InputError(
                f"--steps: {config.task} has no step {name!r}; give one or more of "
                f"{', '.join(known)}"
            )
    return known if names is None else names


def _first_sentence(message: str) -> str:
    """The gist of a message of pages: `Ran out of memory ... Used 20G of 15.75G hbm.`"""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[0].removeprefix(f"{_OUT_OF_MEMORY}: ")
