"""Free Mask over a folder: one file whatever the devices, going on, refusing, leaving out."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json

import cv2
import jax
import numpy as np
import pytest
from helpers.photos import SETTINGS, SIZES, color_backbone, write_photos
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from solojax.data.label_file import load_labels, read_info
from solojax.errors import InputError
from solojax.free_solo import free_masks, labelling
from solojax.free_solo.free_masks import (
    FreeMaskRun,
    check_search_memory,
    find_masks,
    label_info,
    load_photos,
)
from solojax.postprocess.free_mask_labels import FreeMaskFilters
from solojax.postprocess.free_masks import search_bytes

HOW = FreeMaskRun(
    settings=SETTINGS,
    filters=FreeMaskFilters(0.5, None, None),
    short_side=192,
    long_side=400,
    batch_size=1,
    threads=2,
)
needs_four = pytest.mark.skipif(jax.device_count() < 4, reason="fewer than 4 devices")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def alone(photos, tmp_path_factory):
    """The file of one device, and what the run said of it."""
    output = tmp_path_factory.mktemp("alone") / "masks.json"
    return output, find_masks(color_backbone(), load_photos(photos)[0], output, HOW)


def run(photos, output, how=HOW, backbone=None, **changes):
    dataset, broken = load_photos(photos)
    how = dataclasses.replace(how, **changes)
    return find_masks(backbone or color_backbone(), dataset, output, how, broken)


def test_the_file_is_a_coco_json_that_others_open(alone, photos):
    output, summary = alone
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(output))
    assert {i["file_name"]: (i["height"], i["width"]) for i in coco.imgs.values()} == SIZES
    assert summary.images == summary.computed == 7 and summary.unread == ()
    assert summary.objects == len(coco.anns) > 7
    for annotation in coco.anns.values():
        image = coco.imgs[annotation["image_id"]]
        assert annotation["segmentation"]["size"] == [image["height"], image["width"]]
        assert annotation["bbox"] == coco_mask.toBbox(annotation["segmentation"]).tolist()
        assert annotation["area"] == coco.annToMask(annotation).sum()
        assert annotation["score"] >= 0.5 and annotation["category_id"] == 1
    dataset = load_labels(output, photos)
    assert {a.embedding.shape for i in dataset.images for a in i.annotations} == {(8,)}
    assert dataset.num_objects == summary.objects


def test_blocks_of_colour_are_found(alone):
    """Of every image, the two blocks that were painted."""
    document = json.loads(alone[0].read_text())
    for image in document["images"]:
        height, width = image["height"], image["width"]
        red, blue = np.zeros((2, height, width), bool)
        red[height // 2 :, : width // 3] = True
        blue[height // 3 :, width // 2 :] = True
        masks = [
            coco_mask.decode(a["segmentation"]).astype(bool)
            for a in document["annotations"]
            if a["image_id"] == image["id"]
        ]
        for block in (red, blue):
            assert max((m & block).sum() / (m | block).sum() for m in masks) > 0.6


def test_an_earlier_map_shows_smaller_objects(tmp_path):
    """A square of 24 pixels, less than a cell of the last map."""
    image = np.zeros((96, 128, 3), np.uint8)
    image[..., 1] = 150
    image[40:64, 52:76] = (200, 40, 30)
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos" / "square.png"), image)

    def iou(stage):
        output = tmp_path / f"masks{stage}.json"
        run(tmp_path / "photos", output, short_side=96, stage=stage)
        document = json.loads(output.read_text())
        assert document["info"]["settings"]["stage"] == stage
        masks = [coco_mask.decode(a["segmentation"]) for a in document["annotations"]]
        square = np.zeros((96, 128), np.uint8)
        square[40:64, 52:76] = 1
        return max((m & square).sum() / (m | square).sum() for m in masks)

    assert iou(5) < 0.5 < iou(4)
    with pytest.raises(InputError, match="has no C3; give a stage from 4 to 5"):
        run(tmp_path / "photos", tmp_path / "masks3.json", stage=3)


def test_a_search_too_large_for_the_memory_is_refused_before_it_begins(
    photos, tmp_path, monkeypatch
):
    output, large = tmp_path / "masks.json", {"stage": 4, "short_side": 3200, "long_side": 4300}
    monkeypatch.setattr(free_masks, "_batches", None)
    with pytest.raises(InputError, match=r"C4 of 3200x4288 pixels .* 70350 queries, about 80.1 GB"):
        run(photos, output, **large)
    assert not list(tmp_path.iterdir())  # nor is a start noted that other settings could not go on


def test_images_that_are_searched_at_a_time_need_the_memory_together(alone, photos, monkeypatch):
    dataset = load_photos(photos)[0]
    one = search_bytes((6, 8), SETTINGS.scales)  # 192 x 256 pixels
    monkeypatch.setattr(free_masks, "_MOST_BYTES", 3 * one)
    check_search_memory(dataset, HOW)
    check_search_memory(dataset, dataclasses.replace(HOW, batch_size=3))
    with pytest.raises(InputError, match="GB of memory an image, 4 images at a time"):
        check_search_memory(dataset, dataclasses.replace(HOW, batch_size=4))
    # What was found elsewhere needs no search.
    monkeypatch.setattr(free_masks, "_MOST_BYTES", 0)
    assert run(photos, alone[0]) is None


@needs_four
@pytest.mark.parametrize("devices", [2, 4])
def test_any_number_of_devices_writes_the_same_file(alone, photos, tmp_path, devices):
    output = tmp_path / "masks.json"
    run(photos, output, batch_size=devices)
    assert output.read_bytes() == alone[0].read_bytes()


def test_a_larger_canvas_changes_no_mask(alone, photos, tmp_path):
    """Padding is neither query nor key; this backbone's cells do not see their neighbours."""
    output = tmp_path / "masks.json"
    run(photos, output, canvas="buckets")
    found, expected = (json.loads(p.read_text())["annotations"] for p in (output, alone[0]))
    assert [a["segmentation"] for a in found] == [a["segmentation"] for a in expected]


def test_a_run_that_was_stopped_goes_on(alone, photos, tmp_path, monkeypatch):
    output, find = tmp_path / "masks.json", free_masks.free_mask_annotations
    calls = []

    def interrupted(*args, **options):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return find(*args, **options)

    monkeypatch.setattr(free_masks, "free_mask_annotations", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(photos, output)
    parts = tmp_path / "masks.json.parts"
    assert not output.exists() and len(list(parts.glob("part_*.jsonl"))) == 1
    with pytest.raises(InputError, match=r"masks.json.parts.* another checkpoint"):
        run(photos, output, backbone=color_backbone(1))
    summary = run(photos, output, batch_size=2)
    assert summary.computed == 4 and len(calls) == 4 + 4
    assert output.read_bytes() == alone[0].read_bytes()
    assert list(tmp_path.iterdir()) == [output]


def test_what_is_done_is_not_done_again(alone, photos, tmp_path):
    output = tmp_path / "masks.json"
    output.write_bytes(alone[0].read_bytes())
    assert run(photos, output, threads=1, batch_size=2) is None
    for changes in ({"backbone": color_backbone(1)}, {"short_side": 128}):
        with pytest.raises(InputError, match="stale or foreign labels"):
            run(photos, output, **changes)
    info = read_info(output)
    assert info.checkpoint == "colours 0" and info.settings["short_side"] == 192
    assert output.read_bytes() == alone[0].read_bytes()


def test_another_photo_under_an_old_name_is_another_image(photos, tmp_path):
    """Of the same size in pixels, as the frames of two videos are."""
    root, output = write_photos(tmp_path / "photos"), tmp_path / "masks.json"
    run(root, output)
    path = root / "c" / "2.png"
    before, photo = path.stat().st_size, path.read_bytes()
    cv2.imwrite(str(path), np.full((*SIZES["c/2.png"], 3), 90, np.uint8))
    assert path.stat().st_size != before
    with pytest.raises(InputError, match=r"stale or foreign labels.*: other image_files; remove"):
        run(root, output)
    path.write_bytes(photo)
    assert run(root, output) is None


def test_files_are_looked_up_once_and_by_the_first_process_alone(photos, monkeypatch):
    looked = []
    monkeypatch.setattr(
        "solojax.data.coco.file_states", lambda _, names: looked.append(names) or {}
    )
    dataset, _ = load_photos(photos)
    first, again = (label_info(color_backbone(), dataset, HOW) for _ in range(2))
    assert first == again and len(looked) == 1
    dataset, _ = load_photos(photos)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    told = first.settings["image_files"]
    monkeypatch.setattr(labelling, "gather_json", lambda own: [told, own])
    assert label_info(color_backbone(), dataset, HOW) == first and len(looked) == 1


def test_how_the_backbone_reads_pixels_belongs_to_the_labels(photos):
    """The same weights find other masks; what only trains otherwise changes nothing."""
    dataset, _ = load_photos(photos)
    backbone = color_backbone()
    base = label_info(backbone, dataset, HOW)

    def of(**keys):
        config = backbone.config.copy_and_resolve_references()
        config.model.backbone.update(keys)
        return label_info(dataclasses.replace(backbone, config=config), dataset, HOW)

    others = [
        label_info(dataclasses.replace(backbone, **change), dataset, HOW)
        for change in ({"pixel_mean": (0.0, 0.0, 0.0)}, {"pixel_std": (1.0, 1.0, 1.0)})
    ]
    others.append(of(stride_in_1x1=True))
    assert len({base.fingerprint, *(info.fingerprint for info in others)}) == 4
    assert others[1].settings == base.settings | {"pixel_std": [1.0, 1.0, 1.0]}
    assert of(norm="batch_norm", frozen_stages=-1, checkpoint="b.pth") == base


def test_broken_files_are_left_out_and_told(photos, tmp_path):
    root, output = write_photos(tmp_path / "photos"), tmp_path / "masks.json"
    whole = (root / "c" / "0.png").read_bytes()
    (root / "c" / "text.jpg").write_text("no image")
    (root / "c" / "cut.png").write_bytes(whole[: len(whole) // 2])
    summary = run(root, output)
    assert summary.unread == ("c/text.jpg", "c/cut.png") and summary.images == 7
    assert len(json.loads(output.read_text())["images"]) == 7


def test_images_without_masks_stay_in_the_file(photos, tmp_path):
    output = tmp_path / "masks.json"
    summary = run(photos, output, filters=FreeMaskFilters(1.0, None, None))
    document = json.loads(output.read_text())
    found = {a["image_id"] for a in document["annotations"]}
    assert summary.without_objects == 7 - len(found) > 0 and len(document["images"]) == 7


def test_the_images_of_an_annotation_file(alone, photos, tmp_path):
    """With their ids, in the file's order; it need not know classes or objects."""
    (height, width), name = SIZES["b/one.png"], "b/one.png"
    listed = tmp_path / "list.json"
    listed.write_text(
        json.dumps(
            {
                "images": [
                    {"id": 70, "file_name": name, "height": height, "width": width},
                    {"id": 8, "file_name": "gone.png", "height": 5, "width": 5},
                ]
            }
        )
    )
    dataset, _ = load_photos(photos, listed)
    summary = find_masks(color_backbone(), dataset, tmp_path / "masks.json", HOW)
    assert summary.unread == ("gone.png",)
    document, whole = (json.loads(path.read_text()) for path in (tmp_path / "masks.json", alone[0]))
    assert [image["id"] for image in document["images"]] == [70]
    number = next(i["id"] for i in whole["images"] if i["file_name"] == name)
    expected = [a["segmentation"] for a in whole["annotations"] if a["image_id"] == number]
    assert [a["segmentation"] for a in document["annotations"]] == expected


def test_no_image_can_be_read(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("no")
    with pytest.raises(InputError, match="none of the 1 files can be read"):
        load_photos(tmp_path / "photos")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"canvas": "round"}, "canvas"),
        ({"semantics": "other"}, "semantics"),
        ({"stage": 6}, "stage"),
        ({"short_side": 800, "long_side": 600}, "long side"),
    ],
)
def test_settings_that_make_no_sense(wrong, message):
    with pytest.raises(InputError, match=message):
        FreeMaskRun(**wrong)
