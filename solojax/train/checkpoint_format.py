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
import logging
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util

from solojax.errors import InputError

_logger = logging.getLogger(__name__)

FORMAT = 1
STATE, RECORD = "state", "metadata"
TEMPORARY = ocp.utils.TMP_DIR_SUFFIX
REMOVED = f"{TEMPORARY}-removed"  # of one whose files are being deleted
# Storage that refuses or does not answer says nothing about what it holds.
_NOT_DAMAGE = re.compile(r"PERMISSION_DENIED|UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED")
# How TensorStore's errors begin, which arrive as ValueError.
_STATUS = re.compile(r"[A-Z]+(_[A-Z]+)*: ")

Layout = Mapping[str, Any]  # {path: [dtype, shape]}


class BrokenCheckpoint(Exception):
    """A checkpoint whose files are truncated, absent or unreadable; says which and why."""


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by path, as in `opt_state/0/trace/neck/kernel`.

    Raises:
      ValueError: a key holds a slash, two paths differ by nothing but a dot for a slash,
        or the tree has no leaf at all.
      TypeError: a leaf is a typed PRNG key (store `jax.random.key_data` of it).
    """
    leaves, paths = {}, []
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        keys = [jax.tree_util.keystr((key,), simple=True) for key in path]
        if not keys or any("/" in key or not key for key in keys):
            raise ValueError(f"a state is a container whose keys have no slash, not {keys}")
        if jax.dtypes.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.extended):
            raise TypeError(f"{'/'.join(keys)} is a typed PRNG key: store jax.random.key_data")
        leaves["/".join(keys)] = leaf
        paths.append(".".join(keys))  # Orbax's own name of the leaf
    if not leaves:
        raise ValueError("a state without a leaf cannot be saved")
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ValueError(f"two leaves of the state would both be stored as {twice}")
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


def without_renewed(
    path: epath.Path, saved: Layout, expected: Layout, branch: str
) -> tuple[Layout, Layout]:
    """Both layouts, without the branch where they differ in it, which a warning says.

    Args:
      path: of the checkpoint, for the warning.
      saved: what is in it.
      expected: what the state has.
      branch: the path of what can begin anew, as "extra/queues".
    """
    parts = [
        {name: leaf for name, leaf in layout.items() if name.startswith(f"{branch}/")}
        for layout in (saved, expected)
    ]
    found = differences(*parts)
    if not found:
        return saved, expected
    _logger.warning("checkpoint %s: %s begins anew, for %s", path, branch, found[0])
    return tuple(
        {name: leaf for name, leaf in layout.items() if name not in part}
        for layout, part in zip((saved, expected), parts, strict=True)
    )


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


def save_arguments(state: Any, entries: Mapping[str, Any]) -> ocp.args.CheckpointArgs:
    """What Orbax writes: the state, and its record with the given entries."""
    leaves = named_leaves(state)
    record = {"format": FORMAT, "leaves": describe(leaves), **entries}
    json.dumps(record)  # fails here rather than in the background
    arrays = {
        name: leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        for name, leaf in leaves.items()
        if math.prod(record["leaves"][name][1])
    }
    tree = traverse_util.unflatten_dict(arrays, sep="/")
    items = {STATE: ocp.args.PyTreeSave(tree), RECORD: ocp.args.JsonSave(record)}
    return ocp.args.Composite(**items)


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
        raise BrokenCheckpoint(f"{RECORD}/metadata: {brief(error)}") from error
    if version != FORMAT:
        raise InputError(
            f"checkpoint {step_path} has format {version}, this version reads {FORMAT}; "
            f"update solojax"
        )
    return record


def read_leaves(
    step_path: epath.Path, record: Mapping[str, Any], names: Iterable[str]
) -> dict[str, np.ndarray]:
    """Reads some leaves of a checkpoint to the host, whatever devices it was written from.

    Raises:
      BrokenCheckpoint: the files do not hold the arrays that the record describes.
      InputError: the storage refuses or does not answer.
    """
    try:
        return _read(step_path, {name: record["leaves"][name] for name in names})
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, PermissionError) or _NOT_DAMAGE.match(str(error)):
            raise InputError(
                f"checkpoint {step_path} cannot be read: {brief(error)}; check the storage"
            ) from error
        raise BrokenCheckpoint(brief(error)) from error


def is_whole(step_path: epath.Path) -> bool:
    """Whether the record and every array of a checkpoint can be read (reads them all)."""
    try:
        record = read_record(step_path)
        read_leaves(step_path, record, record["leaves"])
    except BrokenCheckpoint:
        return False
    return True


def _read(step_path: epath.Path, layout: Layout) -> dict[str, np.ndarray]:
    stored = [name for name, (_, shape) in layout.items() if math.prod(shape)]
    leaves = {
        name: np.zeros(shape, jax.numpy.dtype(dtype))
        for name, (dtype, shape) in layout.items()
        if not math.prod(shape)
    }
    if stored:
        leaves |= _read_stored(step_path / STATE, stored)
    for name, leaf in leaves.items():
        if _describe_leaf(leaf) != list(layout[name]):
            raise ValueError(f"{name} is {_form(_describe_leaf(leaf))}, not {_form(layout[name])}")
    return {name: leaves[name] for name in layout}


def _read_stored(path: epath.Path, names: list[str]) -> dict[str, np.ndarray]:
    to_host = ocp.RestoreArgs(restore_type=np.ndarray)
    arguments = ocp.args.PyTreeRestore(
        item=traverse_util.unflatten_dict(dict.fromkeys(names, 0), sep="/"),
        restore_args=traverse_util.unflatten_dict(dict.fromkeys(names, to_host), sep="/"),
        partial_restore=True,
    )
    # The handler itself, not a Checkpointer: no barrier that a process could miss by failing.
    tree = ocp.PyTreeCheckpointHandler().restore(path, args=arguments)
    return traverse_util.flatten_dict(tree, sep="/")


def place_like(leaf: np.ndarray, template: Any) -> Any:
    """A leaf read from a checkpoint, as what the template holds in its place.

    A `jax.Array` or `jax.ShapeDtypeStruct` gives a `jax.Array` with its sharding (the first local
    device if it has none), a Python or NumPy scalar its like, anything else the NumPy array.
    """
    if isinstance(template, jax.Array | jax.ShapeDtypeStruct):
        sharding = template.sharding
        if sharding is None:
            sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])
    if isinstance(template, bool | int | float):
        return type(template)(leaf)
    if isinstance(template, np.generic):
        return leaf[()]
    return leaf


def is_storage_error(error: BaseException) -> bool:
    """Whether a failed save is the storage's fault rather than the caller's."""
    return isinstance(error, OSError) or bool(_STATUS.match(str(error)))


def brief(error: BaseException) -> str:
    """The cause, on one line, of an error that may be long and carry TensorStore's whole spec."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, KeyError):
        return f"no entry {error}"
    text = re.sub(r"(\s*\[[^\[\]]*='.*)$", "", " ".join(str(error).split())).rstrip(".")
    if _STATUS.match(text):  # the outer parts only say what was being done
        text = ": ".join(text.split(": ")[-2:])
    return text if len(text) <= 200 else f"{text[:197]}..."
