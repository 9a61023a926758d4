"""PyTorch's zip format, written without PyTorch, as `torch.load(weights_only=True)` reads it."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from solojax.interop.lazy_arrays import contiguous_strides
from solojax.interop.pickled_tensors import STORAGE_DTYPES

_STORAGES = {dtype: storage for storage, dtype in STORAGE_DTYPES.items()}
_FOLDER = "archive"
_DATE = (1980, 1, 1, 0, 0, 0)  # the same arrays give the same bytes


def write_torch_zip(path: Path, tree: Mapping[str, Any]) -> None:
    """Writes a dict as torch.save would, arrays as contiguous CPU tensors.

    Args:
      path: of the file.
      tree: nested dicts with text as keys, tuples and lists of arrays, text, numbers, bools, None.

    Raises:
      TypeError: something else occurs in it.
    """
    writer = _Pickle()
    writer.value(tree)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:

        def add(name: str, content: bytes) -> None:
            archive.writestr(zipfile.ZipInfo(f"{_FOLDER}/{name}", _DATE), content)

        add("data.pkl", b"\x80\x02" + bytes(writer.code) + b".")
        add("byteorder", b"little")
        for key, array in enumerate(writer.arrays):
            add(f"data/{key}", array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        add("version", b"3\n")


class _Pickle:
    """Instructions of pickle protocol 2; storages are referred to by their number."""

    def __init__(self):
        self.code = bytearray()
        self.arrays: list[np.ndarray] = []

    def value(self, value: Any) -> None:
        """Appends what makes a value."""
        if value is None or isinstance(value, (bool, np.bool_)):
            self.code += {None: b"N", True: b"\x88", False: b"\x89"}[value]
        elif isinstance(value, int):
            self._integer(value)
        elif isinstance(value, float):
            self.code += b"G" + struct.pack(">d", value)
        elif isinstance(value, str):
            raw = value.encode()
            self.code += b"X" + struct.pack("<I", len(raw)) + raw
        elif isinstance(value, np.ndarray):
            self._tensor(value)
        elif isinstance(value, Mapping):
            self._container(b"}", [part for item in value.items() for part in item], b"u")
        elif isinstance(value, tuple):
            self._container(b"", value, b"t")
        elif isinstance(value, list):
            self._container(b"]", value, b"e")
        else:
            raise TypeError(f"a {type(value).__name__} cannot be written into a checkpoint file")

    def _container(self, start: bytes, parts, end: bytes) -> None:
        self.code += start + b"("
        for part in parts:
            self.value(part)
        self.code += end

    def _integer(self, value: int) -> None:
        raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        self.code += b"\x8a" + struct.pack("<B", len(raw)) + raw

    def _global(self, module: str, name: str) -> None:
        self.code += f"c{module}\n{name}\n".encode()

    def _tensor(self, array: np.ndarray) -> None:
        """torch._utils._rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())."""
        if array.dtype.name not in _STORAGES:
            raise TypeError(f"PyTorch has no tensors of type {array.dtype.name}")
        self._global("torch._utils", "_rebuild_tensor_v2")
        self.code += b"(("
        self.value("storage")
        self._global("torch", _STORAGES[array.dtype.name])
        self.value(str(len(self.arrays)))
        self.value("cpu")
        self.value(int(array.size))
        self.code += b"tQ"
        self.value(0)
        self.value(tuple(array.shape))
        self.value(contiguous_strides(array.shape))
        self.value(False)
        self._global("collections", "OrderedDict")
        self.code += b")RtR"
        self.arrays.append(np.array(array, order="C"))
