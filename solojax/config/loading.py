"""A config from a file, its variants and the overrides of the command line."""

from __future__ import annotations

import importlib.util
import inspect
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import tuple_parser

from solojax.config.files import find_config
from solojax.config.schema import (
    Key,
    check_keys,
    describe_kind,
    known_keys,
    nested_tuples,
    set_value,
    task_of,
    unknown_key_error,
)
from solojax.config.validation import validate
from solojax.errors import InputError

_PARSERS = {
    bool: flags.BooleanParser(),
    int: flags.IntegerParser(),
    float: flags.FloatParser(),
    str: flags.ArgumentParser(),
    tuple: tuple_parser.TupleParser(),
}


def load_config(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Reads a config file, applies the overrides and checks the result.

    Args:
      spec: `FILE.py` or `FILE.py:variant,…`. The file defines `get_config()` or `get_config(arg)`,
        which returns a config made from `base_config()` or `contrastive_config()`; `arg` is the
        text after the colon.
      overrides: `--config.optimizer.learning_rate=0.02` and the like, the last of a key winning.

    Returns:
      A locked config that `validate` accepts.

    Raises:
      InputError: the file is absent or fails, a variant or a key is unknown, a value is of the
        wrong type or makes no sense.
    """
    name, colon, variants = spec.partition(":")
    config = _call_get_config(find_config(name), [variants] if colon else [])
    check_keys(config)
    config.lock()
    apply_overrides(config, overrides)
    return config


def apply_overrides(config: ConfigDict, overrides: Sequence[str]) -> None:
    """Sets `--config.key=value` overrides in a config, the last of a key winning, and checks it.

    Raises:
      InputError: a key is unknown, a value is of the wrong type or makes no sense.
    """
    for override in overrides:
        path, value = _parse_override(override, task_of(config))
        set_value(config, path, value)
    validate(config)


def _call_get_config(path: Path, arguments: list[str]) -> ConfigDict:
    try:
        function = getattr(_execute(path), "get_config", None)
        if function is None:
            raise InputError(f"config file {path} defines no get_config(): add one")
        if arguments and not inspect.signature(function).parameters:
            raise InputError(f"config file {path} takes no variants: drop ':{arguments[0]}'")
        config = function(*arguments)
    except InputError:
        raise
    # A config file is a program of the person's own: whatever it raises is theirs to read.
    except Exception as error:
        raise InputError(_describe_failure(path, error)) from error
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"config file {path}: get_config() returns a {type(config).__name__}; it must return "
            "a config made from solojax.config.base_config()"
        )
    return config


def _execute(path: Path) -> ModuleType:
    module_spec = importlib.util.spec_from_file_location("_solojax_config", path)
    if module_spec is None:
        raise InputError(f"config file {path} is no Python file: give one that ends in .py")
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


def _describe_failure(path: Path, error: Exception) -> str:
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path)
    ]
    line = error.lineno if isinstance(error, SyntaxError) else (lines or [None])[-1]
    where = f"{path}, line {line}" if line else str(path)
    text = str(error.args[0]) if error.args else ""
    return f"config file {where}: {type(error).__name__}: {text}"


def _parse_override(override: str, task: str) -> tuple[str, Any]:
    flag, equals, text = override.partition("=")
    path = flag.removeprefix("--").removeprefix("config.")
    if path not in known_keys(task):
        raise unknown_key_error(path, task)
    if path == "task":
        raise InputError(f"{flag}: the config file decides the task: give another by --config")
    key = known_keys(task)[path]
    if not equals:
        raise InputError(f"{flag} has no value: write {flag}=VALUE, {describe_kind(key)}")
    return path, _parse_value(path, text, key)


def _parse_value(path: str, text: str, key: Key) -> Any:
    if key.optional and text.lower() == "none":
        return None
    try:
        value = _PARSERS[key.kind].parse(text)
    except ValueError as error:
        raise InputError(
            f"--config.{path}={text}: '{text}' does not fit, give {describe_kind(key)}"
        ) from error
    return nested_tuples(value) if key.kind is tuple else value
