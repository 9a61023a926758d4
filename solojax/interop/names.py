"""Names with whole numbers in them: `res{s+1}.{b}.conv{c}` reads and writes `res2.0.conv1`.

`{n}`, `{n+2}` and `{3n+1}` stand for the number that the letter's value gives; every letter is one
lower-case character and occurs once. Reading finds the letters' values, writing puts them in.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

DIGITS = re.compile(r"[0-9]+")
NUMBER = re.compile(r"\{(\d*)([a-z])([+-]\d+)?\}")


def read_name(template: str, name: str) -> dict[str, int] | None:
    """The letters' values (none negative) with which `template` gives `name`, or None."""
    match = _pattern(template).fullmatch(name)
    if match is None:
        return None
    letters = {}
    for factor, letter, offset in NUMBER.findall(template):
        value, rest = divmod(int(match[letter]) - int(offset or 0), int(factor or 1))
        if rest or value < 0:
            return None
        letters[letter] = value
    return letters


def write_name(template: str, letters: Mapping[str, int]) -> str:
    """The name that `template` gives for the letters' values."""
    return NUMBER.sub(
        lambda number: str(int(number[1] or 1) * letters[number[2]] + int(number[3] or 0)),
        template,
    )


@functools.lru_cache(maxsize=65536)
def name_outline(name: str) -> str:
    """The name with a hash for every number: names of one template have one outline."""
    return DIGITS.sub("#", name)


def template_outline(template: str) -> str:
    """The outline of the names that `template` gives."""
    return name_outline(NUMBER.sub("0", template))


@functools.cache
def _pattern(template: str) -> re.Pattern:
    """A regular expression in which every number is a group called by its letter."""
    text, end = "", 0
    for number in NUMBER.finditer(template):
        text += re.escape(template[end : number.start()]) + rf"(?P<{number[2]}>0|[1-9]\d*)"
        end = number.end()
    return re.compile(text + re.escape(template[end:]))
