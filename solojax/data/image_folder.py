"""Images with at most one class each: from a folder, a COCO json or records."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from etils import epath

from solojax.data.coco import load_coco_images
from solojax.data.file_sizes import file_states
from solojax.data.image_files import describe_others, no_image_there, sift_images
from solojax.data.image_io import decode_image, read_image
from solojax.data.records import INSTANCE_KINDS, RecordsSplit, open_split
from solojax.data.records_manifest import check_contents
from solojax.errors import InputError

_logger = logging.getLogger(__name__)

NO_CLASS = -1


class ImageStore(Protocol):
    """Where the pixels of an `ImageList` are."""

    def path(self, index: int, name: str) -> str:
        """Where an image is, for messages."""

    def read(self, index: int, name: str) -> np.ndarray:
        """(H, W, 3) uint8 RGB; raises BrokenImage."""

    def file_states(self, names: Sequence[str]) -> dict[str, str]:
        """See `InstanceDataset.file_states`; of the files that hold these images."""


@dataclasses.dataclass(frozen=True)
class FileStore:
    """Image files below a folder."""

    root: str

    def path(self, index: int, name: str) -> str:
        """The file's."""
        return os.path.join(self.root, name)

    def read(self, index: int, name: str) -> np.ndarray:
        """See `image_io.read_image`."""
        return read_image(self.path(index, name))

    def file_states(self, names: Sequence[str]) -> dict[str, str]:
        """The size of every file."""
        return file_states(self.root, names)


@dataclasses.dataclass(frozen=True)
class RecordStore:
    """Image files inside records."""

    split: RecordsSplit

    def path(self, index: int, name: str) -> str:
        """The split and the file's name."""
        return f"{os.path.join(self.split.root, self.split.split)}:{name}"

    def read(self, index: int, name: str) -> np.ndarray:
        """See `image_io.decode_image`."""
        return decode_image(self.split[index]["image"], self.path(index, name))

    def file_states(self, names: Sequence[str]) -> dict[str, str]:
        """See `RecordsSplit.file_states`."""
        return self.split.file_states()


@dataclasses.dataclass(frozen=True, eq=False)
class ImageList:
    """Images by position: what pre-training and probes read. Picklable, for worker processes.

    JPEG, PNG, BMP, GIF, WebP and TIFF of any kind give RGB with 8 bits, the first image of an
    animation: see `image_io.decode_image`.
    Whether a file can be read turns out when it is read: BrokenImage, which the loader reports,
    counts as an invalid row, and passes over.

    Attributes:
      source: the folder or file it came from, for messages.
      names: of the files, below the folder of images.
      labels: (n,) int32, positions in `class_names`; None if there are no classes.
      class_names: sorted.
      store: where the pixels are.
    """

    source: str
    names: Sequence[str]
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    store: ImageStore

    def __len__(self) -> int:
        return len(self.names)

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits over names and labels; the same wherever and however the files are kept."""
        digest = hashlib.sha256(json.dumps(self.class_names).encode())
        labels = [NO_CLASS] * len(self) if self.labels is None else self.labels.tolist()
        for name, label in zip(self.names, labels, strict=True):
            digest.update(json.dumps([name, label]).encode())
        return digest.hexdigest()[:16]

    @property
    def counts(self) -> dict[str, int]:
        """How many there are of what the list is made of."""
        return {"images": len(self), "classes": len(self.class_names)}

    def file_states(self) -> dict[str, str]:
        """See `InstanceDataset.file_states`."""
        return self.store.file_states(self.names)

    def image_path(self, index: int) -> str:
        """Where an image is, for messages."""
        return self.store.path(index, self.names[index])

    def read_image(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB pixels; BrokenImage where they cannot be decoded."""
        return self.store.read(index, self.names[index])

    def first(self, count: int) -> ImageList:
        """The first `count` images; the classes stay."""
        labels = None if self.labels is None else self.labels[:count]
        return dataclasses.replace(self, names=self.names[:count], labels=labels)


def list_folder(folder: str | Path) -> ImageList:
    """The images of a folder, in order of their names.

    A sub-folder is a class, its label the place of its name in sorted order; images lie in it at
    any depth. A folder without sub-folders has no classes. What begins with a dot is passed over;
    other files that are no images by their suffix, whose letter case does not matter, are counted
    in the log. It is the order of `solojax prepare folder`.

    Raises:
      InputError: there is no image, or there are images beside folders.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"{folder}: no such image folder; give the folder of the images")
    entries = sorted((e for e in os.scandir(root) if not e.name.startswith(".")), key=_name)
    classes = [entry.name for entry in entries if entry.is_dir()]
    flat, others = sift_images(entry.name for entry in entries if entry.is_file())
    if classes and flat:
        raise InputError(
            f"{folder}: images ({flat[0]}, ...) beside folders ({classes[0]}, ...); give a folder "
            "of images, or one of class folders"
        )
    labelled = []
    for label, name in enumerate(classes):
        inside, strange = sift_images(walk_files(root / name))
        labelled += [(f"{name}/{inner}", label) for inner in sorted(inside, key=Path)]
        others += strange
    names = flat or [name for name, _ in labelled]
    if not names:
        raise InputError(f"{folder}: {no_image_there(others)}")
    if others:
        _logger.info("%s: %s passed over", folder, describe_others(others))
    labels = np.asarray([label for _, label in labelled], np.int32) if classes else None
    return ImageList(str(folder), tuple(names), labels, tuple(classes), FileStore(str(folder)))


def list_coco(annotations: str | Path, images: str | Path) -> ImageList:
    """The images of a COCO json, in its order, without classes; raises as `load_coco_images`."""
    dataset = load_coco_images(annotations, images)
    names = tuple(record.file_name for record in dataset.images)
    return ImageList(str(annotations), names, None, (), FileStore(str(images)))


def list_records(root: str | Path, split: str) -> ImageList:
    """The images of a split that `solojax prepare` wrote: folder, imagenet, coco or lvis.

    Those of COCO and LVIS come without classes.

    Raises:
      InputError: as `open_split`; or the index is damaged.
    """
    examples = open_split(root, split)
    manifest, folder = examples.manifest, epath.Path(root)
    (index,) = (entry for entry in manifest.files if entry.name == f"{split}.index.json")
    check_contents(folder, [index])
    columns = json.loads((folder / index.name).read_text())
    has_classes = manifest.kind not in INSTANCE_KINDS and bool(manifest.categories)
    return ImageList(
        source=f"{root}:{split}",
        names=tuple(columns["file_name"]),
        labels=np.asarray(columns["label"], np.int32) if has_classes else None,
        class_names=tuple(name for _, name in manifest.categories) if has_classes else (),
        store=RecordStore(examples),
    )


def walk_files(folder: Path) -> Iterator[str]:
    """Names of the files in a folder and the folders in it, below the folder.

    Files and folders whose name begins with a dot are passed over.
    """
    for path, folders, files in os.walk(folder, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = os.path.relpath(path, folder)
        for name in files:
            if not name.startswith("."):
                yield name if below == os.curdir else Path(below, name).as_posix()


def _name(entry: os.DirEntry) -> str:
    return entry.name
