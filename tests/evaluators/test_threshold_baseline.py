"""Thresholds and components: right where they can be, and helpless on the synthetic data set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from solojax.data.synthetic import write_synthetic_dataset
from solojax.errors import BrokenImage, InputError
from solojax.evaluators.threshold_baseline import (
    MAX_DETECTIONS,
    color_cluster_masks,
    otsu_masks,
    run_threshold_baseline,
)

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "threshold_baseline.py"


def _plain_picture():
    """A bright square and a brighter bar on black."""
    image = np.zeros((60, 80, 3), np.uint8)
    image[10:30, 10:30] = (200, 180, 190)
    image[40:50, 20:70] = (250, 250, 250)
    return image


def _document(areas_and_boxes, category_ids):
    annotations = [
        {
            "id": number + 1,
            "image_id": 1,
            "category_id": category_id,
            "bbox": [x, y, w, h],
            "area": w * h,
            "iscrowd": 0,
            "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
        }
        for number, ((x, y, w, h), category_id) in enumerate(
            zip(areas_and_boxes, category_ids, strict=True)
        )
    ]
    return {
        "images": [{"id": 1, "file_name": "plain.png", "height": 60, "width": 80}],
        "annotations": annotations,
        "categories": [{"id": 4, "name": "a"}, {"id": 9, "name": "b"}],
    }


@pytest.fixture
def plain(tmp_path):
    cv2.imwrite(str(tmp_path / "plain.png"), _plain_picture()[..., ::-1])
    document = _document([(10, 10, 20, 20), (20, 40, 50, 10)], [9, 9])
    (tmp_path / "plain.json").write_text(json.dumps(document))
    return tmp_path


def test_otsu_finds_both_sides_largest_first():
    masks = otsu_masks(_plain_picture())
    areas = masks.sum(axis=(1, 2)).tolist()
    assert areas == [60 * 80 - 900, 500, 400]
    expected = np.zeros((60, 80), bool)
    expected[40:50, 20:70] = True
    np.testing.assert_array_equal(masks[1], expected)


def test_colour_clusters_separate_what_brightness_does_not():
    """Red and green of equal grey, touching."""
    image = np.zeros((40, 60, 3), np.uint8)
    image[10:30, 10:30] = (200, 0, 0)
    image[10:30, 30:50] = (0, 102, 0)
    red = np.zeros((40, 60), bool)
    red[10:30, 10:30] = True
    assert any((mask == red).all() for mask in color_cluster_masks(image))
    assert not any((mask == red).all() for mask in otsu_masks(image))


@pytest.mark.parametrize("method", [otsu_masks, color_cluster_masks])
def test_number_and_order_of_masks(method):
    """Chequered patches of over 100 components, and specks too small to count."""
    image = np.kron(np.indices((16, 16)).sum(0) % 2, np.ones((10, 10))).astype(np.uint8) * 200
    image[3:5, 3:5] = 255
    masks = method(np.repeat(image[..., None], 3, axis=2))
    assert masks.dtype == bool
    assert len(masks) == MAX_DETECTIONS
    areas = masks.sum(axis=(1, 2))
    assert (np.diff(areas) <= 0).all()
    assert areas.min() >= 64


def test_a_plain_image_has_no_masks():
    assert otsu_masks(np.full((30, 40, 3), 90, np.uint8)).shape == (0, 30, 40)


def test_perfect_on_a_plain_picture(plain):
    """Otsu's two objects are exact; the background ranks above them and costs precision.

    Ranked: background (wrong), bar, square: precision 1/2 at recall 1/2 and 2/3 at recall 1, which
    interpolates to 2/3 everywhere.
    """
    scores = run_threshold_baseline(plain / "plain.json", plain)
    assert scores["otsu/class_agnostic"]["AP"] == pytest.approx(2 / 3)
    assert scores["otsu/most_frequent_class"]["AP50"] == pytest.approx(2 / 3)


def test_the_most_frequent_class_is_the_only_one_found(plain):
    document = _document([(10, 10, 20, 20), (20, 40, 50, 10), (0, 55, 5, 5)], [9, 9, 4])
    (plain / "plain.json").write_text(json.dumps(document))
    scores = run_threshold_baseline(plain / "plain.json", plain)
    # Class 9 as above, class 4 zero.
    assert scores["otsu/most_frequent_class"]["AP"] == pytest.approx(1 / 3)


def test_bad_input_is_named(plain):
    (plain / "empty.json").write_text(json.dumps(_document([], [])))
    with pytest.raises(InputError, match="no objects"):
        run_threshold_baseline(plain / "empty.json", plain)
    with pytest.raises(BrokenImage, match="plain.png"):
        run_threshold_baseline(plain / "plain.json", plain / "elsewhere")


def test_the_synthetic_data_set_needs_learning(tmp_path):
    write_synthetic_dataset(tmp_path / "data", seed=0, num_train=1, num_val=24)
    scores = run_threshold_baseline(tmp_path / "data" / "val.json", tmp_path / "data" / "val")
    assert len(scores) == 4
    assert all(0 <= score["AP"] < 0.20 for score in scores.values())


def test_the_script_prints_the_scores(plain):
    def run(annotations):
        command = [sys.executable, str(SCRIPT), "--images", str(plain), "--annotations"]
        return subprocess.run(
            [*command, str(plain / annotations)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    done = run("plain.json")
    assert done.returncode == 0, done.stderr
    assert "otsu/class_agnostic                  AP 0.667  AP50 0.667" in done.stdout
    failed = run("absent.json")
    assert failed.returncode == 2
    assert "absent.json" in failed.stderr and "Traceback" not in failed.stderr
