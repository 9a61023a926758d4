"""Reports on recorded outputs: figures by hand."""

from __future__ import annotations

import numpy as np
import pytest

from solojax.errors import InputError
from solojax.interop.parity import compare_instances, compare_stages, report_table
from solojax.interop.recordings import RecordedInstances, Sample


def test_a_worked_example():
    recorded = {"c2": np.array([[3.0, 4.0], [0.0, 0.0]])}
    ours = {"c1": np.zeros(3), "c2": np.array([[3.0, 4.0], [0.0, -2.0]])}
    [report] = compare_stages(recorded, ours, tolerance=0.4)
    assert (report.stage, report.shape) == ("c2", (2, 2))
    assert (report.largest, report.mean, report.scale) == (2.0, 0.5, 4.0)
    assert report.cosine == pytest.approx(25 / (5 * 29**0.5))
    assert report.allowed == pytest.approx(1.6) and not report.passed
    assert compare_stages(recorded, ours, tolerance=0.5)[0].passed


def test_equal_zeros_pass_and_nan_does_not():
    zeros, nan = np.zeros(2), np.array([0.0, np.nan])
    [report] = compare_stages({"a": zeros}, {"a": zeros})
    assert report.passed and report.cosine == 1
    for one, other in ((zeros, nan), (nan, zeros), (nan, nan)):
        assert not compare_stages({"a": one}, {"a": other})[0].passed


def test_stages_come_in_the_order_of_the_network():
    arrays = {"p2": np.ones(1), "c2": np.ones(1)}
    ours = {"c2": np.ones(1), "p2": np.ones(1)}
    assert [report.stage for report in compare_stages(arrays, ours)] == ["c2", "p2"]


def test_the_table():
    reports = compare_stages(
        {"c2": np.ones((1, 2, 3)), "p2": np.ones(1)}, {"c2": np.ones((1, 2, 3)), "p2": np.zeros(1)}
    )
    head, first, second = report_table(reports).splitlines()
    assert head.split() == "stage shape largest diff mean diff cosine allowed".split()
    assert first.split() == ["c2", "1x2x3", "0.000e+00", "0.000e+00", "1.000000000", "1.000e-04",
                             "pass"]  # fmt: skip
    assert second.split()[-1] == "FAIL" and second.split()[2] == "1.000e+00"


def test_unknown_stages_and_other_shapes_are_refused():
    with pytest.raises(InputError, match="stage 'c9' is recorded and not known; use one of c2, p2"):
        compare_stages({"c9": np.ones(1)}, {"c2": np.ones(1), "p2": np.ones(1)})
    with pytest.raises(InputError, match=r"recorded as \(1, 2\) and is \(2, 1\) here"):
        compare_stages({"c2": np.ones((1, 2))}, {"c2": np.ones((2, 1))})


def test_samples():
    """Positions in the flattened array; the scale is that of the sample."""
    ours = np.arange(12.0).reshape(3, 4)
    sample = Sample((3, 4), np.array([1, 6]), np.array([1.0, 6.5]))
    [report] = compare_stages({"c2": sample}, {"c2": ours}, tolerance=0.1)
    assert (report.shape, report.largest, report.mean, report.scale) == ((3, 4), 0.5, 0.25, 6.5)
    assert report.allowed == pytest.approx(0.65) and report.passed
    with pytest.raises(InputError, match=r"recorded as \(3, 4\) and is \(4, 3\) here"):
        compare_stages({"c2": sample}, {"c2": ours.T})


def squares(*objects, size=20):
    """Objects (score, class, left edge): squares of 10x10 in a row."""
    masks = np.zeros((len(objects), 10, size), bool)
    for mask, (_, _, left) in zip(masks, objects, strict=True):
        mask[:, left : left + 10] = True
    scores, classes, _ = (np.array(each) for each in zip(*objects, strict=True))
    return RecordedInstances(scores, classes, masks)


def test_equal_objects_in_another_order():
    """Two that are closer in score than the tolerance may change places."""
    theirs = squares((0.9, 1, 0), (0.5002, 1, 0), (0.5, 1, 10), (0.5, 0, 10))
    ours = squares((0.9, 1, 0), (0.5, 0, 10), (0.5, 1, 10), (0.5, 1, 0))
    objects, scores, masks = compare_instances("image0", theirs, ours)
    assert (objects.stage, objects.shape, objects.largest) == ("image0 objects", (4,), 0)
    assert scores.largest == pytest.approx(2e-4) and scores.allowed == 5e-4
    assert masks.largest == 0 and masks.shape == (4, 10, 20) and masks.cosine is None
    assert objects.passed and scores.passed and masks.passed


def test_objects_that_differ():
    theirs = squares((0.9, 1, 0), (0.8, 2, 0))
    objects, scores, masks = compare_instances("a", theirs, squares((0.9, 1, 1), (0.7, 2, 0)))
    assert objects.passed and not scores.passed and not masks.passed
    assert scores.largest == pytest.approx(0.1) and scores.mean == pytest.approx(0.05)
    assert masks.largest == pytest.approx(1 - 9 / 11) and masks.allowed == pytest.approx(0.005)
    objects, *_ = compare_instances("a", theirs, squares((0.9, 1, 0), (0.8, 3, 0)))
    assert not objects.passed and objects.largest == 2  # one of each without a partner
    objects, *_ = compare_instances("a", theirs, squares((0.9, 1, 0)))
    assert not objects.passed and objects.largest == 1


def test_no_objects_and_no_masks():
    none = RecordedInstances(np.zeros(0), np.zeros(0, int), np.zeros((0, 10, 20), bool))
    assert all(report.passed for report in compare_instances("a", none, none))
    assert not compare_instances("a", none, squares((0.9, 1, 0)))[0].passed
    one = squares((0.9, 1, 0))
    without = RecordedInstances(one.scores, one.classes, None)
    reports = compare_instances("a", without, one)
    assert [report.stage for report in reports] == ["a objects", "a scores"]
    assert all(report.passed for report in reports)
    assert report_table(reports).splitlines()[1].split()[5] == "-"
    nan = RecordedInstances(np.array([np.nan]), one.classes, one.masks)
    assert not compare_instances("a", one, nan)[1].passed


def test_masks_without_a_pixel_are_equal():
    empty = RecordedInstances(np.array([0.5]), np.array([0]), np.zeros((1, 2, 3), bool))
    assert compare_instances("a", empty, empty)[2].largest == 0
