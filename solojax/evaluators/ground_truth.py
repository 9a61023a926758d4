"""The annotations that results are scored against, checked and brought into one form."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from pycocotools import mask as coco_mask

from solojax.errors import InputError
from solojax.evaluators.entries import (
    check_box_xywh,
    check_mask_size,
    field,
    is_finite,
    is_whole,
    place,
    read_json,
)
from solojax.evaluators.results import KINDS
from solojax.evaluators.run_lengths import pixel_totals

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class GroundTruth:
    """Ground truth in the form that both COCO libraries read.

    Attributes:
      image_sizes: image id -> (height, width).
      category_names: category id -> name, sorted by id.
      annotations: dicts with id, image_id, category_id, iscrowd, area, bbox and, unless only boxes
        are scored, segmentation (compressed RLE). The ids are numbered anew from 1: pycocotools
        notes a match down as the id of its partner and reads 0 as "no match", so that it never
        counts an object with id 0 as found.
    """

    image_sizes: dict[int, tuple[int, int]]
    category_names: dict[int, str]
    annotations: list[dict]


def load_ground_truth(annotations: str | Path | Mapping, *, with_masks: bool = True) -> GroundTruth:
    """Reads a COCO annotation file, or takes one that is read already and does not change it.

    "iscrowd" counts as 0 where it is missing. A missing "area" or "bbox" is taken from the mask.

    Args:
      annotations: the json file or its contents.
      with_masks: take the segmentations; without, boxes are enough and masks are not looked at.

    Raises:
      InputError: anything is missing, malformed or contradictory, with the file and the entry.
    """
    if isinstance(annotations, Mapping):
        source, document = "annotations", annotations
    else:
        source, document = str(annotations), read_json(annotations, "annotations")
    images = _by_id(source, document, "images", _image_size)
    names = _by_id(source, document, "categories", lambda entry: str(field(entry, "name")))
    if not images or not names:
        empty = "categories" if images else "images"
        raise InputError(f'{source}: nothing to score against; list the "{empty}" of the data set')

    def parse(entry: Mapping) -> dict:
        return _parse_annotation(entry, images, names, with_masks)

    objects = list(_by_id(source, document, "annotations", parse).values())
    if with_masks and objects:
        _measure_masks(source, objects)
    for number, entry in enumerate(objects, start=1):
        entry["id"] = number
    return GroundTruth(images, dict(sorted(names.items())), objects)


def kinds_in_annotations(annotations: str | Path) -> tuple[str, ...]:
    """The figures that a COCO json allows: ("box",) where no object has a segmentation, as in VOC.

    An empty list of polygons is none either. Of a json without any object both kinds can be told.

    Raises:
      InputError: the file cannot be read, or is no json.
    """
    document = read_json(annotations, "annotations")
    entries = document.get("annotations") if isinstance(document, Mapping) else None
    if not isinstance(entries, list) or not entries:
        return KINDS
    outlined = (not isinstance(entry, Mapping) or entry.get("segmentation") for entry in entries)
    return KINDS if any(outlined) else ("box",)


def _by_id(source: str, document: object, key: str, parse: Callable[[Mapping], T]) -> dict[int, T]:
    """Parses a section of the file by id; adds file and entry to what `parse` complains of."""
    entries = document.get(key) if isinstance(document, Mapping) else None
    if not isinstance(entries, Sequence):
        raise InputError(
            f'{source}: no list "{key}"; a COCO file has "images", "annotations" and "categories"'
        )
    parsed: dict[int, T] = {}
    for index, entry in enumerate(entries):
        try:
            entry_id = field(entry, "id")
            if not is_whole(entry_id) or entry_id in parsed:
                raise ValueError(f"id {entry_id!r} is no whole number or taken; number them anew")
            parsed[entry_id] = parse(entry)
        except ValueError as problem:
            where = place(f"{key} entry", index, entry)
            raise InputError(f"{source}: {where}: {problem}") from None
    return parsed


def _image_size(entry: Mapping) -> tuple[int, int]:
    size = field(entry, "height"), field(entry, "width")
    if not all(map(is_whole, size)) or min(size) < 1:
        raise ValueError(f"height and width {size} are not positive whole numbers; correct them")
    return size


def _parse_annotation(entry, images, names, with_masks: bool) -> dict:
    image_id, category_id = field(entry, "image_id"), field(entry, "category_id")
    if not is_whole(image_id) or image_id not in images:
        raise ValueError('no such image_id under "images"; add the image or remove the annotation')
    if not is_whole(category_id) or category_id not in names:
        raise ValueError(f'category_id {category_id!r} is not under "categories"; add it there')
    parsed = {
        "image_id": image_id,
        "category_id": category_id,
        "iscrowd": int(bool(entry.get("iscrowd", 0))),
    }
    if with_masks:
        parsed["segmentation"] = _compressed_rle(field(entry, "segmentation"), images[image_id])
    if not with_masks or entry.get("bbox") is not None:
        parsed["bbox"] = _box(field(entry, "bbox"))
    if entry.get("area") is not None:
        parsed["area"] = _area(entry["area"])
    elif not with_masks:
        parsed["area"] = parsed["bbox"][2] * parsed["bbox"][3]
    return parsed


def _measure_masks(source: str, objects: list[dict]) -> None:
    """Checks the run lengths and adds the areas and boxes that the file does not give."""
    masks = [entry["segmentation"] for entry in objects]
    totals = pixel_totals([mask["counts"] for mask in masks])
    for index, (entry, mask, total) in enumerate(zip(objects, masks, totals, strict=True)):
        if total != math.prod(mask["size"]):
            raise InputError(
                f"{source}: {place('annotations entry', index, entry)}: the run lengths do not "
                f"add up to the {math.prod(mask['size'])} pixels of the mask; encode it again"
            )
        # One by one: pycocotools' area of a list fails beyond 255 masks.
        if "bbox" not in entry:
            entry["bbox"] = coco_mask.toBbox(mask).tolist()
        if "area" not in entry:
            entry["area"] = float(coco_mask.area(mask))


def _box(box: Sequence) -> list[float]:
    check_box_xywh(box)
    return [float(value) for value in box]


def _area(area: object) -> float:
    if not is_finite(area):
        raise ValueError(f"area {area!r} is not a finite number; correct or remove it")
    return float(area)


def _compressed_rle(segmentation: object, size: tuple[int, int]) -> dict:
    """Polygons or run lengths as compressed run lengths; those that are are not decoded yet."""
    height, width = size
    if isinstance(segmentation, Mapping):
        check_mask_size(segmentation, size)
        rle = {"size": [height, width], "counts": field(segmentation, "counts")}
        if isinstance(rle["counts"], str | bytes):
            return rle
        _check_runs(rle["counts"], height * width)
        return coco_mask.frPyObjects(rle, height, width)
    if not isinstance(segmentation, Sequence) or not segmentation:
        raise ValueError("segmentation is neither polygons nor run lengths; correct or remove it")
    polygons = [_polygon(points, size) for points in segmentation]
    return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))


def _check_runs(counts: object, pixels: int) -> None:
    runs = np.asarray(counts)
    whole = runs.ndim == 1 and runs.dtype.kind in "iu"
    if not whole or (runs < 0).any() or runs.sum() != pixels:
        raise ValueError(
            f"counts are no list of run lengths that adds up to the {pixels} pixels of the mask; "
            "encode the mask again"
        )


def _polygon(points: object, size: tuple[int, int]) -> list[float]:
    values = np.asarray(points)
    if values.ndim != 1 or values.dtype.kind not in "iuf" or len(values) < 6 or len(values) % 2:
        raise ValueError("polygon is no flat list of 3 or more points; correct or remove it")
    # Twice the image leaves room for any rounding; rasterising costs memory per pixel of outline.
    if not (np.abs(values) <= 2 * max(size)).all():
        raise ValueError("polygon leaves its image or has a NaN; correct it or the image's size")
    return values.tolist()
