"""solojax.evaluators.error_analysis on a worked example and against a loop over pixels."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from helpers.plain_nms import mask_iou
from pycocotools import mask as coco_mask

from solojax.errors import InputError
from solojax.evaluators import error_analysis
from solojax.evaluators.coco import CocoEvaluator
from solojax.evaluators.error_analysis import replace_masks_with_gt


def rectangle(x, y, width, height):
    mask = np.zeros((40, 50), np.uint8)
    mask[y : y + height, x : x + width] = 1
    return mask


def rle(mask):
    counts = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    return {"size": list(mask.shape), "counts": counts}


def result(mask, image_id=1, category_id=1, score=0.5, **fields):
    ids = {"image_id": image_id, "category_id": category_id}
    return {**ids, "score": score, "segmentation": rle(mask), **fields}


def truth(*objects):
    """(mask, image_id, category_id, iscrowd) each."""
    annotations = [
        {
            "id": number,
            "image_id": image_id,
            "category_id": category_id,
            "iscrowd": crowd,
            "segmentation": rle(mask),
        }
        for number, (mask, image_id, category_id, crowd) in enumerate(objects, start=7)
    ]
    return {
        "images": [{"id": i, "height": 40, "width": 50} for i in (1, 2, 3)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": annotations,
    }


CAT, DOG, CROWD = rectangle(0, 0, 10, 10), rectangle(8, 0, 20, 10), rectangle(0, 20, 50, 20)
TRUTH = truth((CAT, 1, 1, 0), (DOG, 1, 2, 0), (CROWD, 1, 1, 1), (CAT, 2, 1, 0))


def test_a_worked_example():
    results = [
        result(rectangle(1, 1, 10, 8), score=0.9),  # 72 of 108 pixels of the cat, 24 of the dog
        result(rectangle(8, 0, 12, 10)),  # inside the dog, though called a cat
        result(rectangle(9, 9, 1, 1)),  # one pixel of both: 1 / 100 is more than 1 / 200
        result(rectangle(30, 10, 5, 5)),  # nothing
        result(rectangle(5, 25, 10, 10)),  # inside the crowd
        result(np.zeros((40, 50), np.uint8)),  # an empty mask
        result(rectangle(8, 0, 20, 10), image_id=2),  # the second image has no dog
        result(rectangle(0, 0, 10, 10), image_id=3),  # the third has nothing at all
    ]
    kept = copy.deepcopy(results)
    out = replace_masks_with_gt(results, TRUTH)
    assert results == kept
    masks = [coco_mask.decode(entry["segmentation"]) for entry in out]
    unchanged = [coco_mask.decode(entry["segmentation"]) for entry in results]
    expected = [CAT, DOG, CAT, *unchanged[3:6], CAT, unchanged[7]]
    np.testing.assert_array_equal(masks, expected)
    for before, after in zip(results, out, strict=True):
        assert {**before, "segmentation": None} == {**after, "segmentation": None}
    json.dumps(out)


def test_boxes_follow_their_masks_where_there_are_any():
    boxed = result(rectangle(9, 1, 10, 8), bbox=[1.0, 2.0, 3.0, 4.0], note="kept")
    alone = result(rectangle(30, 10, 5, 5), bbox=[30.0, 10.0, 5.0, 5.0])
    without = result(rectangle(9, 1, 10, 8))
    boxed, alone, without = replace_masks_with_gt([boxed, alone, without], TRUTH)
    assert boxed["bbox"] == [8.0, 0.0, 20.0, 10.0] and boxed["note"] == "kept"
    assert alone["bbox"] == [30.0, 10.0, 5.0, 5.0]
    assert "bbox" not in without


def test_the_first_of_equal_objects_is_taken():
    twins = truth((rectangle(0, 0, 4, 4), 1, 1, 0), (rectangle(4, 0, 4, 4), 1, 1, 0))
    (out,) = replace_masks_with_gt([result(rectangle(2, 0, 4, 4))], twins)
    np.testing.assert_array_equal(coco_mask.decode(out["segmentation"]), rectangle(0, 0, 4, 4))


@pytest.mark.parametrize("chunk", [1, 4, 256])
def test_random_masks_get_the_object_that_a_loop_over_pixels_finds(chunk, monkeypatch):
    monkeypatch.setattr(error_analysis, "_CHUNK", chunk)
    rng = np.random.default_rng(0)

    def random_mask():
        x, y, width, height = rng.integers((0, 0, 1, 1), (35, 25, 15, 15))
        return rectangle(x, y, width, height)

    objects = [(random_mask(), int(rng.integers(1, 3)), 1, 0) for _ in range(8)]
    predicted = [(random_mask(), int(rng.integers(1, 3))) for _ in range(15)]
    out = replace_masks_with_gt([result(*entry) for entry in predicted], truth(*objects))
    changed = 0
    for (mask, image_id), entry in zip(predicted, out, strict=True):
        candidates = [each[0] for each in objects if each[1] == image_id]
        overlaps = [mask_iou(mask, candidate) for candidate in candidates]
        best = candidates[int(np.argmax(overlaps))] if max(overlaps) > 0 else mask
        np.testing.assert_array_equal(coco_mask.decode(entry["segmentation"]), best)
        changed += max(overlaps) > 0
    assert 3 < changed < len(predicted)


def test_rough_masks_score_as_perfect_ones_and_wrong_classes_do_not():
    rough = [
        result(rectangle(0, 0, 6, 10), category_id=1),
        result(rectangle(10, 0, 9, 10), category_id=2),
        result(rectangle(0, 0, 6, 10), image_id=2, category_id=2, score=0.1),
    ]
    evaluator = CocoEvaluator(TRUTH)
    before = evaluator.run(rough)["mask"]
    after = evaluator.run(replace_masks_with_gt(rough, TRUTH))["mask"]
    assert before["AP75"] == 0
    # Of the two cats one is found, with full precision: 51 of 101 recalls. The dog is found.
    assert after["AP"] == pytest.approx((51 / 101 + 1) / 2)


def test_polygons_a_file_and_no_results(tmp_path):
    document = truth((CAT, 1, 1, 0))
    document["annotations"][0]["segmentation"] = [[0, 0, 10, 0, 10, 10, 0, 10]]
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(document))
    (out,) = replace_masks_with_gt([result(rectangle(3, 3, 3, 3))], path)
    np.testing.assert_array_equal(coco_mask.decode(out["segmentation"]), CAT)
    json.dumps(out)
    assert replace_masks_with_gt([], path) == []


def test_a_result_that_does_not_fit_is_named():
    with pytest.raises(InputError, match="guesses.json: entry 1 .*image_id 9"):
        replace_masks_with_gt([result(CAT), result(CAT, image_id=9)], TRUTH, "guesses.json")
    with pytest.raises(InputError, match="no .segmentation."):
        replace_masks_with_gt([{"image_id": 1, "score": 0.5, "bbox": [0, 0, 1, 1]}], TRUTH)
