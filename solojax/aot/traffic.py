"""Which operations of a compiled TPU program move most bytes to and from memory.

Read off the program's text: every instruction reads its operands and writes its result, save where
those lie in on-chip memory (`S(1)` in a layout). That is less than the compiler's own estimate,
which counts on-chip memory too, and more than the truth where an instruction reads a part of an
operand alone.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

from solojax.train.hlo_text import TRIP_COUNT, bits_of, branches_of, computations_of

_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?(\S+) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*)$")
_CALLED = re.compile(
    r"\b(?:body|condition|to_apply|true_computation|false_computation)=%?([\w.-]+)"
)
_TILE = re.compile(r"T\((\d+),(\d+)\)")
# They name, regroup or begin what others move; the end of an asynchronous one counts.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
    "opt-barrier", "while", "conditional", "call",
}  # fmt: skip
_PART = ("slice-done", "dynamic-slice", "slice", "gather")  # read no more than they give


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What the instructions of one operation move.

    Attributes:
      operation: its place in the network, as "transpose(jvp(Segmenter))/neck/output_0".
      bytes: read and written in a chip's memory, padding of tiles included.
      largest: type and layout of the largest array among them.
    """

    operation: str
    bytes: int
    largest: str


@dataclasses.dataclass(frozen=True)
class _Instruction:
    kind: str
    type: str
    operands: tuple[str, ...]
    line: str


def traffic_by_operation(compiled_text: str) -> list[Traffic]:
    """What every operation moves, the most first.

    What stands in a loop counts as often as XLA knows the loop to run, else once; of a conditional
    every branch counts.

    Args:
      compiled_text: `jit(...).lower(...).compile().as_text()` of a TPU program.
    """
    computations, entry = _read(compiled_text)
    sums: dict[str, int] = {}
    largest: dict[str, str] = {}
    for instructions, name, times in _running(computations, entry, 1):
        instruction = instructions[name]
        moved = _bytes_moved(instruction, instructions)
        if not moved:
            continue
        operation = _operation(name, instructions)
        sums[operation] = sums.get(operation, 0) + times * moved
        arrays = [a[0] for a in _arrays(instruction.type)] + [largest.get(operation, "")]
        largest[operation] = max(arrays, key=_size)
    found = [Traffic(name, total, largest[name]) for name, total in sums.items()]
    return sorted(found, key=lambda each: (-each.bytes, each.operation))


def _read(text: str) -> tuple[dict[str, dict[str, _Instruction]], str]:
    """Instructions by name of every computation, and the name of the first to run."""
    computations, entry = computations_of(text)
    return {name: dict(_instructions(lines)) for name, lines in computations.items()}, entry


def _instructions(lines: list[str]) -> Iterator[tuple[str, _Instruction]]:
    for line in lines:
        if match := _INSTRUCTION.match(line):
            operands = tuple(re.findall(r"%([\w.-]+)", match[4].partition(")")[0]))
            yield match[1], _Instruction(match[3], match[2], operands, line)


def _running(computations: dict, name: str, times: int):
    """Yields (instructions of its computation, name, how often) of all that runs."""
    instructions = computations.get(name, {})
    for own, instruction in instructions.items():
        if instruction.kind in ("while", "conditional", "call"):
            trips = TRIP_COUNT.search(instruction.line)
            for each in _CALLED.findall(instruction.line) + branches_of(instruction.line):
                yield from _running(computations, each, times * (int(trips[1]) if trips else 1))
        else:
            yield instructions, own, times


def _bytes_moved(instruction: _Instruction, instructions: dict[str, _Instruction]) -> int:
    if instruction.kind in _FREE or instruction.kind.endswith("-start"):
        return 0
    written = _size(instruction.type)
    if instruction.kind in _PART:
        return written + _size(instruction.type, on_chip=True)
    if instruction.kind.endswith("-done"):
        # Of the beginning's type (destination, source, ...) the source is what is read.
        source = _arrays(instructions[instruction.operands[0]].type)[1:2]
        return written + sum(_array_size(*array[1:]) for array in source)
    read = {name: instructions[name].type for name in instruction.operands if name in instructions}
    return written + sum(map(_size, read.values()))


def _operation(name: str, instructions: dict[str, _Instruction]) -> str:
    """What an instruction belongs to; a copy without a name, to what it copies."""
    for _ in range(len(instructions)):
        instruction = instructions[name]
        if found := re.search(r'op_name="([^"]+)"', instruction.line):
            parts = found[1].split("/")
            inside = parts[1:] if parts[0].startswith("jit(") else parts
            return "/".join(inside[:-1] or inside)
        known = [operand for operand in instruction.operands if operand in instructions]
        if not known:
            break
        name = known[0]
    return "(copies of arguments)"


def _arrays(type_text: str) -> list[tuple[str, str, str, str]]:
    """(whole text, dtype, sides, layout) of every array of a type."""
    return [(m[0], m[1], m[2], m[3] or "") for m in _ARRAY.finditer(type_text)]


def _size(type_text: str, on_chip: bool = False) -> int:
    """Bytes of a type in a chip's main memory, or wherever it lies."""
    return sum(_array_size(*array[1:], on_chip=on_chip) for array in _arrays(type_text))


def _array_size(dtype: str, sides: str, layout: str, on_chip: bool = False) -> int:
    if not on_chip and re.search(r"S\([1-9]", layout):
        return 0
    shape = [int(side) for side in sides.split(",") if side]
    order = [int(axis) for axis in layout.partition(":")[0].split(",") if axis.isdigit()]
    tile = _TILE.search(layout)
    if tile and len(order) > 1:
        for axis, step in ((order[0], int(tile[2])), (order[1], int(tile[1]))):
            shape[axis] = -(-shape[axis] // step) * step
    return math.prod(shape) * bits_of(dtype) // 8
