"""Instance data sets in records, as `solojax prepare` writes them: random access, no TensorFlow."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from solojax.data.image_io import decode_image
from solojax.data.instances import Annotation, Category, ImageRecord, InstanceDataset
from solojax.data.records_manifest import (
    FileEntry,
    Manifest,
    check_contents,
    check_sizes,
    manifest_path,
    read_manifest,
)
from solojax.errors import InputError

INSTANCE_KINDS = ("coco", "lvis")


@dataclasses.dataclass(frozen=True)
class RecordsSplit:
    """The examples of a split by position, through `tfds.data_source`. Picklable, for workers.

    Every process opens the files itself, when it reads its first example. Paths are local ones or
    gs://, which the ArrayRecord library reads itself.

    Attributes:
      root: folder of the records.
      split: its name.
      manifest: what belongs to it.
    """

    root: str
    split: str
    manifest: Manifest

    def __len__(self) -> int:
        return self.manifest.num_examples

    def file_states(self) -> dict[str, str]:
        """The manifest's checksum, which covers the SHA-256 of every shard."""
        name = manifest_path(epath.Path(self.root), self.split).name
        return {name: f"checksum {self.manifest.checksum[:16]}"}

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The fields of `records_features.features_of`, the image as its file's bytes.

        Raises:
          InputError: the shard is damaged or gone; the message names it.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        try:
            return self._source[index]
        except RuntimeError as error:  # of the ArrayRecord library, whatever went wrong
            raise InputError(
                f"{os.path.join(self.root, self._shard(index).name)}: example {index} cannot be "
                f"read ({error}); check the folder by `solojax prepare {self.manifest.kind} "
                "--verify`"
            ) from None

    @functools.cached_property
    def _source(self) -> Sequence[dict[str, Any]]:
        # Importing TFDS takes seconds: only where records are read.
        import tensorflow_datasets as tfds

        from solojax.data.records_features import DECODERS

        try:
            builder = tfds.builder_from_directory(self.root)
            source = builder.as_data_source(self.split, decoders=DECODERS)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self.root}: TFDS cannot open the records ({error}); give the `solojax prepare` "
                "command again"
            ) from None
        if len(source) != len(self):
            raise InputError(
                f"{self.root}: dataset_info.json counts {len(source)} examples of split "
                f"{self.split!r}, the manifest {len(self)}; give the `solojax prepare` command "
                "again"
            )
        return source

    def _shard(self, index: int) -> FileEntry:
        for shard in self.manifest.shards:
            index -= shard.num_examples
            if index < 0:
                return shard
        raise IndexError(index)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_source"}


@dataclasses.dataclass(frozen=True)
class StoredImage:
    """An image of a split: what the index says, and the objects when they are asked for."""

    examples: RecordsSplit
    index: int
    id: int
    file_name: str
    height: int
    width: int

    @property
    def annotations(self) -> tuple[Annotation, ...]:
        """The objects; reads the example."""
        from solojax.data.records_features import record_of

        return record_of(self.examples[self.index]).annotations


@dataclasses.dataclass(frozen=True, eq=False)
class StoredImages(Sequence):
    """The images of a split by position, made from the columns of its index when asked for."""

    examples: RecordsSplit
    columns: dict[str, list]
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int | slice):
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(self.count)))
        if not -self.count <= index < self.count:
            raise IndexError(f"image {index} of {self.count}")
        index %= self.count
        fields = {key: self.columns[key][index] for key in ("id", "file_name", "height", "width")}
        return StoredImage(self.examples, index, **fields)

    def __iter__(self) -> Iterator[StoredImage]:
        return (self[i] for i in range(self.count))


@dataclasses.dataclass(frozen=True, eq=False)
class RecordsDataset(InstanceDataset):
    """A split of COCO or LVIS records: to the rest what `CocoDataset` is.

    Attributes:
      examples: the split.
      columns: of its index: id, file_name, height, width, num_objects, num_crowds, an entry each
        image.
      count: images of the data set, the first of the split.
    """

    examples: RecordsSplit
    columns: dict[str, list]
    count: int

    @property
    def annotation_path(self) -> str:
        """The annotation file as it was prepared."""
        return os.path.join(self.examples.root, f"{self.examples.split}.annotations.json")

    @functools.cached_property
    def categories(self) -> tuple[Category, ...]:
        """Sorted by id; the position is the contiguous label."""
        return tuple(Category(*entry) for entry in self.examples.manifest.categories)

    @property
    def images(self) -> StoredImages:
        """In the order of the source."""
        return StoredImages(self.examples, self.columns, self.count)

    @property
    def num_objects(self) -> int:
        """Objects of all images, crowds included."""
        return sum(self.columns["num_objects"][: self.count])

    @property
    def num_crowds(self) -> int:
        """Crowds of all images."""
        return sum(self.columns["num_crowds"][: self.count])

    @property
    def fingerprint(self) -> str:
        """That of the source; the manifest binds the shards to it, see `file_states`."""
        fingerprint = self.examples.manifest.fingerprint
        whole = self.count == len(self.examples)
        return fingerprint if whole else f"{fingerprint}[:{self.count}]"

    def file_states(self) -> dict[str, str]:
        """See `RecordsSplit.file_states`."""
        return self.examples.file_states()

    def image_path(self, record) -> str:
        """The split and the file's name, for messages."""
        return f"{os.path.join(self.examples.root, self.examples.split)}:{record.file_name}"

    def read(self, index: int) -> tuple[np.ndarray, ImageRecord]:
        """The pixels and the entry of an image; BrokenImage where it cannot be decoded."""
        from solojax.data.records_features import record_of

        example = self.examples[index]
        record = record_of(example)
        return decode_image(example["image"], self.image_path(record)), record

    def read_image(self, index: int) -> np.ndarray:
        """The (H, W, 3) uint8 RGB pixels; BrokenImage where they cannot be decoded."""
        image = self.examples[index]["image"]
        return decode_image(image, self.image_path(self.images[index]))

    def first(self, count: int) -> RecordsDataset:
        """The data set's first `count` images."""
        return dataclasses.replace(self, count=min(count, self.count))


def open_split(root: str | Path, split: str) -> RecordsSplit:
    """Opens a split of any kind, after the cheap check: all files there, each as long as written.

    Raises:
      InputError: names the file that is missing, truncated or of another format.
    """
    folder = epath.Path(root)
    manifest = read_manifest(folder, split)
    check_sizes(folder, (*manifest.shards, *manifest.files))
    return RecordsSplit(os.fspath(folder), split, manifest)


def load_records(root: str | Path, split: str) -> RecordsDataset:
    """Opens a split of COCO or LVIS records; reads its index and no image.

    Raises:
      InputError: as `open_split`; or the records hold no objects, or the index is damaged.
    """
    examples = open_split(root, split)
    manifest = examples.manifest
    if manifest.kind not in INSTANCE_KINDS:
        raise InputError(
            f"{root}: split {split!r} holds {manifest.kind} records, images with at most one class "
            "each; instance segmentation needs those of `solojax prepare coco` or `lvis`"
        )
    folder = epath.Path(root)
    (index,) = (entry for entry in manifest.files if entry.name == f"{split}.index.json")
    check_contents(folder, [index])
    columns = json.loads((folder / index.name).read_text())
    return RecordsDataset(examples, columns, len(examples))
