"""The COCO reader: what it keeps, and one refusal for every way a file can be wrong."""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from solojax.data.coco import load_coco, load_coco_images
from solojax.data.instances import require_objects
from solojax.errors import InputError

SQUARE = [[2.0, 3.0, 8.0, 3.0, 8.0, 9.0, 2.0, 9.0]]
MASK = np.zeros((20, 30), np.uint8)
MASK[3:9, 2:8] = 1
DOCUMENT = {
    "categories": [
        {"id": 70, "name": "toaster"},
        {"id": 3, "name": "car", "supercategory": "vehicle"},
        {"id": 18, "name": "dog"},
    ],
    "images": [
        {"id": 900, "file_name": "b.jpg", "height": 20, "width": 30},
        {"id": 5, "file_name": "sub/a.jpg", "height": 40, "width": 10},
        {"id": 77, "file_name": "c.jpg", "height": 20, "width": 30},
    ],
    "annotations": [
        {"id": 1, "image_id": 900, "category_id": 70, "bbox": [2, 3, 6, 6], "area": 36,
         "segmentation": SQUARE, "iscrowd": 0},
        {"id": 8, "image_id": 77, "category_id": 3, "bbox": [0, 0, 30, 20.5], "iscrowd": 1,
         "segmentation": {"size": [20, 30], "counts": [0, 600]}},
        {"id": 2, "image_id": 900, "category_id": 3,
         "segmentation": {"size": [20, 30], "counts": mask_utils.encode(
             np.asfortranarray(MASK))["counts"].decode()}},
        {"id": 3, "image_id": 77, "category_id": 18, "bbox": None, "segmentation": SQUARE * 2},
    ],
}  # fmt: skip


def write(folder, document) -> str:
    path = folder / "instances.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return str(path)


def load(folder, document):
    return load_coco(write(folder, document), folder)


def refused(folder, document, problem: str) -> str:
    with pytest.raises(InputError, match=problem) as error:
        load(folder, document)
    message = str(error.value)
    assert "instances.json" in message and "\n" not in message
    return message


def test_labels_are_contiguous_in_the_order_of_the_ids(tmp_path):
    dataset = load(tmp_path, DOCUMENT)
    assert dataset.category_ids == (3, 18, 70)
    assert dataset.category_names == ("car", "dog", "toaster")
    assert dataset.labels == {3: 0, 18: 1, 70: 2}
    for record in dataset.images:
        for annotation in record.annotations:
            original = next(a for a in DOCUMENT["annotations"] if a["id"] == annotation.id)
            assert dataset.category_ids[annotation.label] == original["category_id"]


def test_images_keep_their_order_and_those_without_objects_stay(tmp_path):
    dataset = load(tmp_path, DOCUMENT)
    assert [record.id for record in dataset.images] == [900, 5, 77]
    assert [[a.id for a in r.annotations] for r in dataset.images] == [[1, 2], [], [8, 3]]
    empty = dataset.images[1]
    assert (empty.file_name, empty.height, empty.width) == ("sub/a.jpg", 40, 10)
    assert dataset.image_path(empty) == str(tmp_path / "sub" / "a.jpg")


def test_annotations(tmp_path):
    (polygon, run_lengths), _, (crowd, pair) = [
        record.annotations for record in load(tmp_path, DOCUMENT).images
    ]
    assert polygon.bbox_xywh == (2.0, 3.0, 6.0, 6.0) and not polygon.iscrowd
    np.testing.assert_array_equal(polygon.segmentation, SQUARE)
    assert run_lengths.bbox_xywh is None and run_lengths.iscrowd is False
    np.testing.assert_array_equal(mask_utils.decode(run_lengths.segmentation), MASK)
    assert crowd.iscrowd is True and crowd.bbox_xywh == (0.0, 0.0, 30.0, 20.5)
    assert mask_utils.area(crowd.segmentation) == 600
    assert len(pair.segmentation) == 2 and pair.bbox_xywh is None


def test_objects_may_keep_their_masks_to_themselves(tmp_path):
    document = copy.deepcopy(DOCUMENT)
    document["annotations"][0]["supervise_mask"] = 0
    document["annotations"][2]["supervise_mask"] = 1
    dataset, plain = load(tmp_path, document), load(tmp_path, DOCUMENT)
    flags = [[a.supervise_mask for a in record.annotations] for record in dataset.images]
    assert flags == [[False, True], [], [True, True]]
    # The flag is part of what training sees, and 1 is what a file without it says.
    assert dataset.fingerprint != plain.fingerprint
    document["annotations"][0]["supervise_mask"] = 1
    assert load(tmp_path, document).fingerprint == plain.fingerprint


def test_what_training_needs(tmp_path):
    require_objects(load(tmp_path, DOCUMENT))
    crowds_only = {**DOCUMENT, "annotations": [DOCUMENT["annotations"][1]]}
    for document in (crowds_only, {**DOCUMENT, "annotations": []}):
        dataset = load(tmp_path, document)
        assert len(dataset.images) == 3
        with pytest.raises(InputError, match="instances.json: none of the 3 images"):
            require_objects(dataset)


LISTED = [
    {"images": DOCUMENT["images"]},  # image_info_unlabeled2017.json, in short
    DOCUMENT,
    {**DOCUMENT, "categories": [], "annotations": [{"id": 1, "image_id": 5, "bbox": [0, 0, 2, 2]}]},
    {**DOCUMENT, "annotations": [{**DOCUMENT["annotations"][0], "segmentation": [["a", 2]]}]},
    {**DOCUMENT, "annotations": "none"},
]


@pytest.mark.parametrize("document", LISTED)
def test_images_alone(tmp_path, document):
    """Whatever there is of objects; what is wrong with the images is refused as ever."""
    dataset = load_coco_images(write(tmp_path, document), tmp_path)
    whole = load(tmp_path, DOCUMENT)
    assert [dataclasses.replace(i, annotations=()) for i in whole.images] == list(dataset.images)
    assert dataset.categories == () and dataset.num_objects == 0
    assert dataset.image_path(dataset.images[0]) == str(tmp_path / "b.jpg")


@pytest.mark.parametrize(
    "images, problem",
    [
        (None, 'no list "images"'),
        ([], "no images"),
        ([DOCUMENT["images"][0] | {"width": 0}], "image entry 0 .id 900.: .* positive"),
        ([{"id": 3, "height": 2, "width": 2}], 'image entry 0 .id 3.: has no "file_name"'),
        (DOCUMENT["images"][:1] * 2, "image entry 1 .id 900.: the id 900 is taken"),
    ],
)
def test_bad_lists_of_images(tmp_path, images, problem):
    with pytest.raises(InputError, match=f"instances.json: .*{problem}"):
        load_coco_images(write(tmp_path, {"images": images}), tmp_path)
    with pytest.raises(InputError, match="photos: no such image folder"):
        load_coco_images(write(tmp_path, DOCUMENT), tmp_path / "photos")


def test_byte_order_mark_is_accepted(tmp_path):
    assert len(load(tmp_path, "\ufeff" + json.dumps(DOCUMENT)).images) == 3


def test_absent_files(tmp_path):
    with pytest.raises(InputError, match="absent.json: cannot read .*No such file"):
        load_coco(tmp_path / "absent.json", tmp_path)
    with pytest.raises(InputError, match="cannot read"):
        load_coco(tmp_path, tmp_path)
    with pytest.raises(InputError, match="photos: no such image folder"):
        load_coco(write(tmp_path, DOCUMENT), tmp_path / "photos")


@pytest.mark.parametrize(
    "text, problem",
    [
        ("", "not valid json at line 1, column 1"),
        ('{"images": [],\n "annotations": [}', "not valid json at line 2, column 18"),
        (json.dumps(DOCUMENT)[:-40], "not valid json at line 1"),
        ("[" * 100_000, "not valid json"),
        ("[1, 2]", "not a COCO file"),
        ("null", "not a COCO file"),
        ("{}", 'no list "categories"'),
    ],
)
def test_not_a_coco_file(tmp_path, text, problem):
    refused(tmp_path, text, problem)


def test_not_text(tmp_path):
    (tmp_path / "instances.json").write_bytes(b'{"images": "\xff\xfe"}')
    with pytest.raises(InputError, match="instances.json: not valid json"):
        load_coco(tmp_path / "instances.json", tmp_path)


@pytest.mark.parametrize("section", ["categories", "images", "annotations"])
def test_sections(tmp_path, section):
    document = copy.deepcopy(DOCUMENT)
    del document[section]
    refused(tmp_path, document, f'no list "{section}"')
    refused(tmp_path, {**DOCUMENT, section: {}}, f'no list "{section}"')
    if section != "annotations":
        refused(tmp_path, {**DOCUMENT, section: []}, f"the data set has no {section}")
    refused(tmp_path, {**DOCUMENT, section: [7]}, "entry 0: is no json object")
    repeated = {**DOCUMENT, section: DOCUMENT[section] + DOCUMENT[section][:1]}
    refused(tmp_path, repeated, rf"entry {len(DOCUMENT[section])} \(.*is taken")


REMOVE = object()
NUMBER = "whole number"
BAD_FIELDS = [
    ("categories", "id", REMOVE, 'no "id"'),
    ("categories", "id", "70", NUMBER),
    ("categories", "name", REMOVE, 'no "name"'),
    ("categories", "name", 7, "has to be a text"),
    ("categories", "name", None, "has to be a text"),
    ("categories", "name", "", "not empty"),
    ("images", "id", REMOVE, 'no "id"'),
    ("images", "id", None, NUMBER),
    ("images", "file_name", REMOVE, 'no "file_name"'),
    ("images", "file_name", 12, "has to be a text"),
    ("images", "height", REMOVE, 'no "height"'),
    ("images", "width", REMOVE, 'no "width"'),
    ("images", "width", None, NUMBER),
    ("images", "width", True, NUMBER),
    ("images", "height", 20.5, NUMBER),
    ("images", "height", 0, "positive"),
    ("images", "width", -30, "positive"),
    ("annotations", "id", REMOVE, 'no "id"'),
    ("annotations", "image_id", REMOVE, 'no "image_id"'),
    ("annotations", "image_id", 6, "no such image_id"),
    ("annotations", "category_id", REMOVE, 'no "category_id"'),
    ("annotations", "category_id", 4, 'category_id 4 is not under "categories"'),
    ("annotations", "iscrowd", 2, "iscrowd 2"),
    ("annotations", "iscrowd", "no", "iscrowd 'no'"),
    ("annotations", "supervise_mask", 2, "supervise_mask 2"),
    ("annotations", "supervise_mask", None, "supervise_mask None"),
    ("annotations", "bbox", [1, 2, 3], "four numbers"),
    ("annotations", "bbox", [], "four numbers"),
    ("annotations", "bbox", 5, "four numbers"),
    ("annotations", "bbox", [1, 2, 3, "4"], "four numbers"),
    ("annotations", "bbox", [1, 2, 3, None], "four numbers"),
    ("annotations", "bbox", [1, 2, -3, 4], "negative width or height"),
    ("annotations", "bbox", [1, 2, 3, -4], "negative width or height"),
    ("annotations", "bbox", [float("nan"), 2, 3, 4], "NaN or infinite"),
    ("annotations", "bbox", [1, 2, 3, float("nan")], "NaN or infinite"),
    ("annotations", "bbox", [1, 2, float("inf"), 4], "NaN or infinite"),
    ("annotations", "bbox", [-5, 2, 3, 4], "leaves its 30x20 image"),
    ("annotations", "bbox", [1, 2, 40, 4], "leaves its 30x20 image"),
    ("annotations", "segmentation", REMOVE, 'no "segmentation"'),
    ("annotations", "segmentation", [], "empty"),
    ("annotations", "segmentation", [[1, 2, 3, 4]], "polygon of 4 numbers"),
    ("annotations", "segmentation", [[1, 2, 3, 4, 5, float("nan")]], "NaN or infinite"),
    ("annotations", "segmentation", [[1, 2, 3, 4, 5, float("-inf")]], "NaN or infinite"),
    ("annotations", "segmentation", [[1, 2, 3, 4, 5, -50]], "leaves its 30x20 image"),
    ("annotations", "segmentation", [["a", 2, 3, 4, 5, 6]], "flat list of numbers"),
    ("annotations", "segmentation", {"size": [40, 60], "counts": [2400]}, "differs from its image"),
    ("annotations", "segmentation", {"size": [20, 30], "counts": "zz"}, "complete|add up"),
]


@pytest.mark.parametrize("section, key, value, problem", BAD_FIELDS)
def test_bad_field(tmp_path, section, key, value, problem):
    document = copy.deepcopy(DOCUMENT)
    entry = document[section][0]
    if value is REMOVE:
        del entry[key]
    else:
        entry[key] = value
    kind = {"categories": "category", "images": "image", "annotations": "annotation"}[section]
    message = refused(tmp_path, document, problem)
    assert f"{kind} entry 0" in message
    if "id" in entry:
        assert f"id {entry['id']!r}" in message
    if section == "annotations" and "image_id" in entry:
        assert f"image_id {entry['image_id']}" in message


def test_boxes_without_area_and_slight_overshoot_load(tmp_path):
    """COCO itself has a box of height 0; a box may reach 2 pixels beyond the image."""
    document = copy.deepcopy(DOCUMENT)
    document["annotations"][0]["bbox"] = [5, 5, 3, 0]
    document["annotations"][1]["bbox"] = [-2, -1.5, 34, 23.5]
    dataset = load(tmp_path, document)
    assert dataset.images[0].annotations[0].bbox_xywh == (5.0, 5.0, 3.0, 0.0)
    assert dataset.images[2].annotations[0].bbox_xywh == (-2.0, -1.5, 34.0, 23.5)
