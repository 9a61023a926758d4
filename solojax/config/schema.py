"""Which keys a config has and of what kind, read off the base config of its task."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from ml_collections import ConfigDict, FieldReference

from solojax.config.base import base_config
from solojax.config.contrastive import contrastive_config
from solojax.config.free_solo import free_solo_config
from solojax.config.names import nearest_name
from solojax.errors import InputError

# What makes the config with every key of a task.
TASKS = {
    "instance_segmentation": base_config,
    "free_solo": free_solo_config,
    "densecl": contrastive_config,
}
# Those whose networks find objects.
SEGMENTATION_TASKS = ("instance_segmentation", "free_solo")
DEFAULT_TASK = "instance_segmentation"


@dataclasses.dataclass(frozen=True)
class Key:
    """What a key holds: a value of `kind` (bool, int, float, str or tuple), or None if optional."""

    kind: type
    optional: bool


@functools.cache
def known_keys(task: str = DEFAULT_TASK) -> dict[str, Key]:
    """Returns every key of a task by its dotted path, in alphabetical order within a group."""
    return dict(_keys(TASKS[task](), ""))


def task_of(config: ConfigDict) -> str:
    """Returns the task of a config.

    Raises:
      InputError: it has none, or one that is unknown.
    """
    task = config.get("task", None)
    if task not in TASKS:
        raise InputError(
            f"config key 'task' is {task!r}: give one of {', '.join(TASKS)}, by starting the "
            "config from solojax.config.base_config(), free_solo_config() or contrastive_config()"
        )
    return task


def _keys(group: ConfigDict, prefix: str):
    for name, value in group.items(preserve_field_references=True):
        path = prefix + name
        if isinstance(value, ConfigDict):
            yield from _keys(value, f"{path}.")
        elif isinstance(value, FieldReference):
            yield path, Key(value.get_type(), optional=True)
        else:
            yield path, Key(type(value), optional=False)


def flatten(group: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Returns every value of a config by its dotted path."""
    values = {}
    for name, value in group.items():
        path = f"{prefix}{name}"
        values |= flatten(value, f"{path}.") if isinstance(value, ConfigDict) else {path: value}
    return values


def set_value(config: ConfigDict, path: str, value: Any) -> None:
    """Sets the key at a dotted path."""
    group, _, name = path.rpartition(".")
    (config[group] if group else config)[name] = value


def nested_tuples(value: Any) -> Any:
    """Returns `value` with every list in it a tuple: a config has tuples only, JSON lists only."""
    if isinstance(value, (list, tuple)):
        return tuple(nested_tuples(entry) for entry in value)
    return value


def unknown_key_error(path: str, task: str = DEFAULT_TASK) -> InputError:
    """Says that no key of a task has this path, and which one comes nearest."""
    known = known_keys(task)
    below = [key for key in known if key.startswith(f"{path}.")]
    if below:
        return InputError(f"config key '{path}' is a group: set one of {', '.join(below)}")
    group = path.rpartition(".")[0]
    beside = [key.rpartition(".")[2] for key in known if key.rpartition(".")[0] == group]
    listing = f" Keys of '{group}' are {', '.join(beside)}" if group and beside else ""
    return InputError(
        f"unknown config key '{path}': did you mean '{nearest_name(path, known)}'?{listing}"
    )


def check_keys(config: ConfigDict) -> None:
    """Checks that a config has exactly the keys of its task, each with a value of its kind.

    Raises:
      InputError: a key is unknown, absent or of the wrong type.
    """
    task = task_of(config)
    values, known = flatten(config), known_keys(task)
    for path in values:
        if path not in known:
            raise unknown_key_error(path, task)
    for path, key in known.items():
        if path not in values:
            raise InputError(
                f"config key '{path}' is missing: start the config from "
                f"solojax.config.{TASKS[task].__name__}()"
            )
        check_kind(path, values[path], key)


def check_kind(path: str, value: Any, key: Key) -> None:
    """Checks one value against what its key holds.

    Raises:
      InputError: the value is of another type, or None where that is not allowed.
    """
    if value is None and key.optional:
        return
    # A bool is an int to Python, but never a number of anything here.
    is_kind = isinstance(value, key.kind) and (key.kind is bool) == isinstance(value, bool)
    if not is_kind:
        raise InputError(f"config key '{path}' is {value!r}: give {describe_kind(key)}")


def describe_kind(key: Key) -> str:
    """Returns words for what a key holds."""
    words = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a text",
        tuple: "a tuple such as 640,800",
    }[key.kind]
    return f"{words} or None" if key.optional else words
