"""solojax.evaluators.results: every way in which a results file can be wrong is named."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from solojax.errors import InputError
from solojax.evaluators.results import check_results, kinds_in_results, load_results

COUNTS = coco_mask.encode(np.asfortranarray(np.eye(4, 6, dtype=np.uint8)))["counts"].decode()
GOOD = {
    "image_id": 7,
    "category_id": 3,
    "score": 0.5,
    "bbox": [0, 0, 4, 4],
    "segmentation": {"size": [4, 6], "counts": COUNTS},
}
DATA = {"image_sizes": {7: (4, 6)}, "category_ids": {3, 5}}


def changed(**changes):
    entry = copy.deepcopy(GOOD)
    for key, value in changes.items():
        if value is None:
            del entry[key]
        else:
            entry[key] = value
    return entry


BAD = {
    "not an object": ([1, 2], "no json object"),
    "image_id": (changed(image_id=8), "image_id 8 is not in the annotations"),
    "image_id as text": (changed(image_id="7"), "image_id '7' is not in"),
    "image_id as list": (changed(image_id=[7]), r"image_id \[7\] is not in"),
    "no image_id": (changed(image_id=None), 'no "image_id"; add it'),
    "category_id": (changed(category_id=4), "category_id 4 is not in the annotations"),
    "no category_id": (changed(category_id=None), 'no "category_id"; add it'),
    "no score": (changed(score=None), 'no "score"; add it'),
    "NaN": (changed(score=float("nan")), "score nan is not a finite number"),
    "infinite": (changed(score=np.float32("inf")), "score .*inf.* is not a finite number"),
    "score as text": (changed(score="0.5"), "score '0.5' is not a finite number"),
    "no mask": (changed(segmentation=None), 'no "segmentation".*compressed RLE'),
    "polygons": (changed(segmentation=[[0, 0, 4, 0, 4, 4]]), "not compressed RLE"),
    "run lengths": (changed(segmentation={"size": [4, 6], "counts": [24]}), "not compressed"),
    "size": (
        changed(segmentation={"size": [6, 4], "counts": COUNTS}),
        r"mask size \[6, 4\] .* its image's \[4, 6\]; encode .* original image",
    ),
    "no size": (changed(segmentation={"counts": COUNTS}), "mask size None"),
    "runs": (changed(segmentation={"size": [4, 6], "counts": COUNTS[:-1]}), "24 pixels"),
    "garbage": (changed(segmentation={"size": [4, 6], "counts": "a b"}), "24 pixels"),
    "box of three": (changed(bbox=[0, 0, 4]), "bbox .* width, height"),
    "box with NaN": (changed(bbox=[0, 0, 4, float("nan")]), "bbox .* finite"),
    "negative box": (changed(bbox=[4, 0, -4, 4]), "from 0"),
}


def test_good_entries_pass():
    check_results([GOOD, changed(bbox=None), changed(score=1)], **DATA)
    check_results([changed(category_id=99)], image_sizes=DATA["image_sizes"], category_ids=None)
    check_results([changed(segmentation=None)], kinds=("box",), **DATA)


@pytest.mark.parametrize("name", BAD)
def test_bad_entries_are_named(name):
    entry, message = BAD[name]
    with pytest.raises(InputError, match=message) as raised:
        check_results([GOOD, GOOD, entry], source="out/results.json", **DATA)
    assert str(raised.value).startswith("out/results.json: entry 2")
    assert "\n" not in str(raised.value)


def test_boxes_alone_still_need_a_box():
    with pytest.raises(InputError, match='no "bbox"'):
        check_results([changed(segmentation=None, bbox=None)], kinds=("box",), **DATA)


def test_what_results_allow():
    assert kinds_in_results([GOOD, changed(segmentation=None)]) == ("mask", "box")
    assert kinds_in_results([changed(segmentation=None)]) == ("box",)
    assert kinds_in_results([]) == ("mask", "box")


def test_load_results(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([GOOD]))
    assert load_results(path) == [GOOD]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"annotations": []}', "not a list of results"),
        ("[{", "not valid json"),
        ("", "not valid json"),
        (b"\xff\xfe\x00", "not valid json"),
    ],
)
def test_files_that_hold_no_results(tmp_path, text, message):
    path = tmp_path / "results.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message) as raised:
        load_results(path)
    assert str(raised.value).startswith(str(path))


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="cannot read the results"):
        load_results(tmp_path / "nowhere.json")
