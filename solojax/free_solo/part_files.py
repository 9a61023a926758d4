"""Results of long work in parts on disk, so that work that was stopped goes on."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from solojax.errors import InputError
from solojax.train.shared_files import wait_for_files

_OWNER = "run.json"


class PartFiles:
    """The folder OUTPUT.parts beside a result, in which processes leave what they have finished.

    Args:
      output: the file that the parts are for.
      fingerprint: of everything that decides the results.
    """

    def __init__(self, output: Path, fingerprint: str):
        self.folder = output.with_name(f"{output.name}.parts")
        self._fingerprint = fingerprint

    def open(self) -> int:
        """Makes the folder, or finds out that it is of this work; how often that was begun before.

        Of several processes the first calls it.

        Raises:
          InputError: the parts are of other work.
        """
        owner = self.folder / _OWNER
        self.folder.mkdir(parents=True, exist_ok=True)
        begun = 0
        if owner.exists():
            known = _read(owner)
            begun = known["begun"]
            if known["fingerprint"] != self._fingerprint:
                raise InputError(
                    f"{self.folder}: a run with another checkpoint, other settings or other images "
                    "was stopped there; remove the folder, or give another output"
                )
        _write(owner, {"fingerprint": self._fingerprint, "begun": begun + 1})
        return begun

    def read(self, names: Iterable[str] = ()) -> dict[int, Any]:
        """All results that there are, by the number of the item.

        Args:
          names: of parts that have to be among them: those that other processes have just written.
            Storage that hosts share may show them late, and later still in the folder's listing.

        Raises:
          InputError: one of `names` does not appear, or a part cannot be read.
        """
        named = {self.folder / name for name in names}
        missing = sorted(wait_for_files(named))
        if missing:
            raise InputError(
                f"{missing[0]}: written by another process, but not there ({len(missing)} such "
                "files); the output must be on storage that all processes share"
            )
        found: dict[int, Any] = {}
        for path in sorted(named.union(self.folder.glob("part_*.json"))):
            found.update((index, result) for index, result in _read(path)["items"])
        return found

    def remove_foreign(self) -> None:
        """Removes the folder if its parts are of other work."""
        owner = self.folder / _OWNER
        if owner.exists() and _read(owner)["fingerprint"] != self._fingerprint:
            self.remove()

    def remove(self) -> None:
        """Removes the folder, if it is there."""
        if self.folder.exists():
            shutil.rmtree(self.folder)


class PartWriter:
    """Gathers results and writes a part now and then; the last when the context ends, even badly.

    Args:
      parts: where to.
      begun: what `PartFiles.open` returned, the same on all processes.
      process: of this process.
      items: of a part, at most.
      seconds: after which a part is written, however small it is.

    Attributes:
      names: of the parts written so far.
    """

    def __init__(
        self, parts: PartFiles, begun: int, process: int, items: int = 256, seconds: float = 30.0
    ):
        self.names: list[str] = []
        self._unused: Iterator[str] = (
            f"part_{begun:04d}_{process:05d}_{number:06d}.json" for number in range(10**6)
        )
        self._folder, self._most, self._seconds = parts.folder, items, seconds
        self._items: list[tuple[int, Any]] = []
        self._since = time.monotonic()

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, *_) -> None:
        self._flush()

    def add(self, index: int, result: Any) -> None:
        """Keeps the result of an item, anything that json holds."""
        self._items.append((index, result))
        if len(self._items) >= self._most or time.monotonic() - self._since > self._seconds:
            self._flush()

    def _flush(self) -> None:
        if self._items:
            name = next(self._unused)
            self._folder.mkdir(parents=True, exist_ok=True)  # may not show yet, made by another
            _write(self._folder / name, {"items": self._items})
            self.names.append(name)
        self._items, self._since = [], time.monotonic()


def _write(path: Path, contents: dict) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(contents))
    os.replace(temporary, path)


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot read what was finished before ({error}); remove the file to have it "
            "made again"
        ) from None
