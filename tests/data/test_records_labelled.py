"""Records of images with at most one class: `solojax prepare folder` and `imagenet`."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from helpers.records import contents, write_class_folders, write_source

from solojax.conversion.preparation import prepare_instances, prepare_labelled, verify
from solojax.data.image_io import encoded_size
from solojax.data.records import load_records, open_split
from solojax.errors import InputError

CLASSES = ("ant", "bee", "cat")


def labels_by_name(folder, split="train"):
    return {e["file_name"].decode(): int(e["label"]) for e in open_split(folder, split)}


def test_class_folders(tmp_path):
    images = write_class_folders(tmp_path / "images", CLASSES)
    (images / ".hidden").mkdir()
    (images / "cat" / "notes.txt").write_text("no image")
    (images / "cat" / ".checkpoints").mkdir()
    (images / "cat" / ".checkpoints" / "copy.png").write_bytes(b"")
    prepare_labelled("folder", images, str(tmp_path / "out"), "train", num_shards=2)
    split = open_split(tmp_path / "out", "train")
    assert split.manifest.categories == ((0, "ant"), (1, "bee"), (2, "cat"))
    assert labels_by_name(tmp_path / "out") == {
        "ant/ant_0.JPEG": 0,
        "bee/deep/bee_0.JPEG": 1,
        "bee/deep/bee_1.png": 1,
        "cat/cat_0.JPEG": 2,
        "cat/cat_1.png": 2,
        "cat/cat_2.JPEG": 2,
    }
    for example in split:
        path = images / example["file_name"].decode()
        assert example["image"] == path.read_bytes()
        assert (example["height"], example["width"]) == (10 + int(path.stem[-1]), 20)
    assert list(verify(str(tmp_path / "out"), None, "folder")) == ["train"]
    with pytest.raises(InputError, match="folder records, images with at most one class"):
        load_records(tmp_path / "out", "train")


def test_a_folder_without_classes(tmp_path, caplog):
    images = tmp_path / "images"
    images.mkdir()
    cv2.imwrite(str(images / "b.png"), np.zeros((3, 5, 3), np.uint8))
    (images / "a.jpg").write_bytes(b"\xff\xd8 and no more")
    prepare_labelled("folder", images, str(tmp_path / "out"), "train")
    broken, good = open_split(tmp_path / "out", "train")
    assert (broken["file_name"], broken["height"], broken["width"]) == (b"a.jpg", 0, 0)
    assert (good["height"], good["width"], good["label"]) == (3, 5, -1)
    assert broken["image"] == b"\xff\xd8 and no more"
    assert "1 images are broken, the first a.jpg" in caplog.text


def test_imagenet(tmp_path):
    ids = ("n01440764", "n01443537")
    images = write_class_folders(tmp_path / "train", ids)
    for split in ("train", "val"):
        prepare_labelled("imagenet", images, str(tmp_path / "out"), split)
        names = labels_by_name(tmp_path / "out", split)
        assert names["n01440764/n01440764_0.JPEG"] == 0 and len(names) == 3
    write_class_folders(images, ("extra",))
    with pytest.raises(InputError, match="folder 'extra' where ImageNet has WordNet ids"):
        prepare_labelled("imagenet", images, str(tmp_path / "new"), "train")
    with pytest.raises(InputError, match="no class folders where ImageNet"):
        prepare_labelled("imagenet", images / ids[0], str(tmp_path / "new"), "train")


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    images = write_class_folders(tmp_path / "images", CLASSES)
    (images / "cat" / "lost.png").symlink_to(tmp_path / "absent.png")
    with pytest.raises(InputError, match="cat/lost.png: this leads to no file"):
        prepare_labelled("folder", images, str(tmp_path / "out"), "train")


def test_a_second_start_goes_on(tmp_path):
    images = write_class_folders(tmp_path / "images", CLASSES)
    prepare_labelled("folder", images, str(tmp_path / "out"), "train", num_shards=3)
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "records-train.array_record-00001-of-00003").unlink()
    assert prepare_labelled("folder", images, str(tmp_path / "out"), "train", num_shards=3)
    assert contents(tmp_path / "out") == before
    (images / "ant" / "ant_0.JPEG").rename(images / "cat" / "ant_0.JPEG")
    with pytest.raises(InputError, match="images changed"):
        prepare_labelled("folder", images, str(tmp_path / "out"), "train", num_shards=3)


def test_bad_folders(tmp_path):
    def refused(folder, match):
        with pytest.raises(InputError, match=match):
            prepare_labelled("folder", folder, str(tmp_path / "out"), "train")

    refused(tmp_path / "nothing", "no such image folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no image there")
    images = write_class_folders(tmp_path / "images", CLASSES)
    cv2.imwrite(str(images / "top.png"), np.zeros((3, 5, 3), np.uint8))
    refused(images, r"images \(top.png, ...\) beside folders \(ant, ...\)")


def test_kinds_do_not_mix(tmp_path):
    source = write_source(tmp_path / "data")
    out = str(tmp_path / "out")
    prepare_instances("coco", source / "train.json", source / "images", out, "train")
    with pytest.raises(InputError, match="holds coco records .split 'train'.*give folder another"):
        prepare_labelled("folder", source / "images", out, "photos")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sizes_from_the_first_bytes(suffix, channels):
    image = np.random.default_rng(0).integers(0, 256, (37, 210, channels), np.uint8)
    data = cv2.imencode(suffix, image)[1].tobytes()
    assert encoded_size(data) == (37, 210)


def test_the_size_is_not_that_of_a_thumbnail_inside():
    small, large = (
        cv2.imencode(".jpg", np.zeros(shape, np.uint8))[1].tobytes() for shape in ((8, 9), (50, 70))
    )
    exif = b"\xff\xe1" + (len(small) + 2).to_bytes(2, "big") + small
    assert encoded_size(large[:2] + exif + large[2:]) == (50, 70)
    progressive = cv2.imencode(
        ".jpg", np.zeros((33, 44, 3), np.uint8), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]
    )[1]
    assert encoded_size(progressive.tobytes()) == (33, 44)
    assert encoded_size(b"") is None and encoded_size(b"GIF89a") is None
