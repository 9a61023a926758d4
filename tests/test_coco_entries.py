"""The names of images in COCO and LVIS jsons."""

from __future__ import annotations

import pytest

from solojax.coco_entries import image_file_name, text_field


def test_the_last_two_parts_of_the_url_stand_in_for_a_name_that_is_not_there():
    url = "http://images.cocodataset.org/train2017/000000391895.jpg?size=1"
    assert image_file_name({"coco_url": url}) == "train2017/000000391895.jpg"
    assert image_file_name({"coco_url": url, "file_name": "a/b.png"}) == "a/b.png"


@pytest.mark.parametrize(
    "entry, said",
    [({}, 'has no "file_name"; add it'), ({"file_name": ""}, "''"), ({"file_name": 3}, "is 3;")],
)
def test_what_is_no_name_is_said(entry, said):
    with pytest.raises(ValueError, match=said):
        image_file_name(entry)
    with pytest.raises(ValueError, match=said):
        text_field(entry, "file_name")
