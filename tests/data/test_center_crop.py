"""The middle of resized images, alone and through the loader with its plan."""

from __future__ import annotations

import pickle

import cv2
import numpy as np
import pytest

from solojax.data.center_crop import CenterCropRows, center_crop, stack_rows
from solojax.data.image_folder import list_folder
from solojax.data.loader import train_batches
from solojax.data.sequence_plan import SequencePlan
from solojax.errors import BrokenImage, InputError


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Five images: red is 2x, green 2y, blue tells which; the second is broken, the third high."""
    root = tmp_path_factory.mktemp("images")
    for index in range(5):
        height, width = (120, 90) if index == 2 else (90, 120)
        rgb = np.zeros((height, width, 3), np.uint8)
        rgb[..., 0], rgb[..., 1] = 2 * np.arange(width), 2 * np.arange(height)[:, None]
        rgb[..., 2] = 10 * index
        cv2.imwrite(str(root / f"{index}.png"), rgb[..., ::-1])
    (root / "1.png").write_bytes(b"no image")
    return list_folder(root)


def test_the_middle_at_full_size(images):
    row = CenterCropRows(images)(0, 90, False, (64, 32), 0)
    assert row["image"].dtype == np.uint8 and row["valid"] and row["image_index"] == 0
    np.testing.assert_array_equal(row["image"], images.read_image(0)[13:77, 44:76])


@pytest.mark.parametrize("index", [0, 2])
def test_resized_by_the_short_side(images, index):
    row = CenterCropRows(images)(index, 45, False, (32, 32), 0)
    # Halved: 45x60 or 60x45. Colours are linear in the place: 4 levels a pixel, by pixel centres.
    top, left = (6, 14) if index == 0 else (14, 6)  # 6.5 is rounded to the even 6
    x, y = np.arange(32) + left, np.arange(32) + top
    image = row["image"].astype(float)
    np.testing.assert_allclose(image[..., 0], np.tile(4 * x + 1, (32, 1)), atol=0.51)
    np.testing.assert_allclose(image[..., 1], np.tile(4 * y + 1, (32, 1)).T, atol=0.51)
    assert (row["image"][..., 2] == 10 * index).all()


def test_small_images_are_enlarged(images):
    row = CenterCropRows(images)(0, 256, False, (224, 224), 0)
    assert row["image"].shape == (224, 224, 3)


def test_crop_of_odd_margins():
    image = np.arange(49).reshape(7, 7)
    assert center_crop(image, 7, 7).tolist() == image.tolist()
    assert center_crop(image, 4, 2)[0, 0] == 2 * 7 + 2  # margins 3 and 5: 1.5 and 2.5 to even


def test_every_image_once_and_broken_ones_told(images, caplog):
    reader = CenterCropRows(images)
    assert pickle.loads(pickle.dumps(reader)).dataset.names == images.names
    with pytest.raises(BrokenImage):
        reader(1, 45, False, (32, 32), 0)
    plan = SequencePlan(len(images), 4, 45, (32, 32))
    assert plan.num_steps == 2
    parts = [
        list(
            train_batches(
                plan, reader, reader.empty, num_steps=2, process_index=p, process_count=2,
                threads=2, stack=stack_rows,
            )
        )
        for p in range(2)
    ]  # fmt: skip
    found = [np.concatenate([part[step]["image_index"] for part in parts]) for step in range(2)]
    assert np.concatenate(found).tolist() == [0, 1, 2, 3, 4, -1, -1, -1]
    valid = [np.concatenate([part[step]["valid"] for part in parts]) for step in range(2)]
    assert np.concatenate(valid).tolist() == [True, False, True, True, True, False, False, False]
    assert (parts[0][1]["image"][0, ..., 2] == 40).all()
    assert sum("1.png" in message for message in caplog.messages) == 1


@pytest.mark.parametrize("wrong", [(0, 4, 45), (5, 0, 45), (5, 4, 0)])
def test_plans_out_of_range(wrong):
    with pytest.raises(InputError):
        SequencePlan(*wrong, (32, 32))
