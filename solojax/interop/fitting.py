"""Whether what a file holds fits a config and a model, and what to do where it does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from solojax.errors import InputError
from solojax.interop.trees import Path

MAX_NAMES = 20  # of one sort in an error message


def check_settings(
    architecture: Mapping[str, Any], settings: Mapping[str, Any], *, where: str
) -> None:
    """Compares the network that a file is of with a config.

    Args:
      architecture: config keys and the values that the file determines.
      settings: the values of the config by dotted key; None leaves a key open, an absent one is
        not compared.
      where: the file, for messages.

    Raises:
      InputError: naming the keys by which they differ, both values, and the flags that mend it.
    """
    differing = {
        key: value
        for key, value in architecture.items()
        if key in settings and not _agree(settings[key], value)
    }
    if not differing:
        return
    reasons = "; ".join(_reason(key, value, settings[key]) for key, value in differing.items())
    flags = " ".join(f"--config.{key}={_flag(value)}" for key, value in differing.items())
    raise InputError(
        f"checkpoint {where} does not fit the config: {reasons}; use {flags}, or the weights that "
        "the config was made for"
    )


def check_shapes(
    ours: Mapping[Path, Any],
    wanted: Mapping[Path, Any],
    foreign_name: Callable[[Path], str],
    *,
    where: str,
) -> None:
    """Compares imported variables with those of a model.

    Args:
      ours: imported leaves by path.
      wanted: the model's leaves, anything with a shape.
      foreign_name: what the file calls a path.
      where: the file, for messages.

    Raises:
      InputError: naming the tensors that are missing, unexpected or misshapen.
    """
    lists = {
        "missing": [foreign_name(path) for path in wanted.keys() - ours.keys()],
        "unexpected": [foreign_name(path) for path in ours.keys() - wanted.keys()],
        "misshapen (in our order of axes)": [
            f"{foreign_name(path)} ({tuple(ours[path].shape)}, not {tuple(wanted[path].shape)})"
            for path in ours.keys() & wanted.keys()
            if tuple(ours[path].shape) != tuple(wanted[path].shape)
        ],
    }
    clauses = [f"{sort}: {_listed(sorted(names))}" for sort, names in lists.items() if names]
    if clauses:
        raise InputError(
            f"checkpoint {where} does not fit the model; {'; '.join(clauses)}; use the config of "
            "the model that it was made with"
        )


def _agree(setting: Any, value: Any) -> bool:
    if setting is None:
        return True
    if isinstance(value, tuple):
        return len(setting) == len(value) and np.allclose(setting, value, rtol=1e-3)
    return setting == value


def _reason(key: str, value: Any, setting: Any) -> str:
    text = f"{key} is {setting} there and {value} in the file"
    if key == "model.pixel_mean" and _agree(tuple(setting)[::-1], value):
        text += " (in the order RGB: stems that read BGR are turned round on import)"
    return text


def _flag(value: Any) -> str:
    return ",".join(str(entry) for entry in value) if isinstance(value, tuple) else str(value)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def check_same_leaves(
    wanted: Mapping[tuple, tuple], found: Mapping[tuple, tuple], *, complaint: str, remedy: str
) -> None:
    """Holds the leaves of a checkpoint against those of a network.

    Args:
      wanted: {path: shape} of the network.
      found: likewise of the checkpoint.
      complaint: what the checkpoint is where they differ.
      remedy: what to do then.

    Raises:
      InputError: complaint, how many leaves differ, the first of them, remedy.
    """
    differing = sorted(p for p in wanted.keys() | found.keys() if wanted.get(p) != found.get(p))
    if differing:
        first = differing[0]
        raise InputError(
            f"{complaint}: {len(differing)} leaves differ, the first {'/'.join(first)} "
            f"{found.get(first, 'absent')} in it and {wanted.get(first, 'absent')} here; {remedy}"
        )
