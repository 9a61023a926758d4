"""Pickles and torch zip archives assembled by hand, hostile ones too; needs no PyTorch."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import numpy as np

FLOATS = ("torch", "FloatStorage")


def name(module: str, attribute: str) -> bytes:
    """A global."""
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    """A text."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    """A whole number of any size."""
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8b" + struct.pack("<i", len(raw)) + raw


def group(*parts: bytes) -> bytes:
    """A tuple."""
    return b"(" + b"".join(parts) + b"t"


def numbers(*values: int) -> bytes:
    """A tuple of whole numbers."""
    return group(*map(number, values))


def call(function: bytes, *arguments: bytes) -> bytes:
    """A call of a global."""
    return function + group(*arguments) + b"R"


def mapping(**entries: bytes) -> bytes:
    """A dict."""
    body = b"".join(text(key) + value for key, value in entries.items())
    return b"}(" + body + b"u"


def pickle_of(body: bytes, protocol: int = 2) -> bytes:
    """A whole pickle."""
    return b"\x80" + bytes([protocol]) + body + b"."


def storage(key: str, count: int, kind: tuple[str, str] = FLOATS) -> bytes:
    """A storage of `count` numbers kept in the archive."""
    return group(text("storage"), name(*kind), text(key), text("cpu"), number(count)) + b"Q"


def tensor(
    key: str, shape: tuple[int, ...], strides: tuple[int, ...], *, count: int, offset: int = 0,
    kind: tuple[str, str] = FLOATS,
) -> bytes:  # fmt: skip
    """A tensor over a storage, as torch.save writes it."""
    return call(
        name("torch._utils", "_rebuild_tensor_v2"),
        storage(key, count, kind),
        number(offset),
        numbers(*shape),
        numbers(*strides),
        b"\x89",
        call(name("collections", "OrderedDict")),
    )


def numpy_dtype(code: str, order: str = "<") -> bytes:
    """A NumPy dtype."""
    made = call(name("numpy", "dtype"), text(code), number(0), number(1))
    state = group(number(3), text(order), b"N", b"N", b"N", number(-1), number(-1), number(0))
    return made + state + b"b"


def numpy_array(
    shape: tuple[int, ...], raw: bytes, dtype: bytes | None = None, subtype: bytes | None = None
) -> bytes:
    """A NumPy array as Python 2 writes it: its bytes are a byte string."""
    made = call(
        name("numpy.core.multiarray", "_reconstruct"),
        subtype or name("numpy", "ndarray"),
        numbers(0),
        b"U\x01b",
    )
    spelt = b"T" + struct.pack("<i", len(raw)) + raw
    state = group(number(1), numbers(*shape), dtype or numpy_dtype("f4"), b"\x89", spelt)
    return made + state + b"b"


def write_zip(
    path: Path, body: bytes, storages: dict[str, bytes | np.ndarray] | None = None, **entries: bytes
) -> Path:
    """A torch archive with this pickle, these storages and further entries."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle_of(body))
        for entry, content in entries.items():
            archive.writestr(f"archive/{entry}", content)
        for key, content in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", bytes(content))
    return path
