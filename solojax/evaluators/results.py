"""COCO results: reading a file of them, and checking every entry before anything is scored."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

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
from solojax.evaluators.run_lengths import pixel_totals

KINDS = ("mask", "box")


def load_results(path: str | Path, document: object = None) -> list[dict]:
    """Reads a COCO results file: a json list with one object per detection.

    Args:
      path: of the file.
      document: its contents, where they were read before.

    Raises:
      InputError: the file cannot be read, is no json, or holds something else than a list.
    """
    results = read_json(path, "results") if document is None else document
    if not isinstance(results, list):
        raise InputError(
            f"{path}: not a list of results but a json {type(results).__name__}; give a list of "
            'predictions {"image_id", "category_id", "score", "segmentation"}'
        )
    return results


def kinds_in_results(results: Sequence[Mapping]) -> tuple[str, ...]:
    """The figures that results allow: ("mask", "box"), or ("box",) where no entry has a mask."""
    has_mask = (isinstance(entry, Mapping) and "segmentation" in entry for entry in results)
    return KINDS if not results or any(has_mask) else ("box",)


def check_results(
    results: Sequence[Mapping],
    *,
    image_sizes: Mapping[int, tuple[int, int]],
    category_ids: Collection[int] | None,
    kinds: Collection[str] = KINDS,
    source: str = "results",
) -> None:
    """Checks COCO results against the data set that they are to be scored on.

    Args:
      results: dicts with image_id, category_id, score and segmentation (compressed RLE); bbox
        ([x, y, width, height]) may be missing where there is a segmentation.
      image_sizes: (height, width) of every image id.
      category_ids: the ids of the data set, or None to ignore the results' categories.
      kinds: what is to be scored; for ("box",) alone a bbox is enough.
      source: what the messages call the results: their file.

    Raises:
      InputError: on an entry that does not fit, with its position counted from 0.
    """
    for index, entry in enumerate(results):
        try:
            _check_entry(entry, image_sizes, category_ids, kinds)
        except ValueError as problem:
            raise InputError(f"{source}: {place('entry', index, entry)}: {problem}") from None
    with_mask = [i for i, entry in enumerate(results) if "segmentation" in entry]
    totals = pixel_totals([results[i]["segmentation"]["counts"] for i in with_mask])
    for index, total in zip(with_mask, totals, strict=True):
        height, width = results[index]["segmentation"]["size"]
        if total != height * width:
            raise InputError(
                f"{source}: {place('entry', index, results[index])}: the run lengths do not add "
                f"up to the {height * width} pixels of the mask; encode the mask again"
            )


def _check_entry(entry, image_sizes, category_ids, kinds) -> None:
    """Raises ValueError with what is wrong and what to do."""
    image_id = field(entry, "image_id")
    if not is_whole(image_id) or image_id not in image_sizes:
        raise ValueError(
            f"image_id {image_id!r} is not in the annotations; score the results against the "
            "annotation file of the images that they were predicted on"
        )
    if category_ids is not None:
        category_id = field(entry, "category_id")
        if not is_whole(category_id) or category_id not in category_ids:
            raise ValueError(
                f"category_id {category_id!r} is not in the annotations; write the ids of the "
                "annotation file's categories, or score class-agnostically"
            )
    score = field(entry, "score")
    if not is_finite(score):
        raise ValueError(f"score {score!r} is not a finite number; correct or remove the entry")
    if "segmentation" in entry:
        _check_segmentation(entry["segmentation"], image_sizes[image_id])
    elif "mask" in kinds:
        raise ValueError(
            'has no "segmentation", which mask AP needs; write the mask as compressed RLE, or '
            "score the boxes alone"
        )
    if "bbox" in entry or "segmentation" not in entry:
        check_box_xywh(field(entry, "bbox"))


def _check_segmentation(segmentation: object, image_size: tuple[int, int]) -> None:
    counts = segmentation.get("counts") if isinstance(segmentation, Mapping) else None
    if not isinstance(counts, str | bytes):
        raise ValueError(
            'segmentation is not compressed RLE ({"size": [height, width], "counts": text}); '
            "encode the mask with pycocotools"
        )
    check_mask_size(segmentation, image_size)
