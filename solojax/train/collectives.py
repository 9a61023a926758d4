"""What devices say to each other in a compiled program, read off its HLO text."""

from __future__ import annotations

import dataclasses
import functools
import math
import re

from solojax.train.hlo_text import TRIP_COUNT, bits_of, branches_of, computations_of

_KINDS = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "ragged-all-to-all",
    "reduce-scatter",
    "collective-broadcast",
    "collective-permute",
)
# `%name = (f32[8,4]{1,0:T(8,128)}, s32[]) all-reduce-start(...`: the result's type, the kind, and
# the half of an asynchronous pair.
_INSTRUCTION = re.compile(rf"^\s*(?:ROOT )?%?\S+ = (.*?) ({'|'.join(_KINDS)})(-start|-done)?\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,<= ]*)\]")
_CALLED = re.compile(
    r"\b(body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.$-]+)"
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind.

    Attributes:
      op: "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", ...
      count: how many run each time that the program runs.
      bytes: of their results on one device, together.
    """

    op: str
    count: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class CollectiveInstruction:
    """One collective of a program.

    Attributes:
      op: as in `Collective`.
      arrays: (dtype, shape) of its results on one device, e.g. ("f32", (8, 4)).
      times: how often it runs each time that the program runs: it may stand in a loop.
    """

    op: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    times: int = 1

    @property
    def bytes(self) -> int:
        """Of the results on one device, of one time."""
        return sum(bits_of(dtype) * math.prod(shape) for dtype, shape in self.arrays) // 8


def collectives_of(compiled_text: str) -> list[Collective]:
    """The collectives of a program by kind, the most bytes first.

    Args:
      compiled_text: `jit(...).lower(...).compile().as_text()`.
    """
    counts: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for each in collective_instructions(compiled_text):
        counts[each.op] = counts.get(each.op, 0) + each.times
        sizes[each.op] = sizes.get(each.op, 0) + each.times * each.bytes
    found = [Collective(op, count, sizes[op]) for op, count in counts.items()]
    return sorted(found, key=lambda each: (-each.bytes, each.op))


def collective_instructions(compiled_text: str) -> list[CollectiveInstruction]:
    """Every collective of a program, in the order of the text.

    The two halves of an asynchronous one count once. What stands in a loop runs as often as XLA
    knows the loop to (once where it does not know); of a conditional every branch counts.

    Args:
      compiled_text: `jit(...).lower(...).compile().as_text()`.
    """
    computations, entry = computations_of(compiled_text)
    runs = _runs(computations, entry)
    return [
        CollectiveInstruction(op, arrays, runs[name])
        for name, lines in computations.items()
        for op, arrays in filter(None, map(_read, lines))
        if runs[name]
    ]


def _read(line: str) -> tuple[str, tuple] | None:
    """(kind, arrays) of a line that is a collective; its start is not, since its end is."""
    match = _INSTRUCTION.match(line)
    if match is None or match[3] == "-start":
        return None
    return match[2], tuple((dtype, _shape(sizes)) for dtype, sizes in _ARRAY.findall(match[1]))


def _shape(sizes: str) -> tuple[int, ...]:
    return tuple(int(size) for size in re.findall(r"\d+", sizes))


def _runs(computations: dict[str, list[str]], entry: str) -> dict[str, int]:
    """How often each computation runs when the program runs once."""
    callers: dict[str, list[tuple[str, int]]] = {name: [] for name in computations}
    for name, lines in computations.items():
        for line in lines:
            for called, times in _calls(line):
                callers.get(called, []).append((name, times))

    @functools.cache
    def runs(name: str) -> int:
        called = sum(runs(caller) * times for caller, times in callers[name])
        return called + (name == entry)

    return {name: runs(name) for name in computations}


def _calls(line: str) -> list[tuple[str, int]]:
    """(computation, how often) of those that an instruction runs."""
    trips = TRIP_COUNT.search(line)
    found = [
        (name, int(trips[1]) if trips and role == "body" else 1)
        for role, name in _CALLED.findall(line)
    ]
    return found + [(name, 1) for name in branches_of(line)]
