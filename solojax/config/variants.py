"""Variants of a config by name: `configs/solov2.py:r101,1x`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from solojax.config.names import nearest_name
from solojax.errors import InputError


def parse_variants(
    text: str, groups: Mapping[str, Sequence[str]], recipes: Sequence[str] = ()
) -> dict[str, str]:
    """Reads the variants of a config file.

    Args:
      text: names with commas between them; empty for the defaults.
      groups: for every choice, what can be chosen, the default first:
        `{"backbone": ("r50", "r101"), "schedule": ("3x", "1x")}`.
      recipes: names that decide everything and stand alone.

    Returns:
      One name per group, and under "recipe" one of `recipes` or "".

    Raises:
      InputError: an unknown name, one given twice, two of one group, or a recipe in company.
    """
    names = [name.strip() for name in text.split(",")] if text.strip() else []
    group_of = {name: group for group, members in groups.items() for name in members}
    known = [*group_of, *recipes]
    for position, name in enumerate(names):
        if name not in known:
            raise InputError(
                f"unknown config variant '{name}': did you mean '{nearest_name(name, known)}'? "
                f"Known are {', '.join(known)}"
            )
        if name in names[:position]:
            raise InputError(f"config variant '{name}' is given twice: give it once")
        if name in recipes and len(names) > 1:
            raise InputError(
                f"config variant '{name}' is a whole recipe and takes no other beside it: "
                f"drop {', '.join(repr(other) for other in names if other != name)}"
            )

    chosen: dict[str, str] = {}
    for name in names:
        group = group_of.get(name, "recipe")
        if group in chosen:
            raise InputError(
                f"config variants '{chosen[group]}' and '{name}' are both a {group}: give one"
            )
        chosen[group] = name
    return {group: members[0] for group, members in groups.items()} | {"recipe": ""} | chosen
