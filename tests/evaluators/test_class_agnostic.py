"""Class-agnostic figures against AP and AR in plain loops: matching, crowds, sizes, limits."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from solojax.evaluators.coco import CocoEvaluator

SIZE = (130, 170)
THRESHOLDS = [0.5 + 0.05 * n for n in range(10)]
RANGES = {"": (0, 1e10), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}


def random_rectangle(rng):
    side = int(rng.choice([14, 55, 118]))
    height, width = rng.integers(side * 3 // 4, side, 2)
    y, x = rng.integers(0, SIZE[0] - height), rng.integers(0, SIZE[1] - width)
    mask = np.zeros(SIZE, bool)
    mask[y : y + height, x : x + width] = True
    return mask


def scene(seed, num_images=6):
    """[(objects (mask, crowd), detections (mask, score))] of every image; scores all differ."""
    rng = np.random.default_rng(seed)
    images = []
    for image in range(num_images):
        objects = [(random_rectangle(rng), rng.random() < 0.2) for _ in range(5)]
        masks = [np.roll(mask, rng.integers(-5, 6, 2), (0, 1)) for mask, _ in objects[:4]]
        masks += [random_rectangle(rng) for _ in range(110 if image == 2 else 3)]
        images.append((objects, [(mask, float(rng.random())) for mask in masks]))
    return images


def plain_matches(objects, detections, threshold, low, high):
    """[(score, hit)] of what counts, and how many objects there are to find."""
    ignored = [crowd or not low <= mask.sum() <= high for mask, crowd in objects]
    taken, outcome = set(), []
    for mask, score in detections:
        best, chosen = threshold - 1e-10, None
        for wanted in (False, True):  # objects before what is ignored
            for n, (other, crowd) in enumerate(objects):
                if ignored[n] != wanted or (n in taken and not crowd):
                    continue
                shared = (mask & other).sum()
                iou = shared / (mask.sum() if crowd else (mask | other).sum())
                if iou >= best:
                    best, chosen = iou, n
            if chosen is not None:
                break
        if chosen is not None:
            taken.add(chosen)
        if chosen is None and low <= mask.sum() <= high:
            outcome.append((score, False))
        elif chosen is not None and not ignored[chosen]:
            outcome.append((score, True))
    return outcome, ignored.count(False)


def plain_figures(images, most, area):
    """(AP at each threshold, recall at each threshold), classes unheard of."""
    precisions, recalls = [], []
    for threshold in THRESHOLDS:
        outcomes, total = [], 0
        for objects, detections in images:
            best = sorted(detections, key=lambda each: -each[1])[:most]
            found, count = plain_matches(objects, best, threshold, *RANGES[area])
            outcomes, total = outcomes + found, total + count
        hits = np.array([hit for _, hit in sorted(outcomes, key=lambda each: -each[0])], float)
        recall = np.cumsum(hits) / total
        precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
        best_beyond = [
            precision[recall >= level - 1e-12].max(initial=0.0) for level in np.linspace(0, 1, 101)
        ]
        precisions.append(np.mean(best_beyond))
        recalls.append(recall[-1])
    return np.array(precisions), np.array(recalls)


def as_coco(images, rng):
    """The same with classes that have nothing to do with it."""
    truth = {
        "images": [
            {"id": n, "height": SIZE[0], "width": SIZE[1], "file_name": f"{n}.jpg"}
            for n in range(1, len(images) + 1)
        ],
        "categories": [{"id": n, "name": str(n)} for n in range(1, 4)],
        "annotations": [],
    }
    results = []
    for n, (objects, detections) in enumerate(images, start=1):
        for mask, crowd in objects:
            entry = {"image_id": n, "segmentation": rle(mask), "iscrowd": int(crowd)}
            entry |= {"id": len(truth["annotations"]) + 1, "category_id": int(rng.integers(1, 4))}
            truth["annotations"].append(entry)
        for mask, score in detections:
            entry = {"image_id": n, "score": score, "category_id": int(rng.integers(1, 9))}
            results.append(entry | {"segmentation": rle(mask)})
    return truth, results


def rle(mask):
    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


@pytest.mark.parametrize("backend", ["fast", "reference"])
def test_plain_loops(backend):
    images = scene(0)
    truth, results = as_coco(images, np.random.default_rng(1))
    figures = CocoEvaluator(truth, backend=backend, class_agnostic=True).run(results)["mask"]
    precision, recall = plain_figures(images, 100, "")
    expected = {
        "AP": precision.mean(),
        "AP50": precision[0],
        "AP75": precision[5],
        "AR1": plain_figures(images, 1, "")[1].mean(),
        "AR10": plain_figures(images, 10, "")[1].mean(),
        "AR100": recall.mean(),
        **{f"AP{area}": plain_figures(images, 100, area)[0].mean() for area in "sml"},
        **{f"AR{area}": plain_figures(images, 100, area)[1].mean() for area in "sml"},
    }
    assert 0.05 < expected["AP"] < expected["AP50"] < 1 and expected["AR1"] < expected["AR10"]
    assert figures == pytest.approx(expected, abs=1e-9)
