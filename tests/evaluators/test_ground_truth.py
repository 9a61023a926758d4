"""solojax.evaluators.ground_truth: the forms that annotations come in, and broken ones."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from solojax.errors import InputError
from solojax.evaluators.ground_truth import load_ground_truth

MASK = np.zeros((10, 12), np.uint8)
MASK[2:7, 3:9] = 1
COMPRESSED = coco_mask.encode(np.asfortranarray(MASK))["counts"].decode()
# Column by column: 3 columns and 2 pixels of background, then 6 times 5 and 5, and the rest.
RUNS = [32, *[5, 5] * 5, 5, 33]
FORMS = {
    "polygon": [[3, 2, 9, 2, 9, 7, 3, 7]],
    "two polygons": [[3, 2, 6, 2, 6, 7, 3, 7], [6, 2, 9, 2, 9, 7, 6, 7]],
    "run lengths": {"size": [10, 12], "counts": RUNS},
    "compressed": {"size": [10, 12], "counts": COMPRESSED},
    "bytes": {"size": (10, 12), "counts": COMPRESSED.encode()},
}


def document(**changes):
    entry = {"id": 0, "image_id": 4, "category_id": 9, "segmentation": FORMS["polygon"]}
    entry |= changes
    return {
        "images": [{"id": 4, "height": 10, "width": 12}],
        "categories": [{"id": 9, "name": "nine"}, {"id": 2, "name": "two"}],
        "annotations": [{key: value for key, value in entry.items() if value != "absent"}],
    }


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_mask(form):
    given = document(segmentation=FORMS[form])
    kept = copy.deepcopy(given)
    truth = load_ground_truth(given)
    (entry,) = truth.annotations
    np.testing.assert_array_equal(coco_mask.decode(entry["segmentation"]), MASK)
    assert (entry["area"], entry["bbox"], entry["iscrowd"]) == (30.0, [3, 2, 6, 5], 0)
    assert entry["id"] == 1
    assert given == kept


def test_figures_of_the_file_are_kept():
    (entry,) = load_ground_truth(document(area=28.5, bbox=[3, 2, 6.5, 5], iscrowd=1)).annotations
    assert (entry["area"], entry["bbox"], entry["iscrowd"]) == (28.5, [3, 2, 6.5, 5], 1)
    assert load_ground_truth(document()).category_names == {2: "two", 9: "nine"}
    assert list(load_ground_truth(document()).category_names) == [2, 9]
    assert load_ground_truth(document()).image_sizes == {4: (10, 12)}


def test_boxes_alone():
    without_mask = document(segmentation="absent", bbox=[1, 2, 3, 4])
    (entry,) = load_ground_truth(without_mask, with_masks=False).annotations
    assert (entry["area"], entry["bbox"]) == (12.0, [1, 2, 3, 4])
    with pytest.raises(InputError, match='no "bbox"'):
        load_ground_truth(document(), with_masks=False)


def test_more_masks_than_pycocotools_measures_at_once():
    many = document()
    many["annotations"] = [dict(many["annotations"][0], id=i) for i in range(300)]
    areas = [entry["area"] for entry in load_ground_truth(many).annotations]
    assert areas == [30.0] * 300


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "absent"}, 'no "id"'),
        ({"id": "x"}, "id 'x' is no whole number"),
        ({"image_id": 5}, "no such image_id"),
        ({"image_id": [4]}, "no such image_id"),
        ({"category_id": 1}, "category_id 1 is not under"),
        ({"segmentation": "absent"}, 'no "segmentation"'),
        ({"segmentation": []}, "neither polygons nor run lengths"),
        ({"segmentation": [[1, 2, 3, 4]]}, "polygon is no flat list"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "polygon is no flat list"),
        ({"segmentation": [[[1, 2], [3, 4], [5, 6]]]}, "polygon is no flat list"),
        ({"segmentation": [[0, 0, 5, 0, float("nan"), 5]]}, "NaN"),
        ({"segmentation": [[0, 0, 1e9, 0, 1e9, 5]]}, "leaves its image"),
        ({"segmentation": {"size": [12, 10], "counts": RUNS}}, r"mask size \[12, 10\]"),
        ({"segmentation": {"size": [10, 12]}}, 'no "counts"'),
        ({"segmentation": {"size": [10, 12], "counts": RUNS[:-1]}}, "120 pixels"),
        ({"segmentation": {"size": [10, 12], "counts": [130, -10]}}, "120 pixels"),
        ({"segmentation": {"size": [10, 12], "counts": COMPRESSED[:-1]}}, "120 pixels"),
        ({"bbox": [1, 2, 3]}, "bbox"),
        ({"area": float("nan")}, "area nan"),
    ],
)
def test_bad_annotations_are_named(changes, message):
    with pytest.raises(InputError, match=message) as raised:
        load_ground_truth(document(**changes))
    assert str(raised.value).startswith("annotations: annotations entry 0")


def test_bad_files(tmp_path):
    with pytest.raises(InputError, match="cannot read the annotations"):
        load_ground_truth(tmp_path / "nowhere.json")
    path = tmp_path / "truth.json"
    path.write_text("[]")
    with pytest.raises(InputError, match=f'{path}: no list "images"'):
        load_ground_truth(path)
    path.write_text("{")
    with pytest.raises(InputError, match="not valid json"):
        load_ground_truth(path)


@pytest.mark.parametrize("key", ["images", "categories"])
def test_empty_sections(key):
    with pytest.raises(InputError, match=f'list the "{key}"'):
        load_ground_truth({**document(), key: []})


def test_ids_that_occur_twice():
    twice = document()
    twice["images"] *= 2
    with pytest.raises(InputError, match=r"images entry 1 \(id 4\): id 4 is .* taken"):
        load_ground_truth(twice)


def test_images_without_a_size():
    sizeless = document()
    del sizeless["images"][0]["height"]
    with pytest.raises(InputError, match='images entry 0 .*no "height"'):
        load_ground_truth(sizeless)
