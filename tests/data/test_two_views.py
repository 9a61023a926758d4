"""Rows of two views, alone and through the loader."""

from __future__ import annotations

import logging
import pickle

import cv2
import numpy as np
import pytest

from solojax.data.image_folder import list_folder
from solojax.data.loader import train_batches
from solojax.data.two_views import TwoViewRows, stack_views
from solojax.data.view_plan import ViewPlan
from solojax.errors import BrokenImage, InputError
from solojax.structures import ViewBatch

CANVAS = (32, 24)
HEIGHT, WIDTH = 90, 120
NUM_IMAGES = 6


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Red grows with x and green with y, by two levels a pixel; blue tells the image."""
    root = tmp_path_factory.mktemp("images")
    for index in range(NUM_IMAGES):
        rgb = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        rgb[..., 0], rgb[..., 1] = 2 * np.arange(WIDTH), 2 * np.arange(HEIGHT)[:, None]
        rgb[..., 2] = index
        cv2.imwrite(str(root / f"{index}.png"), rgb[..., ::-1])
    return list_folder(root)


def row_of(reader, index=0, seed=0, canvas=CANVAS):
    return reader(index, 0, False, canvas, seed)


def box_of(view):
    """(top, bottom, left, right, is mirrored) of the crop, read off the colours inside it."""
    left, right = _ends(view[len(view) // 2, :, 0])
    top, bottom = _ends(view[:, view.shape[1] // 2, 1])
    return top, bottom, min(left, right), max(left, right), right < left


def _ends(colors):
    """The places in the image of both ends of a line of pixels, from the colours well inside."""
    first, last = float(colors[3]), float(colors[-4])
    slope = (last - first) / (len(colors) - 7)
    start = first - 3.5 * slope
    # A pixel's colour is twice its index, and its middle lies half a pixel further.
    return start / 2 + 0.5, (start + slope * len(colors)) / 2 + 0.5


def test_fields(images):
    row = row_of(TwoViewRows(images), 3, seed=2**32 - 1)
    assert row["views"].shape == (2, *CANVAS, 3) and row["views"].dtype == np.uint8
    assert row["valid"] and row["image_index"] == 3 and row["seed"] == 2**32 - 1
    assert (row["views"][..., 2] == 3).all()
    empty = TwoViewRows(images).empty(CANVAS)
    assert not empty["valid"] and not empty["views"].any()
    for name, value in empty.items():
        assert value.dtype == row[name].dtype and value.shape == row[name].shape, name


def test_the_seed_decides_everything(images):
    reader = TwoViewRows(images)
    there = pickle.loads(pickle.dumps(reader))
    first = row_of(reader, seed=5)["views"]
    np.testing.assert_array_equal(row_of(there, seed=5)["views"], first)
    assert not np.array_equal(row_of(reader, seed=6)["views"], first)
    assert not np.array_equal(first[0], first[1])


def test_crops_and_flips(images):
    """Read off the pixels: the boxes' areas, ratios and places, and which views are mirrored."""
    reader = TwoViewRows(images)
    views = np.concatenate([row_of(reader, seed=seed)["views"] for seed in range(300)])
    top, bottom, left, right, mirrored = np.array([box_of(view) for view in views]).T
    assert top.min() > -1.5 and left.min() > -1.5
    assert bottom.max() < HEIGHT + 1.5 and right.max() < WIDTH + 1.5
    area = (bottom - top) * (right - left) / (HEIGHT * WIDTH)
    ratio = (right - left) / (bottom - top)
    assert 0.17 < area.min() < 0.23 and 0.9 < area.max() < 1.05
    assert 0.7 < ratio.min() < 0.8 and 1.28 < ratio.max() < 1.42
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / np.sqrt(600)
    assert abs(np.corrcoef(area[0::2], area[1::2])[0, 1]) < 0.25


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_flip_probability(images, probability):
    reader = TwoViewRows(images, flip_probability=probability)
    views = np.concatenate([row_of(reader, seed=seed)["views"] for seed in range(10)])
    assert all(box_of(view)[-1] == bool(probability) for view in views)


def test_small_images_are_enlarged(tmp_path):
    cv2.imwrite(str(tmp_path / "dot.png"), np.full((1, 2, 3), 77, np.uint8))
    views = row_of(TwoViewRows(list_folder(tmp_path)), canvas=(64, 64))["views"]
    assert views.shape == (2, 64, 64, 3) and (views == 77).all()


def test_broken_files(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8 and no more")
    with pytest.raises(BrokenImage, match="a.jpg"):
        row_of(TwoViewRows(list_folder(tmp_path)))


@pytest.mark.parametrize(
    "change", [{"scale": (0.0, 1.0)}, {"ratio": (2.0, 1.0)}, {"flip_probability": -0.1}]
)
def test_settings_out_of_range(images, change):
    with pytest.raises(InputError):
        TwoViewRows(images, **change)


def batches(images, **arguments):
    reader = TwoViewRows(images)
    plan = ViewPlan(len(images), 4, 9, CANVAS)
    arguments = {"num_steps": 4, "threads": 2, "stack": stack_views, **arguments}
    return list(train_batches(plan, reader, reader.empty, **arguments))


def test_batches(images):
    found = batches(images)
    assert len(found) == 4 and all(isinstance(batch, ViewBatch) for batch in found)
    plan = ViewPlan(len(images), 4, 9, CANVAS)
    for step, batch in enumerate(found):
        np.testing.assert_array_equal(batch.image_index, plan.at(step).image_indices)
        np.testing.assert_array_equal(batch.seed, plan.at(step).seeds)
        assert batch.views.shape == (4, 2, *CANVAS, 3) and batch.valid.all()
        for row in range(4):
            alone = row_of(TwoViewRows(images), batch.image_index[row], batch.seed[row])
            np.testing.assert_array_equal(batch.views[row], alone["views"])


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_the_global_batch(images, hosts):
    whole = batches(images)
    parts = [batches(images, process_index=p, process_count=hosts) for p in range(hosts)]
    for step, batch in enumerate(whole):
        for name in ("views", "valid", "image_index", "seed"):
            joined = np.concatenate([getattr(part[step], name) for part in parts])
            np.testing.assert_array_equal(joined, getattr(batch, name))


def test_resuming_gives_the_same_batches(images):
    whole, rest = batches(images), batches(images, start_step=2, num_steps=2)
    for ours, theirs in zip(rest, whole[2:], strict=True):
        np.testing.assert_array_equal(ours.views, theirs.views)


def test_unreadable_files_are_skipped_counted_and_reported(tmp_path, caplog):
    for name in "abc":
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((40, 40, 3), 9, np.uint8))
    (tmp_path / "b.png").write_bytes(b"no image")
    with caplog.at_level(logging.WARNING):
        found = batches(list_folder(tmp_path))
    for batch in found:
        np.testing.assert_array_equal(batch.valid, batch.image_index != 1)
        assert not batch.views[~batch.valid].any() and (batch.views[batch.valid] == 9).all()
    assert sum((~batch.valid).sum() for batch in found) >= 5
    assert caplog.text.count("b.png") == 1
