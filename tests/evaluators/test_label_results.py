"""Results matched by file name: label files, with boxes from their masks, and predictions."""

from __future__ import annotations

import json

import pytest

from solojax.errors import InputError
from solojax.evaluators.label_results import load_predictions
from solojax.inference.evaluation import score_file

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
    results = load_predictions(*files(label_file()), class_agnostic=True)
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
    assert load_predictions(labels, truth, class_agnostic=False) == [{"image_id": 20, "score": 1.0}]


def test_label_files_have_no_classes_to_be_scored_by(files):
    """Not even where the annotations have one class, and by chance the id that labels have."""
    labels, truth = files(label_file())
    document = json.loads(truth.read_text())
    document["categories"][0]["id"] = 1
    truth.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"labels.json: .* add --class-agnostic") as raised:
        score_file(labels, truth, backend="fast", class_agnostic=False)
    assert "\n" not in str(raised.value)


def as_lvis(path):
    """Takes the file names of a json's images away; what is left are URLs."""
    document = json.loads(path.read_text())
    for entry in document["images"]:
        entry["coco_url"] = f"http://images.example.org/of/2017/{entry.pop('file_name')}"
    path.write_text(json.dumps(document))


def test_annotations_with_urls_alone(files):
    """Their names are those that Free Mask writes for such a file."""
    document = label_file()
    document["images"][2]["file_name"] = "2017/c.jpg"
    labels, truth = files(document)
    as_lvis(truth)
    results = load_predictions(labels, truth, class_agnostic=True)
    assert [(r["image_id"], round(r["score"], 1)) for r in results] == [(30, 0.1), (20, 0.3)]


def prediction(**image):
    box = [0, 0, 1, 4]
    return image | {"category_id": 5, "score": 0.5, "bbox": box, "segmentation": MASK}


@pytest.mark.parametrize("urls", [False, True])
def test_predictions_with_names_score_as_with_ids(files, urls):
    """In full, or without the folder where that leaves no doubt."""
    truth = {"category_id": 5, "segmentation": MASK, "area": 4, "iscrowd": 0}
    objects = [truth | {"id": n, "image_id": 10 * n} for n in (1, 2, 3)]
    figures = []
    for images in (
        [{"image_id": 30}, {"image_id": 20}, {"image_id": 30}],
        [{"file_name": "c.jpg"}, {"file_name": "b/x.jpg"}, {"image_id": 30, "file_name": "?"}],
    ):
        paths = files([prediction(**image) for image in images], objects)
        if urls:
            as_lvis(paths[1])
        figures.append(score_file(*paths, backend="fast", class_agnostic=False))
    assert figures[0] == figures[1]
    assert figures[0]["mask"]["AR1"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("y.jpg", "entry 1: image 'y.jpg' is not among"),
        ("z/c.jpg", "entry 1: image 'z/c.jpg' is not among"),
        ("x.jpg", "entry 1: image 'x.jpg' may be 'a/x.jpg' or 'b/x.jpg'"),
        (7, 'entry 1: "file_name" is 7'),
    ],
)
def test_predictions_whose_names_tell_no_image(files, name, message):
    paths = files([prediction(file_name="c.jpg"), prediction(file_name=name)])
    with pytest.raises(InputError, match=message) as raised:
        load_predictions(*paths, class_agnostic=False)
    assert "labels.json" in str(raised.value) and "truth.json" in str(raised.value)
    assert "\n" not in str(raised.value)


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
        load_predictions(*files(document), class_agnostic=True)
    assert "labels.json" in str(raised.value)
