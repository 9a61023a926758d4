"""How much better would the results be with perfect masks (thesis 3.3.5, Table 3.7)?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from solojax.evaluators.ground_truth import GroundTruth, load_ground_truth
from solojax.evaluators.results import check_results

_CHUNK = 256  # results whose overlaps are held at once: bounds memory where an image has thousands


def replace_masks_with_gt(
    results: Iterable[Mapping], annotations: str | Path | Mapping, source: str = "results"
) -> list[dict]:
    """Results whose masks are replaced by the ground-truth masks that they overlap most.

    The thesis: "For each predicted binary mask, we compute IoUs with ground-truth masks, and
    replace it with the most overlapping ground-truth mask." Taken to the letter:

    * classes do not matter: a mask with the wrong class becomes the object's mask and keeps its
      class, so that what is left is the error of the category branch;
    * any overlap is enough, and several results may get one object's mask;
    * a mask that overlaps no object has no most overlapping one, and stays as it is.

    Crowd regions outline no instance and replace nothing. Of equal IoUs the first annotation's mask
    is taken.

    Args:
      results: dicts with image_id, score and segmentation (compressed RLE), as `CocoEvaluator.run`
        takes them. They are not changed.
      annotations: the COCO json file or its contents.
      source: what messages call the results: their file.

    Returns:
      The results in their order, everything else of theirs kept; a bbox follows its new mask.

    Raises:
      InputError: annotations that do not hold together, or a result that does not fit them.
    """
    truth = load_ground_truth(annotations)
    replaced = [dict(entry) for entry in results]
    check_results(
        replaced,
        image_sizes=truth.image_sizes,
        category_ids=None,
        kinds=("mask",),
        source=source,
    )
    of_image = defaultdict(list)
    for entry in replaced:
        of_image[entry["image_id"]].append(entry)
    masks_of_image = _object_masks(truth)
    for image_id, entries in of_image.items():
        for start in range(0, len(entries), _CHUNK):
            _replace(entries[start : start + _CHUNK], masks_of_image[image_id])
    return replaced


def _object_masks(truth: GroundTruth) -> Mapping[int, list[dict]]:
    """Masks of every image's objects, crowds left out, as run lengths that json can hold."""
    masks = defaultdict(list)
    for entry in truth.annotations:
        if not entry["iscrowd"]:
            size, counts = entry["segmentation"]["size"], entry["segmentation"]["counts"]
            counts = counts.decode("ascii") if isinstance(counts, bytes) else counts
            masks[entry["image_id"]].append({"size": list(size), "counts": counts})
    return masks


def _replace(entries: Sequence[dict], masks: Sequence[dict]) -> None:
    """Replaces the masks of one image's results in place."""
    if not masks:
        return
    predicted = [entry["segmentation"] for entry in entries]
    overlaps = coco_mask.iou(predicted, masks, [0] * len(masks))  # (results, objects)
    for entry, best, overlap in zip(
        entries, np.argmax(overlaps, axis=1), np.max(overlaps, axis=1), strict=True
    ):
        if overlap > 0:
            entry["segmentation"] = dict(masks[best])
            if "bbox" in entry:
                entry["bbox"] = coco_mask.toBbox(masks[best]).tolist()
