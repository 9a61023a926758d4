"""Nested dicts as flat ones. Reading a checkpoint file so needs no JAX, which takes a while."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Path = tuple[str, ...]


def flatten(tree: Mapping[str, Any], prefix: Path = ()) -> dict[Path, Any]:
    """Leaf by path."""
    leaves: dict[Path, Any] = {}
    for name, value in tree.items():
        path = (*prefix, name)
        leaves |= flatten(value, path) if isinstance(value, Mapping) else {path: value}
    return leaves


def unflatten(leaves: Mapping[Path, Any]) -> dict[str, Any]:
    """Undoes `flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        group = tree
        for name in path[:-1]:
            group = group.setdefault(name, {})
        group[path[-1]] = leaf
    return tree
