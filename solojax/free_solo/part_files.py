"""Results of long work in parts on disk, so that work that was stopped goes on."""

from __future__ import annotations

import contextlib
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

Place = tuple[Path, int]  # of a result: its file, and the byte where its line begins


class PartFiles:
    """The folder OUTPUT.parts beside a result, in which processes leave what they have finished.

    A part has a line of json for every item: its number and its result.

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
        owner, begun = self.folder / _OWNER, 0
        if owner.exists():
            known = _read(owner)
            begun = known["begun"]
            if known["fingerprint"] != self._fingerprint:
                raise InputError(
                    f"{self.folder}: a run with another checkpoint, other settings or other images "
                    "was stopped there; remove the folder, or give another output"
                )
        else:
            self.remove()  # nobody knows what its parts were made with
        self.folder.mkdir(parents=True, exist_ok=True)
        _write(owner, json.dumps({"fingerprint": self._fingerprint, "begun": begun + 1}))
        return begun

    def scan(self, names: Iterable[str] = ()) -> Iterator[tuple[int, Place, Any]]:
        """All results that there are, one in memory at a time.

        Args:
          names: of parts that have to be among them: those that other processes have just written.
            Storage that hosts share may show them late, and later still in the folder's listing.

        Yields:
          The number of the item, the place of its result, for `load`, and the result. Of an item
          that was done twice the later counts.

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
        for path in sorted(named.union(self.folder.glob("part_*.jsonl"))):
            with _told(path), open(path, "rb") as file:
                place = 0
                for line in file:
                    index, result = json.loads(line)
                    yield index, (path, place), result
                    place += len(line)

    def load(self, place: Place) -> Any:
        """The result at a place that `scan` told.

        Raises:
          InputError: it cannot be read.
        """
        path, start = place
        with _told(path), open(path, "rb") as file:
            file.seek(start)
            return json.loads(file.readline())[1]

    def remove_foreign(self) -> None:
        """Removes the folder unless its parts are of this work."""
        owner = self.folder / _OWNER
        if not owner.exists() or _read(owner)["fingerprint"] != self._fingerprint:
            self.remove()

    def remove(self) -> None:
        """Removes the folder, if it is there, and what is left of one whose removal was stopped.

        It loses its name first: of a folder that is removed in part the owner may be gone and the
        parts not, which would pass for those of the next run.
        """
        leaving = self.folder.with_name(f"{self.folder.name}.removed")
        if leaving.exists():
            shutil.rmtree(leaving)
        if self.folder.exists():
            self.folder.rename(leaving)
            shutil.rmtree(leaving)


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
            f"part_{begun:04d}_{process:05d}_{number:06d}.jsonl" for number in range(10**6)
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
            _write(self._folder / name, "".join(f"{json.dumps(item)}\n" for item in self._items))
            self.names.append(name)
        self._items, self._since = [], time.monotonic()


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def _read(path: Path) -> dict:
    with _told(path):
        return json.loads(path.read_text())


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Says of a file that cannot be read what to do."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot read what was finished before ({error}); remove the file to have it "
            "made again"
        ) from None
