"""PyTorch's zip format (torch.save since 1.6), read without PyTorch.

The archive holds `NAME/data.pkl`, a pickle in which tensors refer to storages, and a file
`NAME/data/KEY` of raw bytes per storage. Nothing is compressed.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

from solojax.interop.lazy_arrays import BrokenFile, Storage, numpy_dtype
from solojax.interop.pickled_tensors import STORAGE_DTYPES, TORCH_CALLS, StorageType
from solojax.interop.unpickling import Global, load_pickle

_PICKLE = "data.pkl"


def read_torch_zip(path: Path) -> Any:
    """What the file's pickle describes, tensors as LazyArray.

    Raises:
      Refused: the pickle asks for more than data.
      BrokenFile: the archive is damaged or is no checkpoint.
      OSError: it cannot be read.
    """
    return _Archive(path).load()


class _Archive:
    """One file; opened anew for every storage that is read, so that nothing stays open."""

    def __init__(self, path: Path):
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                self.entries = {entry.filename: entry for entry in archive.infolist()}
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise BrokenFile(f"its zip archive is damaged ({error})") from error
        self.folder = self._find_folder()
        if any(entry.file_size != entry.compress_size for entry in self.entries.values()):
            raise BrokenFile("its zip archive is compressed, which PyTorch's are not")
        if sum(entry.file_size for entry in self.entries.values()) > path.stat().st_size:
            raise BrokenFile("its zip archive claims to hold more than the file does")
        order = self.folder + "byteorder"
        self.byteorder = ">" if order in self.entries and self._read(order) == b"big" else "<"

    def load(self) -> Any:
        """Reads the pickle; storages wait until they are asked for."""
        return load_pickle(self._read(self.folder + _PICKLE), TORCH_CALLS, self._storage)

    def _find_folder(self) -> str:
        if any("/code/" in name or name.endswith("constants.pkl") for name in self.entries):
            raise BrokenFile("it is a TorchScript program, not a state dict")
        folders = [name.removesuffix(_PICKLE) for name in self.entries if name.endswith(_PICKLE)]
        folders = [folder for folder in folders if folder.count("/") <= 1]
        if len(folders) != 1:
            raise BrokenFile("it is a zip archive without a data.pkl, not a PyTorch checkpoint")
        return folders[0]

    def _read(self, name: str) -> bytes:
        try:
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(name)
        except (
            zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, RuntimeError,
        ) as error:  # fmt: skip
            raise BrokenFile(f"its zip archive is damaged at {name} ({error})") from error

    def _storage(self, identity: Any) -> StorageType:
        """The storage that a pickle names as ("storage", type, key, device, length)."""
        if not isinstance(identity, tuple) or len(identity) != 5 or identity[0] != "storage":
            raise BrokenFile("its pickle is damaged: it names a storage oddly")
        _, kind, key, _, count = identity
        if not isinstance(kind, Global) or not isinstance(key, str) or type(count) is not int:
            raise BrokenFile("its pickle is damaged: it names a storage oddly")
        name = f"{self.folder}data/{key}"
        if name not in self.entries:
            raise BrokenFile(f"its storage {key[:40]} is missing")
        dtype = STORAGE_DTYPES.get(kind.name) if kind.module == "torch" else None
        wanted = count * (numpy_dtype(dtype).itemsize if dtype else 1)
        held = self.entries[name].file_size
        if wanted != held:
            raise BrokenFile(f"its storage {key} holds {held} bytes instead of {wanted}")
        return StorageType(Storage(name, held, lambda: self._read(name)), dtype, self.byteorder)
