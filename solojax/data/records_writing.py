"""Writing a split of records: shard by shard, each one whole or absent, so that it can go on.

TFDS' own `download_and_prepare` cannot: it writes into a folder with a random name, which the next
start does not find, and makes every split of a folder at once. So the loop over shards is here and
all else is TFDS': the fields and their encoding (`FeaturesDict`), tf.train.Example, the number of
shards and their names, its ArrayRecord writer, and the metadata by which
`tfds.builder_from_directory` opens the result (`records_metadata`).

A shard is written beside its place, hashed, moved there, and noted in SPLIT.progress.json. A second
start keeps every noted shard whose SHA-256 still holds and writes the others. Examples are
serialized deterministically, so that the files are the same bytes however often it was stopped.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from etils import epath
from tensorflow_datasets.core import example_serializer, file_adapters, naming
from tensorflow_datasets.core import writer as writer_lib
from tensorflow_datasets.core.utils import shard_utils

from solojax.data import records_features, records_metadata
from solojax.data.records_manifest import (
    FileEntry,
    Manifest,
    check_split_name,
    is_local,
    is_whole,
    manifest_path,
    read_manifest,
    read_manifests,
    sha256_of,
    split_names,
    write_manifest,
    write_whole,
)
from solojax.errors import InputError

_CHUNK = 1 << 24
_MOST_SHARDS = 100_000  # five digits in a name


@dataclasses.dataclass(frozen=True)
class Source:
    """Examples to write.

    Attributes:
      kind: coco | lvis | folder | imagenet.
      num_examples: how many.
      num_bytes: of all images, which decides the number of shards where none is asked for.
      make_example: maps a position to an example of `records_features.features_of(kind)`. The same
        position always gives the same example.
      identity: digests and settings that tell this source from any other, as json values.
      categories: (id, name), sorted by id.
      fingerprint: see `Manifest`.
      make_files: called at the end; contents by suffix ("index", "annotations") of the json files
        that go beside the shards.
    """

    kind: str
    num_examples: int
    num_bytes: int
    make_example: Callable[[int], dict[str, Any]]
    identity: dict[str, Any]
    categories: tuple[tuple[int, str], ...]
    fingerprint: str
    make_files: Callable[[], dict[str, bytes]]


@dataclasses.dataclass(frozen=True)
class Written:
    """What `write_split` did: the split, and how many shards were there already."""

    manifest: Manifest
    num_kept: int


def write_split(
    root: epath.Path,
    split: str,
    source: Source,
    *,
    num_shards: int | None = None,
    overwrite: bool = False,
    on_example: Callable[[], None] = lambda: None,
) -> Written:
    """Writes a split, or what is missing of it.

    Args:
      root: folder of the records, any path that epath takes; made if absent.
      split: its name.
      source: the examples.
      num_shards: None for as many as TFDS takes for that many bytes.
      overwrite: begin anew whatever is there of this split.
      on_example: called for every example that is written or kept while others are written.

    Raises:
      InputError: the folder holds this split from another source or with other settings, or splits
        of another kind; or a shard cannot be written.
    """
    check_split_name(split)
    root.mkdir(parents=True, exist_ok=True)
    _check_kind(root, split, source.kind)
    bounds = _shard_bounds(source, num_shards)
    identity = {"kind": source.kind, "shards": len(bounds), **source.identity}
    if overwrite:
        _remove(root, split)
    kept = _noted_shards(root, split, identity)
    if kept and manifest_path(root, split).exists():
        manifest = read_manifest(root, split)
        if all(is_whole(root, entry) for entry in (*manifest.shards, *manifest.files)):
            _finish(root, split)
            return Written(manifest, len(manifest.shards))
        manifest_path(root, split).unlink()
    _write_progress(root, split, identity, kept)
    template = records_metadata.template_of(root, split)
    _remove_others(root, template, len(bounds))
    encode = _Encoder(source.kind)
    shards: list[FileEntry] = []
    num_kept = 0
    for number, (start, stop) in enumerate(bounds):
        name = template.sharded_filepath(shard_index=number, num_shards=len(bounds)).name
        entry = kept.get(name)
        if entry is not None and is_whole(root, entry):
            num_kept += 1
            for _ in range(start, stop):
                on_example()
        else:
            records = _records(source, encode, range(start, stop), on_example)
            entry = _write_shard(root / name, records, stop - start)
            kept[name] = entry
            _write_progress(root, split, identity, kept)
        shards.append(entry)
    files = [
        write_whole(root / f"{split}.{suffix}.json", contents)
        for suffix, contents in source.make_files().items()
    ]
    manifest = Manifest(
        source.kind, identity, source.categories, source.fingerprint, tuple(shards), tuple(files)
    )
    # Before the manifest, by which a split is there to be read.
    records_metadata.write(root, {**read_manifests(root), split: manifest}, split)
    write_manifest(root, split, manifest)
    _finish(root, split)
    return Written(manifest, num_kept)


class _Encoder:
    """Examples to bytes, the same bytes in every process."""

    def __init__(self, kind: str):
        self._features = records_features.features_of(kind)
        self._serializer = example_serializer.ExampleSerializer(
            self._features.get_serialized_info()
        )

    def __call__(self, example: dict[str, Any]) -> bytes:
        encoded = self._features.encode_example(example)
        # The fields are a protobuf map, whose order is otherwise any.
        return self._serializer.get_tf_example(encoded).SerializeToString(deterministic=True)


def _records(
    source: Source, encode: _Encoder, positions: Sequence[int], on_example: Callable[[], None]
) -> Iterator[tuple[int, bytes]]:
    for position in positions:
        yield position, encode(source.make_example(position))
        on_example()


def _shard_bounds(source: Source, num_shards: int | None) -> list[tuple[int, int]]:
    """(first, last + 1) position of every shard."""
    if num_shards is not None and not 0 < num_shards <= min(source.num_examples, _MOST_SHARDS):
        raise InputError(
            f"--shards {num_shards}: give 1 to {min(source.num_examples, _MOST_SHARDS)} for "
            f"{source.num_examples} images"
        )
    count = shard_utils.ShardConfig(num_shards=num_shards).get_number_shards(
        source.num_bytes, source.num_examples
    )
    ends = shard_utils.get_shard_boundaries(source.num_examples, count)
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _write_shard(path: epath.Path, records: Iterator[tuple[int, bytes]], count: int) -> FileEntry:
    """Writes a shard whole: under another name, or here for a path that is elsewhere."""
    if is_local(path):
        temporary = epath.Path(f"{path}.incomplete")
        entry = _write_file(temporary, path.name, records, count)
        _to_disk(temporary)
        temporary.replace(path)
        return entry
    with tempfile.TemporaryDirectory() as folder:
        temporary = epath.Path(folder) / path.name
        entry = _write_file(temporary, path.name, records, count)
        with temporary.open("rb") as written, path.open("wb") as place:
            shutil.copyfileobj(written, place, _CHUNK)
    return entry


def _write_file(
    path: epath.Path, name: str, records: Iterator[tuple[int, bytes]], count: int
) -> FileEntry:
    try:
        writer_lib.ExampleWriter(file_format=records_metadata.FILE_FORMAT).write(path, records)
        found = file_adapters.ADAPTER_FOR_FORMAT[records_metadata.FILE_FORMAT].num_examples(path)
    except RuntimeError as error:  # of the ArrayRecord library, whatever went wrong
        path.unlink(missing_ok=True)
        raise InputError(
            f"{path}: the shard cannot be written ({error}); free some space or give another "
            "folder, and the same command goes on"
        ) from None
    if found != count:
        raise InputError(f"{path}: {found} of {count} examples arrived; give the command again")
    return FileEntry(name, path.stat().length, sha256_of(path), count)


def _to_disk(path: epath.Path) -> None:
    """Before a shard is noted as whole: a machine that loses power keeps it."""
    with Path(path).open("rb") as file:
        os.fsync(file.fileno())


def _check_kind(root: epath.Path, split: str, kind: str) -> None:
    """All splits of a folder have the same fields: TFDS keeps one description of them."""
    for other in split_names(root):
        found = read_manifest(root, other).kind if other != split else kind
        if found != kind:
            raise InputError(
                f"{root}: it holds {found} records (split {other!r}); give {kind} another --output"
            )


def _noted_shards(root: epath.Path, split: str, identity: dict) -> dict[str, FileEntry]:
    """The shards of an earlier start by name, not yet verified.

    Raises:
      InputError: they are of another source or other settings.
    """
    path = _progress_path(root, split)
    if manifest_path(root, split).exists():
        manifest = read_manifest(root, split)
        found, entries = manifest.source, manifest.shards
    elif path.exists():
        try:
            document = json.loads(path.read_text())
            found = document["source"]
            entries = [FileEntry(**entry) for entry in document["shards"]]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}: damaged ({error}); begin this split anew by --overwrite"
            ) from None
    else:
        return {}
    changed = sorted(key for key in found | identity if found.get(key) != identity.get(key))
    if changed:
        raise InputError(
            f"{root}: split {split!r} was begun from another source or with other settings "
            f"({', '.join(changed)} changed); begin it anew by --overwrite, or give another "
            "--output or --split"
        )
    return {entry.name: entry for entry in entries}


def _progress_path(root: epath.Path, split: str) -> epath.Path:
    return root / f"{split}.progress.json"


def _write_progress(
    root: epath.Path, split: str, identity: dict, entries: dict[str, FileEntry]
) -> None:
    document = {"source": identity, "shards": [dataclasses.asdict(e) for e in entries.values()]}
    write_whole(_progress_path(root, split), json.dumps(document, indent=1).encode())


def _remove(root: epath.Path, split: str) -> None:
    """Removes what there is of a split; the manifest first, which says that it is whole."""
    for path in (manifest_path(root, split), _progress_path(root, split)):
        path.unlink(missing_ok=True)


def _remove_others(root: epath.Path, template: naming.ShardedFileTemplate, count: int) -> None:
    """Removes files that look like shards of the split and are none: begun, or of another count."""
    prefix = template.sharded_filepath(shard_index=0, num_shards=count).name.split("00000")[0]
    names = {path.name for path in template.sharded_filepaths(num_shards=count)}
    for path in root.iterdir():
        if path.name.startswith(prefix) and path.name not in names:
            path.unlink()


def _finish(root: epath.Path, split: str) -> None:
    """What is left to do when the manifest is there."""
    records_metadata.mend(root, split)
    _progress_path(root, split).unlink(missing_ok=True)
