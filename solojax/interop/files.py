"""State dicts of PyTorch out of .pth, .pt, .pkl and .safetensors files, as NumPy arrays.

What a file is shows in its first bytes, not in its name. Reading never runs what is in it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np

from solojax.errors import InputError
from solojax.interop.lazy_arrays import BrokenFile, LazyArray
from solojax.interop.pickled_tensors import NUMPY_CALLS, NumpyArray
from solojax.interop.safetensors_file import looks_like_safetensors, read_safetensors
from solojax.interop.torch_legacy import LEGACY_START, read_legacy
from solojax.interop.torch_zip import read_torch_zip
from solojax.interop.unpickling import Refused, load_pickle

# Names under which a file may keep its state dict, the first that holds tensors counting.
OUTERS = ("state_dict", "model", "model_state", "model_state_dict", "network", "blobs")
_AVERAGES = ("ema_state_dict", "model_ema", "state_dict_ema", "ema_state", "ema")
_DATA_PARALLEL = "module."
_PICKLE_STARTS = (b"\x80", b"(", b"}", b"]", b"c")
_MAX_SHARING = 8  # tensors together may be so many times as large as the file
_MAX_CLASSES = 100_000


@dataclasses.dataclass(frozen=True)
class ForeignFile:
    """A state dict and what came with it.

    Attributes:
      path: of the file.
      arrays: tensor name to array, dtypes as in the file, `module.` prefixes taken off.
      outer: the entry of the file under which the state dict lay; "" for a bare one.
      meta: what the file says of itself, where it does: "author", "epoch", "iteration", "arch"
        and "classes", a tuple of names.
      notes: sentences on what was changed or left out.
    """

    path: str
    arrays: dict[str, np.ndarray]
    outer: str = ""
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_state(path: str | os.PathLike) -> ForeignFile:
    """Reads a checkpoint file of PyTorch, detectron2 or safetensors.

    Args:
      path: of a zip archive of torch.save, an older file of it (needs PyTorch), a pickle of NumPy
        arrays, or a safetensors file.

    Raises:
      InputError: the file is absent, cut short, no checkpoint, or asks for code to be run.
    """
    path = Path(path)
    try:
        tree = _read_tree(path)
        outer, state, notes = _find_state(tree, path)
        arrays, more = _named_arrays(state)
        return ForeignFile(
            path=str(path),
            arrays=_read_arrays(arrays, os.path.getsize(path)),
            outer=outer,
            meta=_read_meta(tree),
            notes=(*notes, *more),
        )
    except Refused as refusal:
        raise InputError(_refusal(path, str(refusal))) from refusal
    except BrokenFile as error:
        raise InputError(
            f"checkpoint {path}: {error}; fetch or save the file again, and give a .pth, .pt, .pkl "
            "or .safetensors file of weights"
        ) from error
    except OSError as error:
        raise InputError(
            f"checkpoint {path}: cannot be read ({error.strerror or error}); give the path of a "
            "file that can"
        ) from error


def _read_tree(path: Path) -> Any:
    with open(path, "rb") as file:
        start = file.read(16)
    if not start:
        raise BrokenFile("it is empty")
    if start.startswith(b"PK\x03\x04") or start.startswith(b"PK\x05\x06"):
        return read_torch_zip(path)
    if start.startswith(LEGACY_START[:16]):
        return read_legacy(path)
    if looks_like_safetensors(start):
        tensors, metadata = read_safetensors(path)
        return tensors | {"meta": metadata}
    if start.startswith(b"version https:"):
        raise BrokenFile("it is a Git LFS pointer, which stands for a file that was not fetched")
    if start[:1] not in _PICKLE_STARTS:
        raise BrokenFile("it is in no format of weights that is known")
    return load_pickle(path.read_bytes(), NUMPY_CALLS)


def _refusal(path: Path, what: str) -> str:
    advice = (
        "if you trust whoever made it, load it with PyTorch and save its state_dict() alone by "
        "torch.save({'state_dict': ...})"
    )
    if what.startswith("torch.nn."):
        return f"checkpoint {path}: it holds a whole module ({what}), not a state dict; {advice}"
    return (
        f"checkpoint {path}: refused, since its pickle asks for {what}, which weights do not need "
        f"(nothing of it was run); {advice}"
    )


def _lazy(value: Any) -> LazyArray | None:
    value = value.array if isinstance(value, NumpyArray) else value
    return value if isinstance(value, LazyArray) else None


def _holds_arrays(value: Any) -> bool:
    return isinstance(value, dict) and any(_lazy(entry) is not None for entry in value.values())


def _find_state(tree: Any, path: Path) -> tuple[str, dict, list[str]]:
    """Where the state dict lies: its outer name, itself, and notes on what lies beside it."""
    if not isinstance(tree, dict):
        raise BrokenFile(f"it holds a {type(tree).__name__}, not a dict of tensors")
    inside = [name for name in OUTERS if _holds_arrays(tree.get(name))]
    notes = [
        f"{name} beside it, a moving average's copy, is left alone"
        for name in _AVERAGES
        if _holds_arrays(tree.get(name))
    ]
    if inside:
        return inside[0], tree[inside[0]], notes
    if _holds_arrays(tree):
        return "", tree, notes
    names = ", ".join(str(key)[:40] for key in list(tree)[:8] if isinstance(key, str))
    raise BrokenFile(
        f"it holds no state dict: its entries are {names or 'none'}, and tensors are sought in it "
        f"and under {', '.join(OUTERS)}"
    )


def _named_arrays(state: dict) -> tuple[dict[str, LazyArray], list[str]]:
    """Tensors by name without `module.`, the copies of a moving average left out; notes."""
    named = {key: _lazy(value) for key, value in state.items() if isinstance(key, str)}
    arrays = {key: value for key, value in named.items() if value is not None}
    if not arrays:
        raise BrokenFile("its tensors have no names")
    notes = []
    averages = [key for key in arrays if key.startswith("ema_") and "." not in key]
    if averages and len(averages) < len(arrays):
        notes.append(
            f"{len(averages)} tensors called ema_... are the copies that a moving average swaps "
            "with the weights: ignored"
        )
        arrays = {key: value for key, value in arrays.items() if key not in set(averages)}
    if all(key.startswith(_DATA_PARALLEL) for key in arrays):
        notes.append("the prefix 'module.' of DataParallel is taken off")
        while all(key.startswith(_DATA_PARALLEL) for key in arrays):
            arrays = {key.removeprefix(_DATA_PARALLEL): value for key, value in arrays.items()}
    return arrays, notes


def _read_arrays(arrays: dict[str, LazyArray], file_size: int) -> dict[str, np.ndarray]:
    for array in arrays.values():
        array.check()
    if sum(array.nbytes for array in arrays.values()) > _MAX_SHARING * file_size:
        raise BrokenFile("its tensors together are many times larger than the file")
    cache: dict[Hashable, bytes] = {}
    return {name: array.read(cache) for name, array in arrays.items()}


def _read_meta(tree: dict) -> dict[str, Any]:
    """The few entries that are of use, if they are what they should be."""
    inner = tree.get("meta") if isinstance(tree.get("meta"), dict) else {}
    data = inner.get("dataset_meta") if isinstance(inner.get("dataset_meta"), dict) else {}
    found = {
        "author": tree.get("__author__") or tree.get("author"),
        "arch": tree.get("arch"),
        "epoch": tree.get("epoch", inner.get("epoch")),
        "iteration": tree.get("iteration", inner.get("iter")),
    }
    meta = {key: value for key, value in found.items() if type(value) in (str, int)}
    for classes in (inner.get("CLASSES"), data.get("CLASSES"), data.get("classes")):
        if isinstance(classes, (list, tuple)) and 0 < len(classes) <= _MAX_CLASSES:
            if all(isinstance(name, str) for name in classes):
                meta.setdefault("classes", tuple(classes))
    return meta
