"""Checkpoint layouts: tables that rename and reorder tensors, read in either direction.

A layout has a row per sort of module: its name in the foreign file beside its path among our
variables, both with numbers in braces (see `solojax.interop.names`), and the tensors it is made of.
The same row serves import and export. A further layout is a further table, not further code.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np
from flax import traverse_util

from solojax.errors import InputError
from solojax.interop.names import read_name, write_name
from solojax.structures import PyTree

MAX_NAMES = 20  # of one sort in an error message

Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a module.

    Attributes:
      source: its name after the module's in the foreign file.
      collection: "params" or "batch_stats".
      leaf: our name for it.
      axes: the foreign axes in our order; None keeps them.
      optional: whether a module may be without it.
    """

    source: str
    collection: str
    leaf: str
    axes: tuple[int, ...] | None = None
    optional: bool = False

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """A foreign array with its axes in our order: a contiguous copy of the same dtype."""
        return np.array(array.transpose(self.axes) if self.axes else array, order="C")

    def to_foreign(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `to_ours`."""
        return np.array(array.transpose(self._inverse) if self.axes else array, order="C")

    def foreign_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The foreign shape of a tensor that has `shape` here."""
        return tuple(shape[axis] for axis in self._inverse) if self.axes else tuple(shape)

    @property
    def _inverse(self) -> tuple[int, ...]:
        return tuple(int(axis) for axis in np.argsort(self.axes))


OIHW_TO_HWIO = (2, 3, 1, 0)
CONV = (
    Tensor("weight", "params", "kernel", axes=OIHW_TO_HWIO),
    Tensor("bias", "params", "bias", optional=True),
)
NORM = (Tensor("weight", "params", "scale"), Tensor("bias", "params", "bias"))
BATCH_NORM = NORM + (
    Tensor("running_mean", "batch_stats", "mean"),
    Tensor("running_var", "batch_stats", "var"),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One sort of module.

    Attributes:
      source: foreign module name, dot-separated, with numbers in braces.
      path: our module path, slash-separated, with the same letters.
      tensors: what the module is made of.
    """

    source: str
    path: str
    tensors: tuple[Tensor, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A foreign layout.

    Attributes:
      title: how messages call it.
      rows: its modules; the first row that matches a name counts.
      ignored: regular expressions of foreign tensors that carry nothing for us.
    """

    title: str
    rows: tuple[Row, ...]
    ignored: tuple[str, ...] = ()

    def from_foreign(self, name: str) -> tuple[Path, Tensor] | None:
        """Our path, collection first, for a foreign tensor name; None if it is not in the table."""
        module, _, suffix = name.rpartition(".")
        for row in self.rows:
            letters = read_name(row.source, module)
            for tensor in row.tensors if letters is not None else ():
                if tensor.source == suffix:
                    module_path = write_name(row.path, letters).split("/")
                    return (tensor.collection, *module_path, tensor.leaf), tensor
        return None

    def to_foreign(self, path: Path) -> tuple[str, Tensor] | None:
        """The foreign tensor name for our path; None if it is not in the table."""
        collection, *module, leaf = path
        for row in self.rows:
            letters = read_name(row.path, "/".join(module))
            for tensor in row.tensors if letters is not None else ():
                if (tensor.collection, tensor.leaf) == (collection, leaf):
                    return f"{write_name(row.source, letters)}.{tensor.source}", tensor
        return None

    def siblings(self, name: str) -> list[str]:
        """Foreign names of the tensors that the module of foreign tensor `name` cannot lack."""
        module = name.rpartition(".")[0]
        for row in self.rows:
            if read_name(row.source, module) is not None:
                needed = (tensor for tensor in row.tensors if not tensor.optional)
                return [f"{module}.{tensor.source}" for tensor in needed]
        return []

    def is_ignored(self, name: str) -> bool:
        """Whether a foreign tensor is to be passed over."""
        return any(re.fullmatch(pattern, name) for pattern in self.ignored)


def import_state(
    layout: Layout, state: Mapping[str, np.ndarray], expected: PyTree | None = None
) -> dict[str, PyTree]:
    """Turns a foreign state dict into our variables.

    Args:
      layout: the table.
      state: foreign name to floating-point array.
      expected: the model's variables, as arrays or shapes (`jax.eval_shape(model.init, ...)`).
        Without it names are checked, and that no module lacks a tensor, but no shapes.

    Returns:
      {"params": tree, "batch_stats": tree} of NumPy arrays, dtypes kept.

    Raises:
      InputError: naming the tensors that are missing, unexpected, misshapen or not floating point.
    """
    arrays = {
        name: np.asarray(array) for name, array in state.items() if not layout.is_ignored(name)
    }
    problems = _problems(layout, arrays, None if expected is None else _shapes(layout, expected))
    if any(problems.values()):
        clauses = (f"{sort}: {_listed(names)}" for sort, names in problems.items() if names)
        raise InputError(
            f"the checkpoint, read as {layout.title}, does not fit; {'; '.join(clauses)}; "
            "check the model's settings and where the file comes from"
        )
    entries = {name: layout.from_foreign(name) for name in arrays}
    leaves = {path: tensor.to_ours(arrays[name]) for name, (path, tensor) in entries.items()}
    return {"params": {}, "batch_stats": {}} | traverse_util.unflatten_dict(leaves)


def export_state(layout: Layout, variables: PyTree) -> dict[str, np.ndarray]:
    """The inverse of `import_state`: our variables to a foreign state dict.

    Args:
      layout: the table.
      variables: {"params": tree, "batch_stats": tree} of arrays.

    Returns:
      Foreign name to NumPy array, dtypes kept.

    Raises:
      InputError: naming the leaves that the layout has no place for.
    """
    leaves = traverse_util.flatten_dict(variables)
    entries = {path: layout.to_foreign(path) for path in leaves}
    homeless = ["/".join(path) for path, entry in entries.items() if entry is None]
    if homeless:
        raise InputError(
            f"{layout.title} has no place for {_listed(homeless)}; choose another layout"
        )
    return {
        name: tensor.to_foreign(np.asarray(leaves[path]))
        for path, (name, tensor) in entries.items()
    }


def _shapes(layout: Layout, variables: PyTree) -> dict[str, tuple[int, ...]]:
    """Foreign names and shapes of our variables; our own path where the layout has no place."""
    shapes = {}
    for path, leaf in traverse_util.flatten_dict(variables).items():
        entry = layout.to_foreign(path)
        if entry is None:
            shapes["/".join(path)] = tuple(leaf.shape)
        else:
            shapes[entry[0]] = entry[1].foreign_shape(leaf.shape)
    return shapes


def _problems(
    layout: Layout,
    arrays: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]] | None,
) -> dict[str, list[str]]:
    """Foreign names of the tensors with which something is wrong, by what it is."""
    entries = {name: layout.from_foreign(name) for name in arrays}
    known = {name: entry[1] for name, entry in entries.items() if entry is not None}
    unexpected = arrays.keys() - known.keys()
    missing = {sibling for name in known for sibling in layout.siblings(name)} - known.keys()
    misshapen = [
        f"{name} ({arrays[name].ndim} axes, not {len(tensor.axes)})"
        for name, tensor in known.items()
        if tensor.axes and arrays[name].ndim != len(tensor.axes)
    ]
    if shapes is not None:
        unexpected |= known.keys() - shapes.keys()
        missing = shapes.keys() - known.keys()
        misshapen = [
            f"{name} ({arrays[name].shape}, not {shapes[name]})"
            for name in known.keys() & shapes.keys()
            if arrays[name].shape != shapes[name]
        ]
    not_floats = [
        f"{name} ({arrays[name].dtype})"
        for name in known
        if not np.issubdtype(arrays[name].dtype, np.floating)
    ]
    return {
        "missing": sorted(missing),
        "unexpected": sorted(unexpected),
        "misshapen": sorted(misshapen),
        "not floating point": sorted(not_floats),
    }


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more
