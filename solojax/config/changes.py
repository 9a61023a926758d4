"""What differs between two configs."""

from __future__ import annotations

from ml_collections import ConfigDict

from solojax.config.schema import flatten


def changes(before: ConfigDict, now: ConfigDict) -> dict[str, str]:
    """The keys of `now` whose values are not those of `before`, each with both in words."""
    old = flatten(before)
    return {
        key: f"{value!r} ({f'was {old[key]!r}' if key in old else 'was not there'})"
        for key, value in flatten(now).items()
        if key not in old or old[key] != value
    }
