"""Lists of images from folders, COCO jsons and records."""

from __future__ import annotations

import json
import pickle
import shutil

import cv2
import numpy as np
import pytest
from helpers.golden import GOLDEN
from helpers.records import write_class_folders, write_source

from solojax.conversion.preparation import prepare_instances, prepare_labelled
from solojax.data.image_folder import list_coco, list_folder, list_records
from solojax.errors import BrokenImage, InputError

CLASSES = ("ant", "bee", "cat")
NAMES = (
    "ant/ant_0.JPEG",
    "bee/deep/bee_0.JPEG",
    "bee/deep/bee_1.png",
    "cat/cat_0.JPEG",
    "cat/cat_1.png",
    "cat/cat_2.JPEG",
)


def test_class_folders(tmp_path):
    folder = write_class_folders(tmp_path / "images", CLASSES)
    (folder / ".hidden").mkdir()
    (folder / "cat" / ".hidden.png").write_bytes(b"")
    (folder / "cat" / ".checkpoints").mkdir()
    (folder / "cat" / ".checkpoints" / "copy.png").write_bytes(b"")
    (folder / "cat" / "notes.txt").write_text("no image")
    images = list_folder(folder)
    assert images.names == NAMES and images.class_names == CLASSES
    assert images.labels.tolist() == [0, 1, 1, 2, 2, 2] and images.labels.dtype == np.int32
    assert len(images) == 6 and images.image_path(1) == str(folder / NAMES[1])
    np.testing.assert_array_equal(
        images.read_image(2), cv2.imread(str(folder / NAMES[2]))[..., ::-1]
    )


def test_other_files_are_counted_in_one_line(tmp_path, caplog):
    caplog.set_level("INFO")
    folder = write_class_folders(tmp_path / "images", CLASSES)
    list_folder(folder)
    assert not caplog.records
    for name in ("cat/a.heic", "cat/deep/b.HEIC", "bee/notes.txt", "licence", "cat/.c.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("no image")
    assert list_folder(folder).names == NAMES
    (record,) = caplog.records
    assert str(folder) in record.getMessage()
    assert "4 other files (2 .heic, 1 without suffix, 1 .txt) passed over" in record.getMessage()


def test_a_flat_folder_and_every_format(tmp_path):
    for suffix in ("jpg", "JPEG", "Png", "bmp", "GIF", "WEBP", "tiff"):
        data = cv2.imencode(f".{suffix.lower()}", np.full((5, 6, 3), 80, np.uint8))[1]
        (tmp_path / f"a.{suffix}").write_bytes(data.tobytes())
    for path in (GOLDEN / "views" / "odd_files").iterdir():
        shutil.copy(path, tmp_path)
    (tmp_path / "readme.md").write_text("no image")
    images = list_folder(tmp_path)
    assert images.labels is None and images.class_names == ()
    assert list(images.names) == sorted(images.names) and len(images) == 13
    for index in range(len(images)):
        image = images.read_image(index)
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


def test_coco(tmp_path):
    data = write_source(tmp_path)
    images = list_coco(data / "train.json", data / "images")
    entries = json.loads((data / "train.json").read_text())["images"]
    assert list(images.names) == [entry["file_name"] for entry in entries]
    assert images.labels is None
    assert images.read_image(0).shape[:2] == (entries[0]["height"], entries[0]["width"])


def test_coco_of_images_alone(tmp_path):
    data = write_source(tmp_path)
    images = list_coco(data / "train.json", data / "images")
    entries = json.loads((data / "train.json").read_text())["images"]
    (data / "listed.json").write_text(json.dumps({"images": entries}))
    alone = list_coco(data / "listed.json", data / "images")
    assert alone.names == images.names and alone.fingerprint == images.fingerprint


@pytest.mark.parametrize("kind", ["folder", "coco"])
def test_records_are_the_same_list(tmp_path, kind):
    """Names, labels, fingerprint and pixels; also in a process of its own."""
    out = str(tmp_path / "records")
    if kind == "folder":
        folder = write_class_folders(tmp_path / "images", CLASSES)
        prepare_labelled("folder", folder, out, "train", num_shards=2)
        files = list_folder(folder)
    else:
        data = write_source(tmp_path / "data")
        arguments = (data / "train.json", data / "images")
        prepare_instances("coco", *arguments, out, "train", num_shards=2)
        files = list_coco(*arguments)
    records = pickle.loads(pickle.dumps(list_records(out, "train")))
    assert tuple(records.names) == files.names and records.class_names == files.class_names
    np.testing.assert_array_equal(records.labels, files.labels)
    assert records.fingerprint == files.fingerprint
    for index in range(len(files)):
        np.testing.assert_array_equal(records.read_image(index), files.read_image(index))
    assert records.image_path(1).endswith(f"train:{files.names[1]}")


def test_fingerprints(tmp_path):
    folder = write_class_folders(tmp_path / "images", CLASSES)
    images = list_folder(folder)
    moved = list_folder(shutil.copytree(folder, tmp_path / "elsewhere"))
    assert moved.fingerprint == images.fingerprint and len(images.fingerprint) == 16
    (folder / "ant").rename(folder / "dog")
    assert list_folder(folder).fingerprint != images.fingerprint
    assert moved.first(5).fingerprint != moved.fingerprint == moved.first(6).fingerprint


def test_the_first_images(tmp_path):
    first = list_folder(write_class_folders(tmp_path / "images", CLASSES)).first(2)
    assert first.names == NAMES[:2] and first.labels.tolist() == [0, 1]
    assert first.class_names == CLASSES


def test_files_that_vanish(tmp_path):
    images = list_folder(write_class_folders(tmp_path / "images", CLASSES))
    (tmp_path / "images" / NAMES[0]).unlink()
    with pytest.raises(BrokenImage, match="ant_0.JPEG.*No such file"):
        images.read_image(0)


@pytest.mark.parametrize("case", ["absent", "empty", "no image", "empty classes", "mixed"])
def test_folders_without_images(tmp_path, case):
    folder = tmp_path / "images"
    if case != "absent":
        folder.mkdir()
    if case == "no image":
        (folder / "a.heic").write_text("no image")
    if case in ("empty classes", "mixed"):
        (folder / "ant").mkdir()
    if case == "mixed":
        (folder / "a.png").write_bytes(b"")
    expected = {"absent": "no such image folder", "mixed": "beside folders"}
    expected["no image"] = r"no image there \(.*\), but 1 other file \(1 .heic\); convert"
    with pytest.raises(InputError, match=expected.get(case, "no image there")) as error:
        list_folder(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
