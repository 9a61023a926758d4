"""The TPU chips that programs are compiled for, and the slices that they come in.

Source: the pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e" of Google Cloud's TPU system
architecture (cloud.google.com/tpu/docs/system-architecture-tpu-vm).
"""

from __future__ import annotations

import dataclasses
import math
import re

from solojax.config.names import nearest_name
from solojax.errors import InputError

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of TPU.

    Attributes:
      kind: its name in a topology.
      hbm_bytes: memory of a chip.
      peak_flops: bfloat16 operations per second, a multiplication and an addition being two.
      hbm_bandwidth: bytes per second between a chip and its memory.
      sides: of a slice: 2 (a torus of a plane) or 3.
      slices: the smaller slices that exist, as (side, side, ...).
      most_chips: of one slice.
      core_mode: how the compiler is told to take a chip's cores for one device; None where it does
        so anyway, or where a chip has one core.
    """

    kind: str
    hbm_bytes: int
    peak_flops: float
    hbm_bandwidth: float
    sides: int
    slices: tuple[tuple[int, ...], ...]
    most_chips: int
    core_mode: str | None = None


_PLANES = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_CUBES = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))

CHIPS = {
    chip.kind: chip
    for chip in (
        Chip("v4", 32 * _GIB, 275e12, 1228e9, 3, _CUBES, 4096, core_mode="megacore"),
        Chip("v5e", 16 * _GIB, 197e12, 819e9, 2, _PLANES, 256),
        Chip("v5p", 95 * _GIB, 459e12, 2765e9, 3, _CUBES, 6144),
        Chip("v6e", 32 * _GIB, 918e12, 1640e9, 2, _PLANES, 256),
    )
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice of a pod.

    Attributes:
      chip: its kind.
      shape: chips along every side.
    """

    chip: Chip
    shape: tuple[int, ...]

    @property
    def num_chips(self) -> int:
        """Chips, each of which is one JAX device."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.chip.kind}:{_written(self.shape)}"


def parse_topology(text: str) -> Topology:
    """The slice of a name such as "v5e:4x4" or "v4:2x2x4".

    Raises:
      InputError: there is no such kind or no such slice of it.
    """
    kind, colon, sides = text.partition(":")
    if kind not in CHIPS:
        raise InputError(
            f"--topology {text!r}: no TPU kind {kind!r} (did you mean "
            f"{nearest_name(kind, CHIPS)}?); give KIND:SHAPE with one of {_examples()}"
        )
    chip = CHIPS[kind]
    if not colon or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sides):
        raise InputError(
            f"--topology {text!r}: give the chips along every side too, as {_example(chip)}"
        )
    shape = tuple(map(int, sides.split("x")))
    if len(shape) != chip.sides or not _exists(chip, shape):
        raise InputError(f"--topology {text!r}: there is no such slice; {_slices(chip)}")
    return Topology(chip, shape)


def _exists(chip: Chip, shape: tuple[int, ...]) -> bool:
    if shape in chip.slices:
        return True
    # Larger cubes are put together from cubes of 4x4x4.
    whole = chip.sides == 3 and all(side % 4 == 0 for side in shape)
    return whole and math.prod(shape) <= chip.most_chips


def _slices(chip: Chip) -> str:
    listing = ", ".join(map(_written, chip.slices))
    if chip.sides == 2:
        return f"{chip.kind} has {listing}"
    return (
        f"{chip.kind} has {listing} and three sides that are multiples of 4, up to "
        f"{chip.most_chips} chips"
    )


def _examples() -> str:
    return ", ".join(map(_example, CHIPS.values()))


def _example(chip: Chip) -> str:
    return f"{chip.kind}:{'4x4' if chip.sides == 2 else '2x2x4'}"


def _written(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
