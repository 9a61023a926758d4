"""One checkpoint directory: how a state is named, described, compared, read.

A checkpoint is an Orbax directory with two items. `state` holds the arrays under the path of their
leaf (`params/backbone/stem/kernel`), `metadata` a json record:

    format        version of this layout
    step          the training step
    leaves        {path: [dtype, shape]} of every leaf of the state
    metrics       {name: float} given with the checkpoint, or null
    best_metric, best_mode    which of the metrics decides what `best` is
    metadata      whatever the caller stored

The record makes a comparison with another state possible without opening an array, and reading
some of the leaves possible without knowing the rest. None and empty containers have no leaf: they
come from the template that is restored into. Arrays of size zero, which Orbax refuses, are only in
the record.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util

from solojax.errors import InputError

FORMAT = 1
STATE, RECORD = "state", "metadata"
TEMPORARY = ocp.utils.TMP_DIR_SUFFIX
# Storage that refuses or does not answer says nothing about what it holds.
_NOT_DAMAGE = re.compile(r"PERMISSION_DENIED|UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED")

Layout = Mapping[str, Any]  # {path: [dtype, shape]}


class BrokenCheckpoint(Exception):
    """A checkpoint whose files are truncated, absent or unreadable; says which and why."""


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by path, as in `opt_state/0/trace/neck/kernel`.

    Raises:
      ValueError: a key holds a slash, or the tree has no leaf at all.
      TypeError: a leaf is a typed PRNG key (store `jax.random.key_data` of it).
    """
    leaves = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        keys = [jax.tree_util.keystr((key,), simple=True) for key in path]
        if not keys or any("/" in key or not key for key in keys):
            raise ValueError(f"a state is a container whose keys have no slash, not {keys}")
        if jax.dtypes.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.extended):
            raise TypeError(f"{'/'.join(keys)} is a typed PRNG key: store jax.random.key_data")
        leaves["/".join(keys)] = leaf
    if not leaves:
        raise ValueError("a state without a leaf cannot be saved")
    return leaves


def describe(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """{path: [dtype name, shape]} of arrays, scalars or `jax.ShapeDtypeStruct`s."""
    return {name: _describe_leaf(leaf) for name, leaf in leaves.items()}


def _describe_leaf(leaf: Any) -> list[Any]:
    if not hasattr(leaf, "dtype"):
        leaf = np.asarray(leaf)
    return [np.dtype(leaf.dtype).name, list(leaf.shape)]


def differences(saved: Layout, expected: Layout) -> list[str]:
    """One phrase for every leaf that is missing, unexpected or of another shape or dtype."""
    missing = [f"{name} is not in it" for name in expected if name not in saved]
    unexpected = [f"{name} is only in it" for name in saved if name not in expected]
    changed = [
        f"{name} is {_form(saved[name])} in it and {_form(expected[name])} here"
        for name in expected
        if name in saved and list(saved[name]) != list(expected[name])
    ]
    return changed + missing + unexpected


def _form(description: Any) -> str:
    dtype, shape = description
    return f"{dtype}[{','.join(map(str, shape))}]"


def check_layout(step_path: epath.Path, saved: Layout, expected: Layout) -> None:
    """Raises InputError, naming up to five leaves, where a checkpoint is of another state."""
    found = differences(saved, expected)
    if found:
        rest = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise InputError(
            f"checkpoint {step_path} was written by another model or optimizer: "
            f"{'; '.join(found[:5])}{rest}; use the config it was trained with or another workdir"
        )


def list_steps(directory: epath.Path) -> list[int]:
    """The finished checkpoints of a directory, ascending; what a killed save left is not one."""
    if not directory.is_dir():
        return []
    return sorted(
        int(path.name)
        for path in directory.iterdir()
        if path.name.isdigit() and path.is_dir() and ocp.utils.is_checkpoint_finalized(path)
    )


def save_arguments(
    state: Any, record: Mapping[str, Any]
) -> tuple[ocp.args.CheckpointArgs, dict[str, Any]]:
    """What Orbax writes for a state, and the complete json record."""
    leaves = named_leaves(state)
    record = {"format": FORMAT, "leaves": describe(leaves), **record}
    json.dumps(record)  # fails here rather than in the background
    arrays = {
        # A host array could be written over by the caller while the background thread reads it.
        name: leaf if isinstance(leaf, jax.Array) else np.array(leaf)
        for name, leaf in leaves.items()
        if math.prod(record["leaves"][name][1])
    }
    tree = traverse_util.unflatten_dict(arrays, sep="/")
    items = {STATE: ocp.args.PyTreeSave(tree), RECORD: ocp.args.JsonSave(record)}
    return ocp.args.Composite(**items), record


def read_record(step_path: epath.Path) -> dict[str, Any]:
    """The json record of a checkpoint.

    Raises:
      BrokenCheckpoint: it is absent, torn, or not a record.
      InputError: it may not be read, or a newer version wrote it.
    """
    path = step_path / RECORD / "metadata"
    try:
        record = json.loads(path.read_text())
        version, _ = record["format"], record["leaves"]
    except PermissionError as error:
        raise InputError(f"{path} may not be read; check the permissions") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BrokenCheckpoint(f"{path.name} in {path.parent}: {brief(error)}") from error
    if version != FORMAT:
        raise InputError(
            f"checkpoint {step_path} has format {version}, this version reads {FORMAT}; "
            f"update solojax"
        )
    return record


def read_leaves(
    step_path: epath.Path, record: Mapping[str, Any], targets: Mapping[str, Any]
) -> dict[str, Any]:
    """Reads some leaves of a checkpoint.

    Args:
      step_path: the checkpoint.
      record: its record.
      targets: {path: template}. A `jax.Array` or `jax.ShapeDtypeStruct` gives a `jax.Array` with
        its sharding (the first local device if it has none); anything else gives NumPy.

    Returns:
      {path: array} with the dtypes and shapes of the record.

    Raises:
      BrokenCheckpoint: the files do not hold the arrays.
      InputError: the files may not be read.
    """
    try:
        return _restore(step_path, record["leaves"], targets)
    except Exception as error:
        if isinstance(error, PermissionError) or _NOT_DAMAGE.search(str(error)):
            raise InputError(f"checkpoint {step_path} cannot be read: {brief(error)}") from error
        # The fault may lie with the targets (a sharding that does not fit) or the device's memory.
        if is_whole(step_path, record):
            raise
        raise BrokenCheckpoint(brief(error)) from error


def is_whole(step_path: epath.Path, record: Mapping[str, Any]) -> bool:
    """Whether every array of a checkpoint can be read (reads them all to the host)."""
    try:
        _restore(step_path, record["leaves"], dict.fromkeys(record["leaves"]))
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True


def _restore(step_path: epath.Path, layout: Layout, targets: Mapping[str, Any]) -> dict[str, Any]:
    stored = {name: target for name, target in targets.items() if math.prod(layout[name][1])}
    if stored:
        # Without this file Orbax guesses the tree from the others, and fills what is lost by zeros.
        if not (step_path / STATE / "_METADATA").exists():
            raise FileNotFoundError(f"{step_path / STATE / '_METADATA'} is missing")
        arguments = ocp.args.PyTreeRestore(
            item=traverse_util.unflatten_dict(dict.fromkeys(stored, 0), sep="/"),
            restore_args=traverse_util.unflatten_dict(
                {name: _restore_argument(*layout[name], stored[name]) for name in stored}, sep="/"
            ),
            partial_restore=True,
        )
        # The handler itself, not a Checkpointer: no barrier that a process could miss by failing.
        tree = ocp.PyTreeCheckpointHandler().restore(step_path / STATE, args=arguments)
        leaves = traverse_util.flatten_dict(tree, sep="/")
    else:
        leaves = {}
    for name in targets.keys() - stored.keys():
        leaves[name] = _empty_array(*layout[name], targets[name])
    for name, leaf in leaves.items():
        if _describe_leaf(leaf) != list(layout[name]):
            raise ValueError(f"{name} is {_form(_describe_leaf(leaf))} instead of its description")
    return {name: leaves[name] for name in targets}


def _sharding(target: Any) -> jax.sharding.Sharding | None:
    """Where a leaf goes; None for the host."""
    if not isinstance(target, jax.Array | jax.ShapeDtypeStruct):
        return None
    if target.sharding is None:
        return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return target.sharding


def _restore_argument(dtype: str, shape: list[int], target: Any) -> ocp.RestoreArgs:
    sharding = _sharding(target)
    if sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(
        sharding=sharding, global_shape=tuple(shape), dtype=jax.numpy.dtype(dtype)
    )


def _empty_array(dtype: str, shape: list[int], target: Any) -> Any:
    empty, sharding = np.zeros(shape, jax.numpy.dtype(dtype)), _sharding(target)
    return empty if sharding is None else jax.device_put(empty, sharding)


def like_template(leaf: Any, template: Any) -> Any:
    """A restored leaf as the Python or NumPy scalar that the template holds."""
    if isinstance(template, bool | int | float):
        return type(template)(leaf)
    if isinstance(template, np.generic):
        return leaf[()]
    return leaf


def brief(error: BaseException) -> str:
    """The cause at the end of a (possibly long, many-line) storage error, on one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    match = re.match(r"(?:[A-Z_]+: )?.*?([^:\[]+?)\s*(?:\[[^\]]*\]\s*)*$", text)
    cause = match.group(1) if match else text
    return cause if len(cause) <= 160 else cause[:157] + "..."
