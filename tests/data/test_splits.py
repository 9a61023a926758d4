"""Splits of a COCO json: which ids, nothing else changed, and what cannot be split."""

from __future__ import annotations

import hashlib
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solojax.data.splits import choose, write_split
from solojax.errors import InputError

DOCUMENT = {
    "info": {"year": 2017, "contributor": "somebody"},
    "licenses": [{"id": 4}],
    "categories": [{"id": 3, "name": "car"}],
    "images": [
        {"id": 100 - n, "file_name": f"{n}.jpg", "height": 9, "width": 9} for n in range(40)
    ],
    "annotations": [
        {"id": 7 * n, "image_id": 100 - n // 3, "category_id": 3, "iscrowd": int(n % 10 == 9),
         "segmentation": [[1.5, 2, 3, 4, 5, 6]]}
        for n in range(100)
    ],
}  # fmt: skip


def split(folder, kind, fraction, seed=0, document=DOCUMENT, name="split.json"):
    (folder / "source.json").write_text(json.dumps(document))
    info = write_split(folder / "source.json", folder / name, kind, fraction, seed)
    return info, json.loads((folder / name).read_text())


def test_an_image_split_keeps_some_images_with_their_objects(tmp_path):
    info, part = split(tmp_path, "images", 0.1)
    assert (info.chosen, info.of) == (4, 40) == (len(part["images"]), len(DOCUMENT["images"]))
    kept = {image["id"] for image in part["images"]}
    assert part["images"] == [i for i in DOCUMENT["images"] if i["id"] in kept]
    assert part["annotations"] == [a for a in DOCUMENT["annotations"] if a["image_id"] in kept]
    assert part["categories"] == DOCUMENT["categories"]
    assert part["licenses"] == DOCUMENT["licenses"]
    assert part["info"] == DOCUMENT["info"] | {
        "split": {
            "kind": "images", "fraction": 0.1, "seed": 0, "chosen": 4, "of": 40,
            "sha256": hashlib.sha256(
                ",".join(str(n) for n in sorted(kept)).encode()
            ).hexdigest()[:16],
        }
    }  # fmt: skip
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["source.json", "split.json"]


def test_a_mask_split_keeps_everything_and_marks_the_objects(tmp_path):
    info, part = split(tmp_path, "masks", 0.1)
    assert (info.chosen, info.of) == (9, 90)  # ten of a hundred are crowds
    assert part["images"] == DOCUMENT["images"]
    marks = [entry.pop("supervise_mask", None) for entry in part["annotations"]]
    assert part["annotations"] == DOCUMENT["annotations"]
    assert marks.count(1) == 9 and marks.count(0) == 81
    assert [mark is None for mark in marks] == [n % 10 == 9 for n in range(100)]


def test_the_same_for_everybody():
    """Recorded: a change of the choice would make published figures of a split another split's."""
    images, masks = (sorted(choose(range(1000), 0.005, 0, kind)) for kind in ("images", "masks"))
    assert images == [272, 273, 341, 561, 993]
    assert masks == [38, 124, 353, 620, 830]


@given(
    st.sets(st.integers(0, 10**6), min_size=1, max_size=60),
    st.floats(0.01, 0.99),
    st.floats(0.01, 0.99),
    st.integers(0, 5),
)
def test_smaller_splits_are_part_of_larger_ones_in_any_order(ids, one, other, seed):
    shuffled = list(ids)
    random.Random(seed).shuffle(shuffled)
    small, large = (choose(shuffled, part, seed, "images") for part in sorted((one, other)))
    assert small <= large <= ids
    assert small == choose(sorted(ids), min(one, other), seed, "images")
    assert len(small) == max(1, int(min(one, other) * len(ids) + 0.5))


def test_seeds_and_kinds_choose_apart():
    choices = {
        choose(range(1000), 0.05, seed, kind) for seed in (0, 1, 2) for kind in ("images", "masks")
    }
    assert len(choices) == 6


@pytest.mark.parametrize(
    "change, problem",
    [
        (lambda d: d.pop("annotations"), 'no list "annotations"'),
        (lambda d: d["images"][3].pop("id"), 'images entry 3 has no whole number as "id"'),
        (lambda d: d["annotations"][3].update(id="x"), "annotations entry 3"),
        (lambda d: d["annotations"][3].update(id=0), "two annotations have the same id"),
        (lambda d: d["annotations"][3].update(supervise_mask=1), "split already"),
        (lambda d: d["annotations"].clear(), "no annotations"),
    ],
)
def test_what_cannot_be_split(tmp_path, change, problem):
    document = json.loads(json.dumps(DOCUMENT))
    change(document)
    with pytest.raises(InputError, match=problem) as error:
        split(tmp_path, "masks", 0.5, document=document)
    assert "source.json" in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "split.json").exists()


def test_bad_arguments(tmp_path):
    for fraction in (0, 1, -0.1, 5):
        with pytest.raises(InputError, match="between 0 and 1"):
            split(tmp_path, "images", fraction)
    with pytest.raises(InputError, match="give one of images, masks"):
        split(tmp_path, "boxes", 0.5)
    with pytest.raises(InputError, match="this is the source"):
        split(tmp_path, "images", 0.5, name="source.json")
    with pytest.raises(InputError, match="cannot read"):
        write_split(tmp_path / "absent.json", tmp_path / "x.json", "images", 0.5)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InputError, match="not valid json"):
        write_split(tmp_path / "broken.json", tmp_path / "x.json", "images", 0.5)
