"""Label files as results: matched by file name, with boxes from their masks."""

from __future__ import annotations

import json

import pytest

from solojax.errors import InputError
from solojax.evaluation import score_file
from solojax.evaluators.label_results import load_predictions

MASK = {"size": [4, 4], "counts": "04<"}  # the first column


def image(number, name):
    return {"id": number, "file_name": name, "height": 4, "width": 4}


def mask_of(number, image_id, **others):
    # Corners in the place of a box, and ids all the same, as the published files have them.
    entry = {"id": 0, "image_id": image_id, "category_id": 1, "bbox": [0, 0, 1, 4], "emb": [1.0]}
    return entry | {"segmentation": MASK, "score": 0.1 * number} | others


@pytest.fixture
def files(tmp_path):
    """Writes and returns (label file, annotations)."""

    def write(labels, annotations=()):
        truth = {
            "images": [image(10, "a/x.jpg"), image(20, "b/x.jpg"), image(30, "c.jpg")],
            "categories": [{"id": 5, "name": "post"}],
            "annotations": list(annotations),
        }
        paths = tmp_path / "labels.json", tmp_path / "truth.json"
        for path, document in zip(paths, (labels, truth), strict=True):
            path.write_text(json.dumps(document))
        return paths

    return write


def label_file():
    return {
        "images": [image(1, "b/x.jpg"), image(2, "elsewhere.jpg"), image(10, "c.jpg")],
        "categories": [{"id": 1, "name": "x"}],
        "annotations": [mask_of(1, 10), mask_of(2, 2), mask_of(3, 1)],
    }


def test_ids_follow_the_names(files, caplog):
    results = load_predictions(*files(label_file()))
    assert [(r["image_id"], round(r["score"], 1)) for r in results] == [(30, 0.1), (20, 0.3)]
    assert all("bbox" not in result for result in results)
    assert "1 of 3 images are not in" in caplog.text
    assert "1 of 3 images of" in caplog.text and "have no masks" in caplog.text


def test_masks_are_scored_by_what_they_are(files):
    truth = {"id": 1, "category_id": 5, "segmentation": MASK, "area": 4, "iscrowd": 0}
    paths = files(label_file(), [truth | {"image_id": 20}])
    figures = score_file(*paths, backend="fast", class_agnostic=True)
    assert figures["mask"]["AR1"] == figures["box"]["AR1"] == pytest.approx(1)
    assert figures["mask"]["ARs"] == pytest.approx(1) and figures["mask"]["ARl"] == -1
    assert figures["box"]["CorLoc"] == 1


def test_results_are_read_as_before(files):
    labels, truth = files([{"image_id": 20, "score": 1.0}])
    assert load_predictions(labels, truth) == [{"image_id": 20, "score": 1.0}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["annotations"][1].pop("score"), r"annotation 1 .*has no \"score\""),
        (lambda d: d["annotations"][0].update(image_id=99), "no image 99"),
        (lambda d: d.update(images=[image(1, "else.jpg")]), "none of its 1 images is in"),
        (lambda d: d.pop("images"), 'need "file_name" and "id"'),
        (lambda d: d.pop("annotations"), "not a list of results"),
        (lambda d: d.update(annotations=None), '"annotations" are no list'),
        (lambda d: d["images"].append(image(7, "b/x.jpg")), "'b/x.jpg' is there as 1 and as 7"),
    ],
)
def test_label_files_that_do_not_hold_together(files, change, message):
    document = label_file()
    change(document)
    with pytest.raises(InputError, match=message) as raised:
        load_predictions(*files(document))
    assert "labels.json" in str(raised.value)
