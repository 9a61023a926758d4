"""What instance segmentation without learning reaches: thresholds and connected components.

A data set on which this comes near a trained model is too easy to show that a model has learnt
anything.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from solojax.errors import BrokenImage, InputError

MIN_AREA = 64  # pixels; smaller components are texture
MAX_AREA_SHARE = 0.9  # of the picture; larger components are background
MAX_DETECTIONS = 100  # COCO's own limit
NUM_COLORS = 8


def otsu_masks(image: np.ndarray) -> np.ndarray:
    """Connected components of either side of Otsu's grey threshold.

    Args:
      image: uint8 (H, W, 3) RGB.

    Returns:
      bool (M, H, W), M at most `MAX_DETECTIONS`, the largest first.
    """
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    _, bright = cv2.threshold(gray, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    return _largest_components([bright, 1 - bright])


def color_cluster_masks(image: np.ndarray) -> np.ndarray:
    """Connected components of each of `NUM_COLORS` k-means clusters of the pixels' Lab colours.

    Args:
      image: uint8 (H, W, 3) RGB.

    Returns:
      bool (M, H, W), M at most `MAX_DETECTIONS`, the largest first.
    """
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    pixels = lab.reshape(-1, 3).astype(np.float32)
    # Starting from equal shares by brightness keeps the result free of random numbers.
    order = np.argsort(np.argsort(pixels[:, 0], kind="stable"), kind="stable")
    labels = (order * NUM_COLORS // len(order)).astype(np.int32)[:, None]
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_MAX_ITER, 20, 0.5)
    _, labels, _ = cv2.kmeans(
        pixels, NUM_COLORS, labels, stop, attempts=1, flags=cv2.KMEANS_USE_INITIAL_LABELS
    )
    clusters = labels.reshape(image.shape[:2])
    return _largest_components([(clusters == n).astype(np.uint8) for n in range(NUM_COLORS)])


METHODS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "otsu": otsu_masks,
    "color_clusters": color_cluster_masks,
}


def _largest_components(binary_images: list[np.ndarray]) -> np.ndarray:
    height, width = binary_images[0].shape
    found = []
    for binary in binary_images:
        count, labels, stats, _ = cv2.connectedComponentsWithStats(binary, connectivity=4)
        for label in range(1, count):
            area = int(stats[label, cv2.CC_STAT_AREA])
            if MIN_AREA <= area <= MAX_AREA_SHARE * height * width:
                found.append((area, labels, label))
    found.sort(key=lambda each: -each[0])
    masks = [labels == label for _, labels, label in found[:MAX_DETECTIONS]]
    return np.array(masks, bool).reshape(-1, height, width)


def run_threshold_baseline(
    annotations: str | os.PathLike[str], images: str | os.PathLike[str]
) -> dict[str, dict[str, float]]:
    """Mask AP of every method on a data set.

    A component's score is its area as a share of the picture. Components carry no class, so each
    method is scored twice: with all classes merged into one, which is generous, and with every
    component given the most frequent class of the annotations.

    Args:
      annotations: COCO json.
      images: folder of the pictures.

    Returns:
      For "METHOD/class_agnostic" and "METHOD/most_frequent_class": {"AP", "AP50"}, fractions.

    Raises:
      InputError: for annotations without objects.
      BrokenImage: for a picture that cannot be read.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO(str(annotations))
    counts = Counter(each["category_id"] for each in ground_truth.anns.values())
    if not counts:
        raise InputError(f"{annotations}: no objects; a baseline needs some to be scored on")
    frequent = counts.most_common(1)[0][0]
    results = {name: [] for name in METHODS}
    for image_id, record in ground_truth.imgs.items():
        image = _read_rgb(Path(images) / record["file_name"])
        for name, method in METHODS.items():
            results[name] += _to_results(method(image), image_id, frequent)
    scores = {}
    for name, found in results.items():
        scores[f"{name}/class_agnostic"] = _mask_ap(ground_truth, found, use_categories=False)
        scores[f"{name}/most_frequent_class"] = _mask_ap(ground_truth, found, use_categories=True)
    return scores


def _read_rgb(path: Path) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise BrokenImage(f"{path} is absent or no picture; check the images folder")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _to_results(masks: np.ndarray, image_id: int, category_id: int) -> list[dict]:
    results = []
    for mask in masks:
        rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        results.append(
            {
                "image_id": image_id,
                "category_id": category_id,
                "score": float(mask.mean()),
                "bbox": coco_mask.toBbox(rle).tolist(),
                "segmentation": rle,
            }
        )
    return results


def _mask_ap(ground_truth: COCO, results: list[dict], *, use_categories: bool) -> dict[str, float]:
    if not results:
        return {"AP": 0.0, "AP50": 0.0}
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(ground_truth, ground_truth.loadRes(results), "segm")
        evaluation.params.useCats = int(use_categories)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {"AP": float(evaluation.stats[0]), "AP50": float(evaluation.stats[1])}
