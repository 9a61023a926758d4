"""What belongs to a split of records, with checksums: `SPLIT.manifest.json`, written last.

A folder of records holds one or several splits, each of

  records-SPLIT.array_record-00000-of-00008   the examples, in the order of their source
  SPLIT.index.json        ids, file names and sizes of all images, to open the split without reading
  SPLIT.annotations.json  the annotation file, as it was (COCO and LVIS)
  SPLIT.manifest.json     sizes and SHA-256 of all of these; there once all of them are whole

and dataset_info.json and features.json, by which TFDS reads the folder. They follow from the
manifests of all splits (`records_metadata`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable

from etils import epath

from solojax.errors import InputError

FORMAT = 1
ADVICE = "copy it again from where it was made, or give the `solojax prepare` command again"
_CHUNK = 1 << 22
_SPLIT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


@dataclasses.dataclass(frozen=True)
class FileEntry:
    """A file beside the manifest; `num_examples` of a shard alone."""

    name: str
    num_bytes: int
    sha256: str
    num_examples: int = 0


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A finished split.

    Attributes:
      kind: coco | lvis | folder | imagenet.
      source: what it was made from and how: digests and settings by name.
      categories: (id, name), sorted by id.
      fingerprint: `instances.fingerprint_of` the source; "" where there are no objects.
      shards: in order.
      files: index and annotations.
    """

    kind: str
    source: dict
    categories: tuple[tuple[int, str], ...]
    fingerprint: str
    shards: tuple[FileEntry, ...]
    files: tuple[FileEntry, ...]

    @property
    def num_examples(self) -> int:
        """Images of the split."""
        return sum(shard.num_examples for shard in self.shards)

    @property
    def checksum(self) -> str:
        """SHA-256 over all that the manifest says, the SHA-256 of every file included."""
        document = json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(document.encode()).hexdigest()


def check_split_name(split: str) -> None:
    """Raises InputError for a name that TFDS cannot tell apart in a file name."""
    if not _SPLIT_NAME.fullmatch(split) or split.lower() == "all":
        raise InputError(
            f"split {split!r}: give letters, digits and underscores, beginning with a letter (and "
            "not 'all')"
        )


def records_folder(root: str | os.PathLike) -> epath.Path:
    """The folder of records at a path of the file system or a URL.

    Raises:
      InputError: what reads the URL is not installed.
    """
    folder = epath.Path(root)
    try:
        folder.exists()
    except ImportError as error:
        raise InputError(
            f"{folder}: buckets need a package more ({error}); for gs:// run `pip install "
            "'solojax[gcs]'`, or mount the bucket and give the mounted path"
        ) from None
    return folder


def is_local(path: epath.Path) -> bool:
    """Whether a path is in the file system, and not a URL."""
    return "://" not in os.fspath(path)


def manifest_path(root: epath.Path, split: str) -> epath.Path:
    """Where a split's manifest is."""
    return root / f"{split}.manifest.json"


def split_names(root: epath.Path) -> list[str]:
    """The finished splits of a folder, sorted."""
    suffix = ".manifest.json"
    if not root.is_dir():
        return []
    return sorted(p.name[: -len(suffix)] for p in root.iterdir() if p.name.endswith(suffix))


def write_manifest(root: epath.Path, split: str, manifest: Manifest) -> None:
    """Writes a split's manifest in one go."""
    document = {"format": FORMAT, **dataclasses.asdict(manifest), "checksum": manifest.checksum}
    write_whole(manifest_path(root, split), json.dumps(document, indent=1).encode())


def read_manifest(root: epath.Path, split: str) -> Manifest:
    """Reads a split's manifest.

    Raises:
      InputError: there is none, or it is damaged or of another version.
    """
    check_split_name(split)
    path = manifest_path(root, split)
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(_no_such_split(root, split)) from None
    except ValueError as error:
        raise InputError(f"{path}: not valid json ({error}); prepare the split again") from None
    try:
        version, checksum = document.pop("format"), document.pop("checksum")
        if version != FORMAT:
            raise InputError(
                f"{path}: format {version}, this program reads {FORMAT}; prepare the split again"
            )
        manifest = Manifest(
            **document
            | {
                "categories": tuple((number, name) for number, name in document["categories"]),
                "shards": tuple(FileEntry(**entry) for entry in document["shards"]),
                "files": tuple(FileEntry(**entry) for entry in document["files"]),
            }
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: not a manifest of records ({error}); prepare the split again"
        ) from None
    if manifest.checksum != checksum:
        raise InputError(f"{path}: it was altered (checksum differs); prepare the split again")
    return manifest


def read_manifests(root: epath.Path) -> dict[str, Manifest]:
    """The manifests of all finished splits, by name; raises as `read_manifest`."""
    return {split: read_manifest(root, split) for split in split_names(root)}


def check_sizes(root: epath.Path, entries: Iterable[FileEntry]) -> None:
    """The cheap check: every file is there and as long as it was written.

    Raises:
      InputError: names the first that is missing, truncated or too long.
    """
    for entry in entries:
        path = root / entry.name
        try:
            found = path.stat().length
        except FileNotFoundError:
            raise InputError(f"{path}: missing; {ADVICE}") from None
        if found != entry.num_bytes:
            what = "truncated" if found < entry.num_bytes else "altered"
            raise InputError(
                f"{path}: {what}, {found} bytes instead of {entry.num_bytes}; {ADVICE}"
            )


def check_contents(root: epath.Path, entries: Iterable[FileEntry]) -> None:
    """The full check: sizes, and the SHA-256 of every byte; InputError names the first bad file."""
    for entry in entries:
        check_sizes(root, [entry])
        if sha256_of(root / entry.name) != entry.sha256:
            raise InputError(f"{root / entry.name}: altered, its SHA-256 differs; {ADVICE}")


def is_whole(root: epath.Path, entry: FileEntry) -> bool:
    """Whether a file is there with the contents that were written."""
    try:
        check_contents(root, [entry])
    except InputError:
        return False
    return True


def sha256_of(path: epath.Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def write_whole(path: epath.Path, contents: bytes, writer: str = "") -> FileEntry:
    """Writes a file that is, at every moment, absent, what it was before, or whole.

    Args:
      path: of the file.
      contents: all of it.
      writer: tells apart those that may write the same file at one time.
    """
    whose = f".{writer}" if writer else ""
    temporary = path.with_name(f"{path.name}{whose}.incomplete")
    with temporary.open("wb") as file:
        file.write(contents)
        if is_local(path):  # a machine that loses power must not keep the name alone
            file.flush()
            os.fsync(file.fileno())
    temporary.replace(path)
    return FileEntry(path.name, len(contents), hashlib.sha256(contents).hexdigest())


def _no_such_split(root: epath.Path, split: str) -> str:
    known = split_names(root)
    if not root.is_dir():
        return f"{root}: no such folder of records; write it by `solojax prepare`"
    if (root / f"{split}.progress.json").exists():
        return (
            f"{root}: split {split!r} was not written to its end; give the `solojax prepare` "
            "command again, it goes on"
        )
    found = f"it has {', '.join(known)}" if known else "it has none"
    return f"{root}: no split {split!r}, {found}; write it by `solojax prepare --split {split}`"
