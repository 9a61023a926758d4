"""The safetensors format: eight bytes of length, a json header, then raw little-endian numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from solojax.interop.lazy_arrays import (
    BrokenFile,
    LazyArray,
    Storage,
    contiguous_strides,
    numpy_dtype,
)

MAX_HEADER = 100_000_000
_METADATA = "__metadata__"
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
_CODES = {name: code for code, name in _DTYPES.items()}


def looks_like_safetensors(start: bytes) -> bool:
    """Whether a file that begins so may be one: a plausible length, then a brace."""
    return len(start) >= 9 and start[8:9] == b"{" and _length(start) <= MAX_HEADER


def read_safetensors(path: Path) -> tuple[dict[str, LazyArray], dict[str, str]]:
    """The tensors by name, and the text that the file says of itself.

    Raises:
      BrokenFile: the header is damaged, or a tensor lies outside the file.
      OSError: it cannot be read.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        length = _length(file.read(8))
        if length > min(size - 8, MAX_HEADER):
            raise BrokenFile(f"its header of {length} bytes is longer than the file")
        header = _parse(file.read(length))
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict):
        raise BrokenFile("its header is damaged: metadata is no object")
    tensors = {name: _tensor(path, name, entry, 8 + length) for name, entry in header.items()}
    if sum(array.nbytes for array in tensors.values()) > size - 8 - length:
        raise BrokenFile("its tensors overlap")
    return tensors, {str(key): str(value) for key, value in metadata.items()}


def write_safetensors(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes arrays, little-endian and in order of name; the same arrays give the same bytes."""
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    offset = 0
    for name in sorted(arrays):
        array = arrays[name]
        header[name] = {
            "dtype": _CODES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in sorted(arrays):
            array = np.ascontiguousarray(arrays[name])
            file.write(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())


def _length(start: bytes) -> int:
    return int.from_bytes(start[:8], "little")


def _parse(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise BrokenFile("its header is damaged: it is no json") from error
    if not isinstance(header, dict):
        raise BrokenFile("its header is damaged: it is no json object")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name occurs twice")
    return made


def _tensor(path: Path, name: str, entry: Any, start: int) -> LazyArray:
    try:
        dtype = numpy_dtype(_DTYPES[entry["dtype"]])
        shape = tuple(entry["shape"])
        begin, end = entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenFile(f"its header is damaged at {name[:80]}") from error
    if any(type(number) is not int or number < 0 for number in (*shape, begin, end)):
        raise BrokenFile(f"its header is damaged at {name[:80]}")

    def read() -> bytes:
        with open(path, "rb") as file:
            file.seek(start + begin)
            return file.read(end - begin)

    if not begin <= end <= os.path.getsize(path) - start:
        raise BrokenFile(f"its tensor {name[:80]} lies beyond the end of the file")
    storage = Storage(name, end - begin, read)
    array = LazyArray(storage, dtype, shape, 0, contiguous_strides(shape[:20]))
    array.check()
    if array.nbytes != end - begin:
        raise BrokenFile(f"its tensor {name[:80]} has {end - begin} bytes, not {array.nbytes}")
    return array
