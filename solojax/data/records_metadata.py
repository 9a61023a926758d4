"""dataset_info.json and features.json, by which TFDS opens a folder of records.

They describe all splits of the folder together, though every split is written by a command of its
own, and several may end at one time, on several hosts. No lock holds on every storage. So the files
are never added to: they follow from the manifests that are there, and who writes them looks again
until both agree. Whoever is the last to write has then seen every manifest.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import dataset_info, file_adapters, naming
from tensorflow_datasets.core import splits as splits_lib

from solojax.data import records_features
from solojax.data.records_manifest import ADVICE, Manifest, read_manifests, write_whole
from solojax.errors import InputError

FILE_FORMAT = file_adapters.FileFormat.ARRAY_RECORD
_ATTEMPTS = 20  # others that end at the same time are few


def write(root: epath.Path, manifests: Mapping[str, Manifest], writer: str) -> None:
    """Writes what is not there as it should be.

    Args:
      root: folder of the records.
      manifests: of the splits to describe, at least one, all of one kind.
      writer: the split that is being written, see `write_whole`.
    """
    for name, contents in _files_of(root, manifests).items():
        if _read(root / name) != contents:
            write_whole(root / name, contents, writer)


def mend(root: epath.Path, writer: str) -> None:
    """Writes the files for the splits that are there, those that others finish meanwhile included.

    Raises:
      InputError: a manifest is damaged, or the files change again and again.
    """
    for _ in range(_ATTEMPTS):
        manifests = read_manifests(root)
        if _first_wrong(root, manifests) is None:
            return
        write(root, manifests, writer)
    raise InputError(
        f"{root}: another command keeps writing {_first_wrong(root, manifests)}; give the "
        "`solojax prepare` command again when it has ended"
    )


def check(root: epath.Path) -> None:
    """Holds the files against the manifests of all splits.

    Raises:
      InputError: names the first that is missing or another; or a manifest is damaged.
    """
    name = _first_wrong(root, read_manifests(root))
    if name is not None:
        there = (root / name).exists()
        what = "not as this version of TFDS writes it" if there else "missing"
        raise InputError(f"{root / name}: {what}; {ADVICE}")


def template_of(root: epath.Path, split: str) -> naming.ShardedFileTemplate:
    """The names of a split's shards."""
    return naming.ShardedFileTemplate(
        data_dir=root,
        dataset_name=records_features.NAME,
        split=split,
        filetype_suffix=FILE_FORMAT.file_suffix,
    )


def _first_wrong(root: epath.Path, manifests: Mapping[str, Manifest]) -> str | None:
    wanted = _files_of(root, manifests)
    return next((name for name in wanted if _read(root / name) != wanted[name]), None)


def _read(path: epath.Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _files_of(root: epath.Path, manifests: Mapping[str, Manifest]) -> dict[str, bytes]:
    """What the files have to hold, by name."""
    kind = next(iter(manifests.values())).kind
    info = dataset_info.DatasetInfo(
        builder=dataset_info.DatasetIdentity(
            name=records_features.NAME,
            version=tfds.core.Version(records_features.VERSION),
            data_dir=os.fspath(root),
            module_name="",
        ),
        features=records_features.features_of(kind),
        description=f"{kind} data, written by solojax prepare",
    )
    info.set_file_format(FILE_FORMAT)
    info.set_splits(
        splits_lib.SplitDict(
            [
                splits_lib.SplitInfo(
                    name=name,
                    shard_lengths=[shard.num_examples for shard in manifest.shards],
                    num_bytes=sum(shard.num_bytes for shard in manifest.shards),
                    filename_template=template_of(root, name),
                )
                for name, manifest in sorted(manifests.items())
            ]
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        info.write_to_directory(folder)
        return {path.name: path.read_bytes() for path in sorted(epath.Path(folder).iterdir())}
