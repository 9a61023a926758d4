"""CorLoc: in how many images the best box is on an object, for object discovery."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from pycocotools import mask as coco_mask

_LEAST_IOU = 0.5
_UNDEFINED = -1.0


def corloc(annotations: Iterable[Mapping], detections: Iterable[Mapping]) -> float:
    """Fraction of images whose one best box has IoU >= 0.5 with a box of any object.

    Deselaers, Alexe and Ferrari ("Localizing objects while learning their appearance", 2010) count
    the images in which a method localizes an object correctly by the PASCAL criterion; Vo, Pérez
    and Ponce (2020) take it over to discovery without classes: one box an image, any object. IoU is
    COCO's (a box from x to x + width; PASCAL's own program adds a pixel), and 0.5 is enough as in
    AP50, where PASCAL asks for more than it.

    Images without an object that is no crowd do not count; an image without a box is a failure. Of
    equal scores the box that comes first is taken.

    Args:
      annotations: dicts with image_id, bbox (xywh) and iscrowd.
      detections: dicts with image_id, bbox (xywh) and score.

    Returns:
      In [0, 1]; -1 where no image counts, as COCO's figures.
    """
    objects: dict[int, list] = {}
    for entry in annotations:
        if not entry["iscrowd"]:
            objects.setdefault(entry["image_id"], []).append(entry["bbox"])
    best: dict[int, Mapping] = {}
    for entry in detections:
        known = best.get(entry["image_id"])
        if known is None or entry["score"] > known["score"]:
            best[entry["image_id"]] = entry
    if not objects:
        return _UNDEFINED
    hits = [
        image_id in best and _hits(best[image_id]["bbox"], boxes)
        for image_id, boxes in objects.items()
    ]
    return float(np.mean(hits))


def _hits(box_xywh, boxes_xywh: list) -> bool:
    detected, wanted = (np.asarray(x, np.float64).reshape(-1, 4) for x in (box_xywh, boxes_xywh))
    return bool(np.any(coco_mask.iou(detected, wanted, [0] * len(wanted)) >= _LEAST_IOU))
