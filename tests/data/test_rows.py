"""Rows of a data set: what the loader gets for an image index."""

from __future__ import annotations

import pickle

import cv2
import numpy as np
import pytest
from helpers.tiny_run import write_data

from solojax.data.coco import load_coco
from solojax.data.rows import ImageRows, TrainRows
from solojax.errors import BrokenImage, InputError

CANVAS = (64, 96)


@pytest.fixture
def dataset(tmp_path):
    root = write_data(tmp_path / "data")
    return load_coco(root / "train.json", root / "images")


@pytest.fixture
def large(tmp_path):
    """The validation set, whose second image is 96x96."""
    root = write_data(tmp_path / "data")
    return load_coco(root / "val.json", root / "images")


def pixels(dataset, index):
    path = dataset.image_path(dataset.images[index])
    return cv2.imread(path)[..., ::-1]


def test_a_training_row_is_the_image_with_its_objects(dataset):
    rows = TrainRows(dataset, long_side=64, max_instances=4)
    row = rows(3, 64, False, CANVAS, 99)
    np.testing.assert_array_equal(row["image"][:, :64], pixels(dataset, 3))
    assert not row["image"][:, 64:].any()
    assert row["valid"] and row["image_index"] == 3 and row["seed"] == 99
    assert row["instance_valid"].tolist() == [True, True, False, False]
    for index, annotation in enumerate(dataset.images[3].annotations):
        x, y, width, height = annotation.bbox_xywh
        assert row["boxes"][index].tolist() == [x, y, x + width, y + height]
        assert row["labels"][index] == annotation.label
        # A filled rectangle: its centre of mass is its middle, in pixel indices.
        middle = [x + (width - 1) / 2, y + (height - 1) / 2]
        np.testing.assert_allclose(row["centers"][index], middle, atol=1e-4)


def test_a_flip_mirrors_image_and_boxes(dataset):
    rows = TrainRows(dataset, long_side=64, max_instances=4)
    plain, flipped = (rows(0, 64, flip, CANVAS, 0) for flip in (False, True))
    np.testing.assert_array_equal(flipped["image"][:, :64], plain["image"][:, :64][:, ::-1])
    np.testing.assert_allclose(flipped["boxes"][:2, 0], 64 - plain["boxes"][:2, 2])
    np.testing.assert_allclose(flipped["boxes"][:2, 2], 64 - plain["boxes"][:2, 0])


def test_settings_reach_the_row(dataset):
    area = sorted(
        width * height
        for _, _, width, height in (a.bbox_xywh for a in dataset.images[0].annotations)
    )
    few = TrainRows(dataset, long_side=64, max_instances=1)(0, 64, False, CANVAS, 0)
    assert few["instance_valid"].shape == (1,) and few["dropped_instances"] == 1
    rows = TrainRows(dataset, long_side=64, max_instances=4, min_mask_area=int(area[0]) + 1)
    assert rows(0, 64, False, CANVAS, 0)["instance_valid"].sum() == (area[0] < area[1])
    short = TrainRows(dataset, long_side=32, max_instances=4)(0, 64, False, CANVAS, 0)
    assert short["image_size"].tolist() == [32, 32]


def test_a_row_for_inference_has_the_image_alone(large):
    row = ImageRows(large, long_side=64)(1, 64, True, CANVAS, 5)
    assert row["original_size"].tolist() == [96, 96] and row["image_size"].tolist() == [64, 64]
    assert row["boxes"].shape == (0, 4) and row["image_index"] == 1 and row["valid"]
    wanted = cv2.resize(pixels(large, 1), (64, 64), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(row["image"][:, :64], wanted)  # not flipped, whatever is asked


@pytest.mark.parametrize("make", [lambda d: TrainRows(d, 64, 4), lambda d: ImageRows(d, 64)])
def test_broken_and_unlike_images(dataset, make):
    rows = make(dataset)
    path = dataset.image_path(dataset.images[2])
    cv2.imwrite(path, np.zeros((32, 64, 3), np.uint8))
    with pytest.raises(InputError, match="image_2.png.*64x32.*64x64") as error:
        rows(2, 64, False, CANVAS, 0)
    assert not isinstance(error.value, BrokenImage)
    open(path, "wb").close()
    with pytest.raises(BrokenImage, match="image_2.png"):
        rows(2, 64, False, CANVAS, 0)


@pytest.mark.parametrize("make", [lambda d: TrainRows(d, 64, 4), lambda d: ImageRows(d, 64)])
def test_empty_rows_have_the_shapes_of_full_ones(dataset, make):
    rows = make(dataset)
    full, empty = rows(0, 64, False, CANVAS, 0), rows.empty(CANVAS)
    assert not empty["valid"] and full.keys() == empty.keys()
    for key in full:
        assert np.shape(full[key]) == np.shape(empty[key])
        assert np.asarray(full[key]).dtype == np.asarray(empty[key]).dtype


def test_rows_travel_to_worker_processes(dataset):
    rows = TrainRows(dataset, long_side=64, max_instances=4)
    copy = pickle.loads(pickle.dumps(rows))
    for key, value in rows(1, 64, True, CANVAS, 7).items():
        np.testing.assert_array_equal(copy(1, 64, True, CANVAS, 7)[key], value)
