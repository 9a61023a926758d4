"""The report of `solojax aot`: which steps fit a slice, and what they need there."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from importlib import metadata

from ml_collections import ConfigDict

from solojax.aot.chips import Topology
from solojax.aot.compiling import CompiledStep, compile_steps
from solojax.aot.cost import StepCost, estimate_largest_batch
from solojax.aot.devices import slice_devices
from solojax.costs.workloads import workload_of
from solojax.train.sharding import make_mesh


@dataclasses.dataclass(frozen=True)
class Report:
    """Steps of a config, compiled for a slice.

    Attributes:
      config: its name.
      dtype: of the network's computation.
      topology: the slice.
      facts: what else of the config shapes the steps, by key.
      facts_in_words: the same for a person.
      steps: what was compiled.
      versions: of jax and of libtpu.
    """

    config: str
    dtype: str
    topology: Topology
    facts: dict
    facts_in_words: str
    steps: Sequence[CompiledStep]
    versions: dict[str, str]

    @property
    def fits(self) -> bool:
        """Whether every step fits."""
        return all(step.costs[0].fits(self.topology.chip) for step in self.steps)

    def to_dict(self) -> dict:
        """The report as json has it; a step's sizes are those of one chip, seconds of one step."""
        chip = self.topology.chip
        return {
            "config": self.config,
            "dtype": self.dtype,
            **self.facts,
            "topology": str(self.topology),
            "chip": chip.kind,
            "chips": self.topology.num_chips,
            "hbm_bytes_per_chip": chip.hbm_bytes,
            "peak_flops_per_chip": chip.peak_flops,
            "hbm_bandwidth_per_chip": chip.hbm_bandwidth,
            "versions": self.versions,
            "fits": self.fits,
        } | {step.name: self._entry(step) for step in self.steps}

    def _entry(self, step: CompiledStep) -> dict:
        chip = self.topology.chip
        return {
            "canvas": list(step.canvas),
            **step.costs[0].to_dict(chip),
            "largest_batch": largest_batch(step, self.topology),
            "further_batches": [cost.to_dict(chip) for cost in step.costs[1:]],
        }


def make_report(config: ConfigDict, topology: Topology, *, name: str, **options) -> Report:
    """Compiles the steps of a config for a slice.

    Args:
      config: valid.
      topology: the slice.
      name: of the config.
      options: see `compile_steps`.

    Raises:
      InputError: the TPU compiler is not there or does not know the slice, or the config does not
        go with the batch or the canvas.
    """
    mesh = make_mesh(slice_devices(topology))
    facts, in_words = workload_of(config).facts(config)
    return Report(
        config=name,
        dtype=config.model.dtype,
        topology=topology,
        facts=facts,
        facts_in_words=in_words,
        steps=tuple(compile_steps(config, mesh, topology, **options)),
        versions={package: metadata.version(package) for package in ("jax", "libtpu")},
    )


def largest_batch(step: CompiledStep, topology: Topology) -> dict | None:
    """{"per_chip_batch", "estimate"}: what fits a chip; None where nothing is known to.

    Of several batches that were compiled it is the largest that fits, and no estimate.
    """
    chip = topology.chip
    fitting = [cost.per_chip_batch for cost in step.costs if cost.fits(chip)]
    if len(step.costs) > 1:
        return {"per_chip_batch": max(fitting), "estimate": False} if fitting else None
    if not isinstance(step.costs[0], StepCost):
        return None
    estimate = max(estimate_largest_batch(step.costs[0], chip), *fitting, 0)
    return {"per_chip_batch": estimate, "estimate": True} if estimate else None
