"""What a checkpoint's pickle may ask for: containers, NumPy arrays and PyTorch tensors.

Nothing here calls NumPy or PyTorch on a pickle's behalf: every entry of `PERMITTED` makes a
description that is checked before an array comes of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from solojax.interop.lazy_arrays import (
    MAX_AXES,
    MAX_SIZE,
    BrokenFile,
    LazyArray,
    Storage,
    contiguous_strides,
    numpy_dtype,
)
from solojax.interop.unpickling import Global, Inert, Refused, name_of

STORAGE_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_TORCH_DTYPES = (
    "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 uint16 uint32 uint64 bool"
).split()
_NUMPY_CODES = ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1")
_HISTORY = Global("mmengine.logging.history_buffer", "HistoryBuffer")


class NumpyType:
    """A dtype in the making: plain numbers alone."""

    def __init__(self, code: Any = None, *_):
        text = code if isinstance(code, str) else name_of(code)
        self.code = text.lstrip("<>=|")
        self.byteorder = ">" if text.startswith(">") else "<"
        if self.code not in _NUMPY_CODES:
            raise Refused(f"NumPy arrays of type {text[:40]!r}")

    def set_state(self, state: Any) -> None:
        """Takes the byte order; refuses the fields of structured types."""
        if not isinstance(state, tuple) or len(state) < 5 or state[2:5] != (None, None, None):
            raise Refused("NumPy arrays of a structured type")
        self.byteorder = ">" if state[1] == ">" else "<"

    @property
    def dtype(self) -> np.dtype:
        """The dtype."""
        return np.dtype(self.code).newbyteorder(self.byteorder)


class NumpyArray:
    """An array in the making."""

    def __init__(self):
        self.array: LazyArray | None = None

    def set_state(self, state: Any) -> None:
        """Takes shape, type and bytes."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise BrokenFile("its pickle is damaged: a NumPy array has an odd state")
        _, shape, kind, fortran, raw = state
        self.array = _numpy_view(shape, kind, bool(fortran), raw)


class LatinText:
    """Bytes that a pickle spells as text; turned into bytes when they are asked for."""

    def __init__(self, text: str):
        self.text = text

    def __len__(self) -> int:
        return len(self.text)


def _encode(text: Any, encoding: Any = "latin1") -> LatinText:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Refused("text in another encoding than latin-1")
    return LatinText(text)


def _numpy_view(shape: Any, kind: Any, fortran: bool, raw: Any) -> LazyArray:
    if not isinstance(kind, NumpyType):
        raise Refused("NumPy arrays of an odd type")
    text = raw.text if isinstance(raw, LatinText) else raw
    if not isinstance(text, (str, bytes, bytearray)):
        raise Refused("NumPy arrays of objects")
    shape = (shape,) if isinstance(shape, int) else shape
    if (
        not isinstance(shape, tuple)
        or len(shape) > MAX_AXES
        or any(type(size) is not int or not 0 <= size <= MAX_SIZE for size in shape)
    ):
        raise BrokenFile("its pickle is damaged: a NumPy array has an odd shape")
    if math.prod(shape) * kind.dtype.itemsize != len(text):
        raise BrokenFile(
            f"a NumPy array of {math.prod(shape)} numbers comes with {len(text)} bytes"
        )
    strides = contiguous_strides(shape)
    if fortran:
        strides = tuple(reversed(contiguous_strides(tuple(reversed(shape)))))

    def read() -> bytes:
        try:
            return text.encode("latin-1") if isinstance(text, str) else bytes(text)
        except UnicodeEncodeError as error:
            raise BrokenFile("a NumPy array comes with text instead of bytes") from error

    return LazyArray(Storage(id(text), len(text), read), kind.dtype, shape, 0, strides)


def _reconstruct(kind: Any, *_) -> NumpyArray:
    if kind != Global("numpy", "ndarray"):
        raise Refused(f"NumPy arrays of the class {name_of(kind)}")
    return NumpyArray()


def _from_buffer(raw: Any, kind: Any, shape: Any, order: Any) -> NumpyArray:
    made = NumpyArray()
    made.array = _numpy_view(shape, kind, order == "F", raw)
    return made


class StorageType:
    """A storage together with the type of its numbers (None where the tensor tells)."""

    def __init__(self, storage: Storage, dtype: str | None, byteorder: str):
        self.storage, self.dtype, self.byteorder = storage, dtype, byteorder


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_, dtype=None) -> LazyArray:
    if not isinstance(storage, StorageType):
        raise BrokenFile("its pickle is damaged: a tensor without a storage")
    if not isinstance(size, (tuple, list)) or not isinstance(stride, (tuple, list)):
        raise BrokenFile("its pickle is damaged: a tensor without a size or strides")
    name = dtype or storage.dtype
    if name is None:
        raise BrokenFile("its pickle is damaged: a tensor without a type")
    array = LazyArray(
        storage.storage,
        numpy_dtype(name, storage.byteorder),
        tuple(size[: MAX_AXES + 1]),
        offset,
        tuple(stride[: MAX_AXES + 1]),
        storage.byteorder,
    )
    array.check()
    return array


def _tensor_v3(storage, offset, size, stride, requires_grad, hooks, dtype, *_) -> LazyArray:
    if not isinstance(dtype, Global) or dtype.module != "torch" or dtype.name not in _TORCH_DTYPES:
        raise Refused(f"tensors of type {name_of(dtype)}")
    return _tensor(storage, offset, size, stride, dtype=dtype.name)


def _parameter(data: Any, *_) -> Any:
    return data


def _from_type(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """A tensor that carries attributes, which are left behind."""
    action = _TENSOR_CALLS.get(function) if isinstance(function, Global) else None
    if action is None or not isinstance(arguments, tuple):
        raise Refused(f"a tensor made by {name_of(function)}")
    return action(*arguments)


def _inert(*_) -> Inert:
    return Inert()


# Containers are handed on, not copied: a pickle could ask for a thousand copies of a long one.


def _dict(items: Any = (), *_) -> dict:
    if isinstance(items, dict):
        return items
    if items not in ((), []):
        raise Refused("a dict made of pairs")
    return {}


def _no_bytes() -> bytes:
    """How old pickle protocols spell bytes that are empty."""
    return b""


def _default_dict(*_) -> dict:
    return {}


def _list(items: Any = (), *_) -> Any:
    return items if isinstance(items, (list, tuple)) else []


def _method_of_history(owner: Any, name: Any) -> Inert:
    """mmengine's training log keeps names of its own methods; no other attribute is looked up."""
    if owner != _HISTORY:
        raise Refused("builtins.getattr")
    return Inert()


_TENSOR_CALLS = {
    Global("torch._utils", "_rebuild_tensor"): _tensor,
    Global("torch._utils", "_rebuild_tensor_v2"): _tensor,
    Global("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
    Global("torch._utils", "_rebuild_parameter"): _parameter,
    Global("torch._utils", "_rebuild_parameter_with_state"): _parameter,
}

NUMPY_CALLS: Mapping[Global, Any] = (
    {
        Global("numpy", "ndarray"): None,
        Global("numpy", "dtype"): NumpyType,
        Global("_codecs", "encode"): _encode,
        Global("collections", "OrderedDict"): _dict,
        Global("collections", "defaultdict"): _default_dict,
        Global("collections", "Counter"): _default_dict,
    }
    | {
        Global(module, name): action
        for core in ("numpy.core", "numpy._core")
        for module, name, action in (
            (f"{core}.multiarray", "_reconstruct", _reconstruct),
            (f"{core}.multiarray", "scalar", _inert),
            (f"{core}.numeric", "_frombuffer", _from_buffer),
        )
    }
    | {
        Global(builtins, name): _list
        for builtins in ("builtins", "__builtin__")
        for name in ("set", "frozenset", "list", "tuple")
    }
    | {
        Global(builtins, name): action
        for builtins in ("builtins", "__builtin__")
        for name, action in (("dict", _dict), ("bytes", _no_bytes), ("int", None), ("float", None))
    }
)

TORCH_CALLS: Mapping[Global, Any] = (
    NUMPY_CALLS
    | _TENSOR_CALLS
    | {
        Global("torch._tensor", "_rebuild_from_type_v2"): _from_type,
        Global("torch.nn.parameter", "Parameter"): None,
        Global("torch", "Tensor"): None,
        Global("torch", "Size"): _list,
        Global("torch", "device"): _inert,
        Global("torch.storage", "UntypedStorage"): None,
        Global("torch.storage", "_UntypedStorage"): None,
        _HISTORY: _inert,
        Global("builtins", "getattr"): _method_of_history,
        Global("__builtin__", "getattr"): _method_of_history,
    }
    | {Global("torch", name): None for name in (*STORAGE_DTYPES, *_TORCH_DTYPES)}
)
