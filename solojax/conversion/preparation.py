"""Data sets as they are downloaded, written as records: what `solojax prepare` does."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path

from etils import epath

from solojax.data.coco import CocoDataset, load_coco
from solojax.data.file_sizes import file_sizes
from solojax.data.image_folder import NO_CLASS, list_folder
from solojax.data.image_io import encoded_size
from solojax.data.instances import ImageRecord
from solojax.data.records_features import instance_example, labelled_example
from solojax.data.records_manifest import (
    check_contents,
    read_manifest,
    sha256_of,
    split_names,
)
from solojax.data.records_writing import Source, Written, write_split
from solojax.errors import InputError
from solojax.train.progress import progress_bar

_WORDNET_ID = re.compile(r"n\d{8}")

_logger = logging.getLogger(__name__)


def prepare_instances(
    kind: str,
    annotations: Path,
    images: Path,
    output: str,
    split: str,
    *,
    num_shards: int | None = None,
    skip_missing: bool = False,
    overwrite: bool = False,
) -> Written:
    """Writes a COCO or LVIS data set as a split of records.

    Images are stored as the bytes of their files, broken ones too: training finds out and counts
    them. Masks are stored as run lengths at the image's size and, where the source has polygons,
    as these polygons, from which training draws (`records_features`).

    Args:
      kind: coco | lvis.
      annotations: the json.
      images: folder of the image files.
      output: folder of the records, any path that epath takes.
      split: its name there.
      num_shards: None for as many as TFDS takes.
      skip_missing: leave images out whose file does not exist, and say how many.
      overwrite: begin the split anew whatever is there of it.

    Raises:
      InputError: the source is bad, a file is missing, or the folder holds something else.
    """
    dataset = load_coco(annotations, images)
    _refuse_what_records_lose(dataset)
    sizes = file_sizes([dataset.image_path(record) for record in dataset.images])
    missing = [r for r, size in zip(dataset.images, sizes, strict=True) if size is None]
    if missing:
        dataset = _without(dataset, missing, skip_missing)
    sizes = [size for size in sizes if size is not None]
    names = [record.file_name for record in dataset.images]
    source = Source(
        kind=kind,
        num_examples=len(names),
        num_bytes=sum(sizes),
        make_example=lambda index: _instance_example(dataset, index, kind),
        identity={
            "annotations": sha256_of(epath.Path(annotations)),
            "images": _digest(zip(names, sizes, strict=True)),
        },
        categories=tuple((category.id, category.name) for category in dataset.categories),
        fingerprint=dataset.fingerprint,
        make_files=lambda: {
            "index": _index_of(dataset),
            "annotations": _annotations_without(annotations, missing),
        },
    )
    return _write(output, split, source, num_shards, overwrite)


def _refuse_what_records_lose(dataset: CocoDataset) -> None:
    objects = [a for record in dataset.images for a in record.annotations]
    lost = {
        "supervise_mask": any(not a.supervise_mask for a in objects),
        "emb": any(a.embedding is not None for a in objects),
    }
    for key, is_lost in lost.items():
        if is_lost:
            raise InputError(
                f'{dataset.annotation_path}: records do not keep "{key}", which objects of this '
                "file have: train on the json itself (data.format=coco)"
            )


def prepare_labelled(
    kind: str,
    images: Path,
    output: str,
    split: str,
    *,
    num_shards: int | None = None,
    overwrite: bool = False,
) -> Written:
    """Writes a folder of images as a split of records, each with its class if there are classes.

    A sub-folder is a class, its label the place of its name in sorted order; images lie in it at
    any depth. A folder without sub-folders has no classes: the labels are -1. For imagenet every
    sub-folder is a WordNet id, as in the train folder of ILSVRC and the sorted val folder.

    Args:
      kind: folder | imagenet.
      images: the folder.
      output: see `prepare_instances`.
      split: likewise.
      num_shards: likewise.
      overwrite: likewise.

    Raises:
      InputError: there are no images, or images beside class folders, or a name without a file.
    """
    classes, files = _find_labelled(kind, images)
    sizes = file_sizes([os.path.join(images, name) for name, _ in files])
    if None in sizes:
        name, _ = files[sizes.index(None)]
        raise InputError(f"{images / name}: this leads to no file; remove or mend it")
    unreadable: list[str] = []

    def make_example(index: int) -> dict:
        name, label = files[index]
        data = _read_file(Path(images) / name)
        size = encoded_size(data)
        if size is None:
            unreadable.append(name)
        return labelled_example(data, name, size or (0, 0), label)

    source = Source(
        kind=kind,
        num_examples=len(files),
        num_bytes=sum(sizes),
        make_example=make_example,
        identity={
            "images": _digest((*file, size) for file, size in zip(files, sizes, strict=True))
        },
        categories=tuple(enumerate(classes)),
        fingerprint="",
        make_files=lambda: {"index": _json(_columns(("file_name", "label"), files))},
    )
    written = _write(output, split, source, num_shards, overwrite)
    if unreadable:
        _logger.warning(
            "%d images are broken, the first %s: stored as they are, with height and width 0",
            len(unreadable),
            unreadable[0],
        )
    return written


def verify(output: str, split: str | None, kind: str) -> dict[str, int]:
    """Hashes every file of a split, or of all; returns the bytes of each split.

    Raises:
      InputError: names the first file that is missing, truncated or altered.
    """
    root = epath.Path(output)
    found = [split] if split else split_names(root)
    if not found:
        raise InputError(f"{output}: no finished records there; give the folder of `--output`")
    sizes = {}
    for name in found:
        manifest = read_manifest(root, name)
        if manifest.kind != kind:
            raise InputError(
                f"{output}: split {name!r} holds {manifest.kind} records, not {kind}; "
                f"give `solojax prepare {manifest.kind} --verify`"
            )
        entries = (*manifest.shards, *manifest.files)
        check_contents(root, entries)
        sizes[name] = sum(entry.num_bytes for entry in entries)
    return sizes


def _write(
    output: str, split: str, source: Source, num_shards: int | None, overwrite: bool
) -> Written:
    with progress_bar(source.num_examples, description=f"prepare {split}", unit="image") as bar:
        return write_split(
            epath.Path(output),
            split,
            source,
            num_shards=num_shards,
            overwrite=overwrite,
            on_example=bar.update,
        )


def _instance_example(dataset: CocoDataset, index: int, kind: str) -> dict:
    record = dataset.images[index]
    image = _read_file(Path(dataset.image_path(record)))
    return instance_example(image, record, dataset.category_ids, kind)


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}: cannot read the image ({error.strerror}); what is written stays, and the "
            "same command goes on"
        ) from None


def _without(dataset: CocoDataset, missing: list[ImageRecord], skip: bool) -> CocoDataset:
    """The data set without the images whose file is missing."""
    first = dataset.image_path(missing[0])
    if not skip:
        others = f" and {len(missing) - 1} other files" if len(missing) > 1 else ""
        raise InputError(
            f"{first}{others}: no such file, though {dataset.annotation_path} lists it; complete "
            "the folder, or leave such images out by --skip-missing"
        )
    if len(missing) == len(dataset.images):
        raise InputError(f"{first}: no such file, like all others; check --images")
    _logger.warning(
        "%d of %d images left out, their files are missing; the first: %s",
        len(missing),
        len(dataset.images),
        first,
    )
    gone = {record.id for record in missing}
    kept = tuple(record for record in dataset.images if record.id not in gone)
    return dataclasses.replace(dataset, images=kept)


def _annotations_without(path: Path, missing: list[ImageRecord]) -> bytes:
    """The annotation file as it is, or without the images that were left out."""
    contents = Path(path).read_bytes()
    if not missing:
        return contents
    gone = {record.id for record in missing}
    document = json.loads(contents.decode("utf-8-sig"))
    document["images"] = [i for i in document["images"] if i["id"] not in gone]
    document["annotations"] = [a for a in document["annotations"] if a["image_id"] not in gone]
    return _json(document)


def _index_of(dataset: CocoDataset) -> bytes:
    rows = [
        (
            record.id,
            record.file_name,
            record.height,
            record.width,
            len(record.annotations),
            sum(annotation.iscrowd for annotation in record.annotations),
        )
        for record in dataset.images
    ]
    names = ("id", "file_name", "height", "width", "num_objects", "num_crowds")
    return _json(_columns(names, rows))


def _columns(names: tuple[str, ...], rows: Iterable[tuple]) -> dict[str, list]:
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _digest(rows: Iterable[tuple]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()


def _find_labelled(kind: str, images: Path) -> tuple[list[str], list[tuple[str, int]]]:
    """The classes, and (file name, label) of every image."""
    found = list_folder(images)
    classes = list(found.class_names)
    if kind == "imagenet":
        _check_wordnet_ids(images, classes)
    labels = [NO_CLASS] * len(found) if found.labels is None else found.labels.tolist()
    return classes, list(zip(found.names, labels, strict=True))


def _check_wordnet_ids(images: Path, classes: list[str]) -> None:
    others = [name for name in classes if not _WORDNET_ID.fullmatch(name)]
    if not classes or others:
        found = f"folder {others[0]!r}" if others else "no class folders"
        raise InputError(
            f"--images {images}: {found} where ImageNet has WordNet ids such as n01440764; give "
            "the folder with the class folders, or use `solojax prepare folder`"
        )
