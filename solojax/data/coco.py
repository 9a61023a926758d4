"""Data sets in COCO's json format, with any classes and any ids, checked entry by entry."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from solojax.coco_entries import image_file_name, text_field
from solojax.data.file_sizes import file_states
from solojax.data.image_io import read_image
from solojax.data.instances import (
    Annotation,
    Category,
    ImageRecord,
    InstanceDataset,
    fingerprint_of,
)
from solojax.data.segmentation_json import check_extent, parse_coordinates, parse_segmentation
from solojax.errors import InputError

T = TypeVar("T")

LVIS_IMAGE_KEYS = ("neg_category_ids", "not_exhaustive_category_ids")


@dataclasses.dataclass(frozen=True)
class CocoDataset(InstanceDataset):
    """A checked COCO json.

    Attributes:
      annotation_path: the json it came from.
      image_root: the folder that the file names refer to.
      categories: sorted by id; the position is the contiguous label.
      images: in the order of the json, those without objects included.
    """

    annotation_path: str
    image_root: str
    categories: tuple[Category, ...]
    images: tuple[ImageRecord, ...]

    @property
    def num_objects(self) -> int:
        """Objects of all images, crowds included."""
        return sum(len(image.annotations) for image in self.images)

    @property
    def num_crowds(self) -> int:
        """Crowds of all images."""
        return sum(a.iscrowd for image in self.images for a in image.annotations)

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits over the parsed content, independent of the paths."""
        return fingerprint_of(self.categories, self.images)

    def file_states(self) -> dict[str, str]:
        """The size of every image's file."""
        return file_states(self.image_root, [image.file_name for image in self.images])

    @functools.cached_property
    def file_digest(self) -> str:
        """16 hex digits over names and sizes of the images' files, which are looked up once."""
        return hashlib.sha256(json.dumps(self.file_states()).encode()).hexdigest()[:16]

    def image_path(self, record: ImageRecord) -> str:
        """Where the image's file should be."""
        return os.path.join(self.image_root, record.file_name)

    def read(self, index: int) -> tuple[np.ndarray, ImageRecord]:
        """The pixels and the entry of an image; BrokenImage where the file cannot be read."""
        return self.read_image(index), self.images[index]

    def read_image(self, index: int) -> np.ndarray:
        """The (H, W, 3) uint8 RGB pixels; BrokenImage where the file cannot be read."""
        return read_image(self.image_path(self.images[index]))

    def first(self, count: int) -> CocoDataset:
        """The data set's first `count` images."""
        return dataclasses.replace(self, images=self.images[:count])


def load_coco(annotations: str | Path, images: str | Path) -> CocoDataset:
    """Reads and checks a COCO json.

    Category ids may be any distinct integers; they are sorted and numbered from 0. "iscrowd" counts
    as 0 where it is missing, "supervise_mask" (0: the object's mask trains nothing, its class does)
    as 1; "bbox", "area" and "emb" (an embedding, see `label_file`) may be missing. An LVIS file may
    do without "file_name": the last two parts of "coco_url" (train2017/000000391895.jpg) stand in.
    Boxes and polygons may leave the image by `segmentation_json.max_overshoot` pixels. Whether the
    image files exist is not looked at here.

    Args:
      annotations: the json file.
      images: the folder of the image files.

    Raises:
      InputError: anything is missing, malformed or contradictory, with the file and the entry.
    """
    _check_folder(images)
    return parse_document(str(annotations), read_document(str(annotations)), images)


def load_coco_images(annotations: str | Path, images: str | Path) -> CocoDataset:
    """The images of a COCO json, without objects and classes.

    What the json says of those is not looked at, and it need not say anything: COCO's lists of
    unlabelled images will do, files of boxes alone, and files with damaged objects.

    Args:
      annotations: the json file.
      images: the folder of the image files.

    Raises:
      InputError: as `load_coco`, of the file and its images.
    """
    _check_folder(images)
    path = str(annotations)
    headers = _read_images(path, read_document(path))
    return CocoDataset(path, str(images), (), tuple(headers.values()))


def parse_document(path: str, document: dict, images: str | Path) -> CocoDataset:
    """The data set of a json that `read_document` has read; it is used up. See `load_coco`."""
    categories = _read_categories(path, _section(path, document, "categories"))
    labels = {category.id: label for label, category in enumerate(categories)}
    headers = _read_images(path, document)
    objects: dict[int, list[Annotation]] = {image_id: [] for image_id in headers}

    def parse(entry: dict) -> None:
        image_id, annotation = _parse_annotation(entry, headers, labels)
        objects[image_id].append(annotation)

    _parse_section(path, "annotation", _section(path, document, "annotations"), parse)
    records = tuple(
        dataclasses.replace(header, annotations=tuple(objects[image_id]))
        for image_id, header in headers.items()
    )
    return CocoDataset(path, str(images), categories, records)


def _check_folder(images: str | Path) -> None:
    if not os.path.isdir(images):
        raise InputError(f"{images}: no such image folder; give the folder of the image files")


def read_document(path: str) -> dict:
    """A json whose outermost value is an object, its polygons and embeddings as vectors."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            document = json.load(file, object_hook=_compact_vectors)
    except OSError as error:
        raise InputError(
            f"{path}: cannot read the annotations ({error.strerror}); check the path"
        ) from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}: not valid json at line {error.lineno}, column {error.colno} ({error.msg}); "
            "write or fetch the file again"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid json ({error}); write the file again") from None
    if not isinstance(document, dict):
        raise InputError(
            f'{path}: not a COCO file; its outermost value has to be an object with "images", '
            '"annotations" and "categories"'
        )
    return document


def _compact_vectors(entry: dict) -> dict:
    """Turns polygons and embeddings into vectors while the json is being read.

    Their numbers as Python objects would take most of the memory of a large file. What is not a
    list of numbers stays as it is and is refused later, where the entry is known.
    """
    polygons = entry.get("segmentation")
    if isinstance(polygons, list):
        try:
            entry["segmentation"] = [parse_coordinates(polygon) for polygon in polygons]
        except ValueError:
            pass
    if isinstance(entry.get("emb"), list):
        try:
            entry["emb"] = parse_coordinates(entry["emb"]).astype(np.float32)
        except ValueError:
            pass
    return entry


def _section(path: str, document: dict, key: str) -> list:
    if not isinstance(document.get(key), list):
        raise InputError(
            f'{path}: no list "{key}"; a COCO file has "images", "annotations" and "categories"'
        )
    return document[key]


def _parse_section(path: str, kind: str, entries: list, parse: Callable[[dict], T]) -> dict[int, T]:
    """Parses every entry of a section by its id; adds file and entry to what `parse` complains."""
    parsed: dict[int, T] = {}
    for index, entry in enumerate(entries):
        try:
            if not isinstance(entry, dict):
                raise ValueError("is no json object; write it as {...}")
            entry_id = _integer(entry, "id")
            if entry_id in parsed:
                raise ValueError(f"the id {entry_id} is taken; give every {kind} an id of its own")
            parsed[entry_id] = parse(entry)
        except ValueError as problem:
            raise InputError(f"{path}: {_place(kind, index, entry)}: {problem}") from None
        entries[index] = None  # frees the parsed json as we go: a large file takes gigabytes
    return parsed


def _place(kind: str, index: int, entry: object) -> str:
    """What a person searches the file for: position in the list and ids."""
    fields = entry if isinstance(entry, dict) else {}
    ids = [f"{key} {fields[key]!r}" for key in ("id", "image_id") if key in fields]
    return f"{kind} entry {index}" + (f" ({', '.join(ids)})" if ids else "")


def _read_categories(path: str, entries: list) -> tuple[Category, ...]:
    if not entries:
        raise InputError(f'{path}: the data set has no categories; list them under "categories"')
    names = _parse_section(path, "category", entries, lambda entry: text_field(entry, "name"))
    return tuple(Category(category_id, names[category_id]) for category_id in sorted(names))


def _read_images(path: str, document: dict) -> dict[int, ImageRecord]:
    """The images without their objects, by id, in the order of the json."""
    headers = _parse_section(path, "image", _section(path, document, "images"), _parse_image)
    if not headers:
        raise InputError(f'{path}: the data set has no images; list at least one under "images"')
    return headers


def _parse_image(entry: dict) -> ImageRecord:
    """The image without its objects."""
    height, width = _integer(entry, "height"), _integer(entry, "width")
    if height <= 0 or width <= 0:
        raise ValueError(f"width {width} and height {height} have to be positive; correct them")
    lists = {key: _integers(entry, key) for key in LVIS_IMAGE_KEYS}
    return ImageRecord(_integer(entry, "id"), image_file_name(entry), height, width, (), **lists)


def _integers(entry: dict, key: str) -> tuple[int, ...]:
    values = entry.get(key, [])
    if not isinstance(values, list) or any(type(value) is not int for value in values):
        raise ValueError(f'"{key}" is {values!r}; it has to be a list of whole numbers')
    return tuple(values)


def _parse_annotation(
    entry: dict, headers: dict[int, ImageRecord], labels: dict[int, int]
) -> tuple[int, Annotation]:
    """(image id, annotation)."""
    image_id, category_id = _integer(entry, "image_id"), _integer(entry, "category_id")
    if image_id not in headers:
        raise ValueError('no such image_id under "images"; add the image or remove the annotation')
    if category_id not in labels:
        raise ValueError(
            f'category_id {category_id} is not under "categories"; add it or correct the annotation'
        )
    height, width = headers[image_id].height, headers[image_id].width
    iscrowd = entry.get("iscrowd", 0)
    if iscrowd not in (0, 1):
        raise ValueError(f"iscrowd {iscrowd!r} is neither 0 nor 1; correct it")
    supervise_mask = entry.get("supervise_mask", 1)
    if supervise_mask not in (0, 1):
        raise ValueError(f"supervise_mask {supervise_mask!r} is neither 0 nor 1; correct it")
    return image_id, Annotation(
        id=entry["id"],
        label=labels[category_id],
        bbox_xywh=_parse_bbox(entry.get("bbox"), height, width),
        segmentation=parse_segmentation(_field(entry, "segmentation"), height, width),
        iscrowd=bool(iscrowd),
        area=_parse_area(entry.get("area")),
        supervise_mask=bool(supervise_mask),
        embedding=_parse_embedding(entry.get("emb")),
    )


def _parse_embedding(embedding: object) -> np.ndarray | None:
    if embedding is None:
        return None
    if not isinstance(embedding, np.ndarray) or not embedding.size:
        raise ValueError('"emb" is no list of numbers; give the embedding or remove the key')
    if not np.isfinite(embedding).all():
        raise ValueError('"emb" holds a number that is NaN or infinite; write the file again')
    return embedding


def _parse_area(area: object) -> float | None:
    if area is None:
        return None
    if not _is_number(area) or not math.isfinite(area):
        raise ValueError(f"area {area!r} is not a finite number; correct or remove it")
    return float(area)


def _parse_bbox(bbox: object, height: int, width: int) -> tuple[float, float, float, float] | None:
    if bbox is None:
        return None
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        raise ValueError(f"bbox {bbox!r} is not four numbers; write it as [x, y, width, height]")
    x, y, box_width, box_height = map(float, bbox)
    if box_width < 0 or box_height < 0:
        raise ValueError(f"bbox {bbox!r} has a negative width or height; correct or remove it")
    check_extent(f"bbox {bbox!r}", x, y, x + box_width, y + box_height, height, width)
    return x, y, box_width, box_height


def _field(entry: dict, key: str) -> Any:
    if key not in entry:
        raise ValueError(f'has no "{key}"; add it')
    return entry[key]


def _integer(entry: dict, key: str) -> int:
    value = _field(entry, key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f'"{key}" is {value!r}; it has to be a whole number')
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
