"""A compiled program's HLO text: its computations, and the sizes of its types."""

from __future__ import annotations

import re

TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_COMPUTATION = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{\s*$")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")


def computations_of(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of every computation by name, and the name of the one where the program begins."""
    computations: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            lines = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        else:
            lines.append(line)
    return computations, entry


def branches_of(line: str) -> list[str]:
    """The computations that a conditional chooses from."""
    return [
        name.strip().lstrip("%") for names in _BRANCHES.findall(line) for name in names.split(",")
    ]


def bits_of(dtype: str) -> int:
    """Bits of a number of a type, as "bf16"; a truth value takes a byte."""
    return 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])
