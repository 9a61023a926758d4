"""What a synthetic data set holds, measured on its annotations."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask

SMALL_AREA = 32**2  # COCO's limit, pixels
OCCLUDED_BELOW = 0.8  # visible share of the full area
_MIN_HOLE_AREA = 9  # pixels


def measure_synthetic_dataset(annotations: str | os.PathLike[str]) -> dict[str, float]:
    """Measures one split.

    Args:
      annotations: a json file of `write_synthetic_dataset`.

    Returns:
      images, objects, objects_per_image; occluded_share (less than 0.8 of the full area visible),
      small_share (fewer than 32^2 visible pixels) and hole_share (a hole in the visible mask), all
      fractions of the objects; min_visible_area in pixels and min_visible_share of the full area;
      min_side and max_side, the box's longer side over the picture's shorter; objects/NAME, the
      objects of each class.
    """
    document = json.loads(Path(annotations).read_text())
    objects = document["annotations"]
    sides = {image["id"]: min(image["height"], image["width"]) for image in document["images"]}
    names = {category["id"]: category["name"] for category in document["categories"]}
    area = np.array([each["area"] for each in objects])
    visible = area / np.array([each["full_area"] for each in objects])
    length = np.array([max(each["bbox"][2:]) / sides[each["image_id"]] for each in objects])
    counts = Counter(names[each["category_id"]] for each in objects)
    return {
        "images": len(sides),
        "objects": len(objects),
        "objects_per_image": len(objects) / len(sides),
        "occluded_share": float(np.mean(visible < OCCLUDED_BELOW)),
        "small_share": float(np.mean(area < SMALL_AREA)),
        "hole_share": float(np.mean([_has_hole(each["segmentation"]) for each in objects])),
        "min_visible_area": int(area.min()),
        "min_visible_share": float(visible.min()),
        "min_side": float(length.min()),
        "max_side": float(length.max()),
        **{f"objects/{name}": counts[name] for name in names.values()},
    }


def _has_hole(rle: dict) -> bool:
    """Whether the mask encloses background that does not touch what lies around the mask."""
    background = 1 - np.pad(coco_mask.decode(rle), 1)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(background, connectivity=4)
    outside = labels[0, 0]
    areas = [stats[n, cv2.CC_STAT_AREA] for n in range(1, count) if n != outside]
    return any(area >= _MIN_HOLE_AREA for area in areas)
