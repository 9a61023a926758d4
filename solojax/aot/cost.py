"""What a compiled step needs, as the TPU compiler says, and the times at a chip's peaks."""

from __future__ import annotations

import dataclasses

from solojax.aot.chips import Chip
from solojax.aot.traffic import Traffic, traffic_by_operation
from solojax.train.collectives import Collective, collectives_of

_MOST_LISTED = 20  # operations of a report


@dataclasses.dataclass(frozen=True)
class StepCost:
    """One step on one chip.

    Attributes:
      per_chip_batch: images of a chip.
      argument_bytes: state or weights, and the chip's rows of the batch.
      temp_bytes: intermediate values, at most at one time.
      peak_bytes: the most memory that is in use, the program itself included.
      hbm_bytes: what every instruction of the compiled program reads and writes, as the compiler
        counts it ("bytes accessed"): more than the traffic with the chip's memory, since values
        that it keeps in on-chip memory count as well, but less where there is a loop, as that over
        candidates in prediction or over the parts of a queue of negatives, which counts once.
      traffic: by operation, the most first, without what stays in on-chip memory.
      flops: operations of the compiled program, recomputed ones included; a multiplication and an
        addition are two. Loops count once in prediction, and whole over a queue of negatives.
      collectives: by kind.
      compile_s: seconds that compilation took.
    """

    per_chip_batch: int
    argument_bytes: int
    temp_bytes: int
    peak_bytes: int
    hbm_bytes: float
    flops: float
    traffic: tuple[Traffic, ...]
    collectives: tuple[Collective, ...]
    compile_s: float

    @property
    def off_chip_bytes(self) -> int:
        """Traffic without what stays in on-chip memory."""
        return sum(each.bytes for each in self.traffic)

    def fits(self, chip: Chip) -> bool:
        """Whether a chip's memory holds the step."""
        return self.peak_bytes <= chip.hbm_bytes

    def roofline_s(self, chip: Chip) -> dict[str, float]:
        """Seconds of a step if a chip did nothing but {"compute", "hbm"} traffic, at its peak."""
        return {
            "compute": self.flops / chip.peak_flops,
            "hbm": self.hbm_bytes / chip.hbm_bandwidth,
        }

    def to_dict(self, chip: Chip) -> dict:
        """The entry of a report."""
        return {
            "per_chip_batch": self.per_chip_batch,
            "fits": self.fits(chip),
            "argument_bytes": self.argument_bytes,
            "temp_bytes": self.temp_bytes,
            "peak_bytes": self.peak_bytes,
            "hbm_bytes_per_image": self.hbm_bytes / self.per_chip_batch,
            "off_chip_bytes_per_image": self.off_chip_bytes / self.per_chip_batch,
            "flops_per_image": self.flops / self.per_chip_batch,
            "roofline_s": self.roofline_s(chip),
            "collectives": [dataclasses.asdict(each) for each in self.collectives],
            "largest_traffic": [dataclasses.asdict(each) for each in self.traffic[:_MOST_LISTED]],
            "compile_s": round(self.compile_s, 1),
        }


@dataclasses.dataclass(frozen=True)
class TooLarge:
    """A step that the compiler found no memory for.

    Attributes:
      per_chip_batch: images of a chip.
      reason: the compiler's words.
      compile_s: seconds until it gave up.
    """

    per_chip_batch: int
    reason: str
    compile_s: float

    def fits(self, chip: Chip) -> bool:
        """False."""
        return False

    def to_dict(self, chip: Chip) -> dict:
        """The entry of a report."""
        return {
            "per_chip_batch": self.per_chip_batch,
            "fits": False,
            "reason": self.reason,
            "compile_s": round(self.compile_s, 1),
        }


def measure(compiled, per_chip_batch: int, compile_s: float) -> StepCost:
    """Reads the cost of a step off the compiled program, which is that of one chip."""
    memory, cost, text = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    in_turn = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
        - memory.alias_size_in_bytes
    )
    return StepCost(
        per_chip_batch=per_chip_batch,
        argument_bytes=memory.argument_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        peak_bytes=memory.peak_memory_in_bytes or in_turn,
        hbm_bytes=cost["bytes accessed"],
        flops=cost["flops"],
        traffic=tuple(traffic_by_operation(text)),
        collectives=tuple(collectives_of(text)),
        compile_s=compile_s,
    )


def estimate_largest_batch(cost: StepCost, chip: Chip) -> int:
    """About how many images of a step's size a chip holds: a guess from one compiled batch.

    Intermediate values are taken to grow with the batch and the rest to stay. Part of them, the
    gradients, does not grow, so that there is room for a little more; but the compiler trades
    memory for time as it gets scarce, and wants some of it for itself.
    """
    per_image = max(cost.temp_bytes / cost.per_chip_batch, 1)
    fixed = cost.peak_bytes - cost.temp_bytes
    return max(int((chip.hbm_bytes - fixed) / per_image), 0)
