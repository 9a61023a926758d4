"""Folders of photos: found at any depth, measured by their headers."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from solojax.data.photo_folder import find_photos, photo_dataset, read_sizes
from solojax.errors import InputError


@pytest.fixture
def folder(tmp_path):
    names = ("x.jpg", "deep/er/x.PNG", "deep/y.webp", "deep/z.bmp", ".hidden/x.jpg")
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(number)
        image = rng.integers(0, 255, (150 + number, 200, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / name), image)
    (tmp_path / "deep" / "notes.txt").write_text("no image")
    return tmp_path


def test_all_images_are_found_and_measured(folder, caplog):
    caplog.set_level("INFO")
    names = find_photos(folder)
    assert "1 other file (1 .txt) passed over" in caplog.text
    assert names == ["deep/er/x.PNG", "deep/y.webp", "deep/z.bmp", "x.jpg"]
    assert read_sizes(folder, names) == [(151, 200), (152, 200), (153, 200), (150, 200)]


def test_a_header_far_into_the_file_is_found(folder):
    """A JPEG with more than 64 KB of comments before its frame."""
    data = (folder / "x.jpg").read_bytes()
    comment = b"\xff\xfe" + (60_002).to_bytes(2, "big") + bytes(60_000)
    (folder / "x.jpg").write_bytes(data[:2] + 2 * comment + data[2:])
    assert read_sizes(folder, ["x.jpg"]) == [(150, 200)]


def test_what_is_no_image_is_told_apart(folder):
    (folder / "empty.jpg").write_bytes(b"")
    names = ["deep/notes.txt", "x.jpg", "empty.jpg", "gone.jpg"]
    dataset, broken = photo_dataset(folder, names, read_sizes(folder, names))
    assert broken == ("deep/notes.txt", "empty.jpg", "gone.jpg")
    (record,) = dataset.images
    assert (record.id, record.file_name, record.height, record.width) == (2, "x.jpg", 150, 200)
    assert dataset.read_image(0).shape == (150, 200, 3)


def test_nothing_there(folder):
    with pytest.raises(InputError, match="no such folder"):
        find_photos(folder / "nowhere")
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match="no image there"):
        find_photos(folder / "empty")
    (folder / "empty" / "a.heic").touch()
    with pytest.raises(InputError, match="no image there.*but 1 other file .1 .heic.; convert"):
        find_photos(folder / "empty")
    with pytest.raises(InputError, match="none of the 1 files"):
        photo_dataset(folder, ["a.jpg"], [None])
