"""Checkpoint layouts: tables that rename and reorder tensors, read in either direction.

A layout has a row per sort of module: its name in the foreign file beside its path among our
variables, both with numbers in braces (see `solojax.interop.names`), and the tensors it is made of.
The same row serves import and export. A further layout is a further table, not further code.

Where two rows have the same foreign name or the same path, the first one counts: a later one then
stands for an older spelling, which is read and not written.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from solojax.errors import InputError
from solojax.interop.names import name_outline, read_name, template_outline, write_name
from solojax.interop.stems import TORCHVISION, Stem
from solojax.interop.trees import Path, flatten, unflatten

MAX_NAMES = 20  # of one sort in an error message
# Mean and deviation of the input, which may stand beside the weights in any layout.
PIXEL_TENSORS = ("pixel_mean", "pixel_std")

PyTree = Any  # nested dicts of arrays or of anything with a shape


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a module.

    Attributes:
      source: its name after the module's in the foreign file, where a dot comes between them unless
        it is empty or begins with an underscore.
      collection: "params", "batch_stats" or what else a task keeps.
      leaf: our name for it.
      axes: the foreign axes in our order; None keeps them.
      optional: whether a module may be without it.
      integer: whether it holds whole numbers.
      scalar: whether it is a vector of one number there, and a plain number here.
    """

    source: str
    collection: str
    leaf: str
    axes: tuple[int, ...] | None = None
    optional: bool = False
    integer: bool = False
    scalar: bool = False

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """A foreign array with its axes in our order: a contiguous copy of the same dtype."""
        if self.scalar and array.shape == (1,):
            return array[0].copy()
        return np.array(array.transpose(self.axes) if self.axes else array, order="C")

    def to_foreign(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `to_ours`."""
        if self.scalar:
            array = array.reshape(1)
        return np.array(array.transpose(self._inverse) if self.axes else array, order="C")

    def foreign_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The foreign shape of a tensor that has `shape` here."""
        if self.scalar:
            return (1,)
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
LINEAR = (
    Tensor("weight", "params", "kernel", axes=(1, 0)),
    Tensor("bias", "params", "bias", optional=True),
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

    def foreign_name(self, tensor: Tensor) -> str:
        """Template of a tensor's name in the foreign file."""
        dot = "." if tensor.source and not tensor.source.startswith("_") else ""
        return f"{self.source}{dot}{tensor.source}"

    def our_name(self, tensor: Tensor) -> str:
        """Template of a tensor's path among our variables, with slashes, collection first."""
        return f"{tensor.collection}/{self.path}/{tensor.leaf}"


Entry = tuple[Row, Tensor]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A foreign layout.

    Attributes:
      title: how messages call it.
      rows: its modules.
      ignored: regular expressions of foreign tensors that carry nothing for us.
      name: how the command line calls it.
      marks: foreign tensors that no file of this layout lacks.
      stem: what the networks in it expect of an image, unless the file says otherwise.
      outer: where a file keeps the state dict.
      prefix: before all names in a file that is written; read or not, it is taken off in reading.
    """

    title: str
    rows: tuple[Row, ...]
    ignored: tuple[str, ...] = ()
    name: str = ""
    marks: tuple[str, ...] = ()
    stem: Stem = TORCHVISION
    outer: str = "state_dict"
    prefix: str = ""

    def from_foreign(self, name: str) -> tuple[Path, Tensor] | None:
        """Our path, collection first, for a foreign tensor name; None if it is not in the table."""
        found = self._find_foreign(name)
        if found is None:
            return None
        row, tensor, letters = found
        return tuple(write_name(row.our_name(tensor), letters).split("/")), tensor

    def to_foreign(self, path: Path) -> tuple[str, Tensor] | None:
        """The foreign tensor name for our path; None if it is not in the table."""
        name = "/".join(path)
        for row, tensor in self._by_ours.get(name_outline(name), ()):
            letters = read_name(row.our_name(tensor), name)
            if letters is not None:
                return write_name(row.foreign_name(tensor), letters), tensor
        return None

    def siblings(self, name: str) -> list[str]:
        """Foreign names of the tensors that the module of foreign tensor `name` cannot lack."""
        found = self._find_foreign(name)
        if found is None:
            return []
        row, _, letters = found
        needed = (tensor for tensor in row.tensors if not tensor.optional)
        return [write_name(row.foreign_name(tensor), letters) for tensor in needed]

    def _find_foreign(self, name: str) -> tuple[Row, Tensor, dict[str, int]] | None:
        for row, tensor in self._by_foreign.get(name_outline(name), ()):
            letters = read_name(row.foreign_name(tensor), name)
            if letters is not None:
                return row, tensor, letters
        return None

    @functools.cached_property
    def _by_foreign(self) -> dict[str, list[Entry]]:
        return _index((row.foreign_name(tensor), (row, tensor)) for row, tensor in self._entries)

    @functools.cached_property
    def _by_ours(self) -> dict[str, list[Entry]]:
        return _index((row.our_name(tensor), (row, tensor)) for row, tensor in self._entries)

    @property
    def _entries(self) -> list[Entry]:
        return [(row, tensor) for row in self.rows for tensor in row.tensors]

    @property
    def holds_heads(self) -> bool:
        """Whether it is one of whole networks, not of backbones."""
        return any(row.path.startswith("head/") for row in self.rows)

    def is_ignored(self, name: str) -> bool:
        """Whether a foreign tensor is to be passed over."""
        return name in PIXEL_TENSORS or any(re.fullmatch(pattern, name) for pattern in self.ignored)


def _index(entries: Iterable[tuple[str, Entry]]) -> dict[str, list[Entry]]:
    """Entries by the outline of their template, so that few templates are tried per name."""
    index: dict[str, list[Entry]] = {}
    for template, entry in entries:
        index.setdefault(template_outline(template), []).append(entry)
    return index


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
    return {"params": {}, "batch_stats": {}} | unflatten(leaves)


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
    leaves = flatten(variables)
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
    for path, leaf in flatten(variables).items():
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
        for name, tensor in known.items()
        if not tensor.integer and not is_floating(arrays[name].dtype)
    ]
    return {
        "missing": sorted(missing),
        "unexpected": sorted(unexpected),
        "misshapen": sorted(misshapen),
        "not floating point": sorted(not_floats),
    }


def is_floating(dtype: np.dtype) -> bool:
    """Whether a dtype is one of floating-point numbers; bfloat16, unknown to NumPy, is."""
    return np.issubdtype(dtype, np.floating) or dtype.name == "bfloat16"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more
