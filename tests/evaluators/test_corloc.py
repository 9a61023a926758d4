"""CorLoc, worked out by hand."""

from __future__ import annotations

import pytest

from solojax.evaluators.corloc import corloc


def objects(*entries):
    return [{"image_id": i, "bbox": box, "iscrowd": crowd} for i, box, crowd in entries]


def detections(*entries):
    return [{"image_id": i, "bbox": box, "score": score} for i, box, score in entries]


TRUTH = objects(
    (1, [0, 0, 10, 10], 0),
    (1, [50, 50, 10, 10], 0),
    (2, [0, 0, 10, 10], 0),
    (3, [0, 0, 10, 10], 0),
    (4, [0, 0, 10, 10], 1),  # a crowd alone: the image does not count
)


def test_the_best_box_decides():
    found = detections(
        (1, [90, 90, 5, 5], 0.2),
        (1, [50, 50, 10, 10], 0.9),  # on the second object
        (2, [0, 0, 10, 10], 0.3),
        (2, [40, 0, 10, 10], 0.8),  # better, and nowhere
        (4, [70, 70, 5, 5], 0.9),
        (5, [0, 0, 10, 10], 0.9),  # an image without objects
    )
    assert corloc(TRUTH, found) == pytest.approx(1 / 3)  # image 3 has no box


@pytest.mark.parametrize(("width", "hit"), [(5, True), (4.9, False), (20, True), (21, False)])
def test_half_is_enough(width, hit):
    found = detections((1, [0, 0, width, 10], 0.5))
    assert corloc(objects((1, [0, 0, 10, 10], 0)), found) == hit


def test_of_equal_scores_the_first_is_taken():
    found = detections((1, [0, 0, 10, 10], 0.5), (1, [90, 90, 5, 5], 0.5))
    assert corloc(objects((1, [0, 0, 10, 10], 0)), found) == 1


def test_the_box_may_lie_on_another_object_than_the_crowd():
    truth = objects((1, [0, 0, 10, 10], 0), (1, [50, 50, 40, 40], 1))
    assert corloc(truth, detections((1, [50, 50, 40, 40], 0.5))) == 0


def test_nothing_to_find():
    assert corloc([], detections((1, [0, 0, 10, 10], 0.5))) == -1
    assert corloc(objects((1, [0, 0, 9, 9], 1)), []) == -1
    assert corloc(TRUTH, []) == 0
