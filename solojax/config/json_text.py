"""A config as JSON text, for checkpoints and logs, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from solojax.config.schema import (
    DEFAULT_TASK,
    TASKS,
    check_keys,
    flatten,
    known_keys,
    nested_tuples,
    set_value,
    task_of,
    unknown_key_error,
)
from solojax.errors import InputError


def to_json(config: ConfigDict) -> str:
    """Returns the config as JSON text, one key a line."""
    return json.dumps(config.to_dict(), indent=2)


def from_json(text: str) -> ConfigDict:
    """Reads what `to_json` wrote. Returns a locked config.

    A key that the text does not have keeps its default: it is younger than the text, and its
    default is what the code did before.

    Raises:
      InputError: the text is no JSON object, or has a key that is unknown or of the wrong type.
    """
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"config text is no JSON, line {error.lineno}: {error.msg}") from error
    if not isinstance(tree, dict):
        raise InputError(f"config text is a JSON {type(tree).__name__}: it must be an object")
    # Texts from before there were other tasks name none.
    task = task_of(ConfigDict({"task": DEFAULT_TASK} | tree))
    config, known = TASKS[task](), known_keys(task)
    for path, value in flatten(ConfigDict(tree)).items():
        if path == "train.remat" and isinstance(value, bool):  # which chose blocks or none
            value = "blocks" if value else "none"
        if path not in known:
            raise unknown_key_error(path, task)
        try:
            set_value(config, path, nested_tuples(value))
        except TypeError as error:
            raise InputError(f"config key '{path}' is {value!r}: {error}") from error
    check_keys(config)
    return config


def checkpoint_config(metadata: Mapping[str, Any], path: str) -> ConfigDict:
    """The config that a checkpoint was trained with.

    Args:
      metadata: of the checkpoint; the config is the JSON text under "config".
      path: of the checkpoint, for messages.

    Raises:
      InputError: there is none, or as `from_json`.
    """
    if not isinstance(metadata.get("config"), str):
        raise InputError(f"checkpoint {path} does not say what it was trained with: use another")
    try:
        return from_json(metadata["config"])
    except InputError as error:
        raise InputError(f"checkpoint {path}: {error}") from error
