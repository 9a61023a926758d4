"""`solojax predict`: results and pictures, and what it says to bad input."""

from __future__ import annotations

import errno
import json
import shutil

import cv2
import numpy as np
import pytest
from helpers import tiny_run
from helpers.tiny_run import call, refusal, use_nano_network
from pycocotools import mask as coco_mask


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    """A finished run of the nano network, which stays in its place."""
    with pytest.MonkeyPatch.context() as patch:
        use_nano_network(patch)
        yield tiny_run.finished_nano_run(tmp_path_factory)


@pytest.fixture(scope="module")
def predicted(nano, tmp_path_factory):
    """The output folder for the nine images of the tiny data set, and what was said."""
    folder = tmp_path_factory.mktemp("predicted") / "out"
    outcome = predict(nano, nano.data / "images", folder, "--score_threshold", "0.02")
    assert outcome.code == 0, outcome
    return folder, outcome


def predict(run, images, output, *words):
    flags = ["--checkpoint", run.workdir, "--images", images, "--output", output]
    return call("predict", *flags, *words)


def results_in(folder) -> dict[str, list[dict]]:
    """The results by file name."""
    by_name = {}
    for result in json.loads((folder / "predictions.json").read_text()):
        by_name.setdefault(result["file_name"], []).append(result)
    return by_name


# What is written.


def test_results_are_in_the_form_of_coco(predicted):
    folder, _ = predicted
    results = results_in(folder)
    assert set(results) == {f"image_{number}.png" for number in range(9)}
    ids = {category["id"] for category in tiny_run.CATEGORIES}
    for name, found in results.items():
        side = 96 if name == "image_7.png" else 64
        scores = [result["score"] for result in found]
        assert scores == sorted(scores, reverse=True) and 0 < scores[-1] <= scores[0] <= 1
        for result in found:
            assert set(result) == {"file_name", "category_id", "score", "bbox", "segmentation"}
            assert result["category_id"] in ids
            mask = coco_mask.decode(result["segmentation"])
            assert mask.shape == (side, side)
            ys, xs = np.nonzero(mask)
            x, y, width, height = result["bbox"]
            if len(xs):
                assert (x, y, x + width, y + height) == (
                    xs.min(), ys.min(), xs.max() + 1, ys.max() + 1,
                )  # fmt: skip


def test_results_are_those_of_evaluation(nano, predicted, tmp_path):
    """Image by image on one device in one, batch by batch on four in the other."""
    saved = tmp_path / "results.json"
    words = ["--checkpoint", nano.workdir, "--save_predictions", saved]
    assert call("evaluate", *words).code == 0
    names = {
        image["id"]: image["file_name"]
        for image in json.loads((nano.data / "val.json").read_text())["images"]
    }
    mine = results_in(predicted[0])
    theirs = {}
    for result in json.loads(saved.read_text()):
        theirs.setdefault(names[result["image_id"]], []).append(result)
    for name, expected in theirs.items():
        np.testing.assert_allclose(
            [result["score"] for result in mine[name]],
            [result["score"] for result in expected],
            rtol=1e-4,
        )
        for first, second in zip(mine[name][:3], expected[:3], strict=True):
            assert first["category_id"] == second["category_id"]
            overlap = coco_mask.iou([first["segmentation"]], [second["segmentation"]], [0])
            assert overlap.item() > 0.99


def test_every_image_has_a_picture(predicted):
    folder, outcome = predicted
    pictures = sorted((folder / "overlays").iterdir())
    assert [path.name for path in pictures] == [f"image_{number}.png" for number in range(9)]
    results = json.loads((folder / "predictions.json").read_text())
    drawn = sum(result["score"] >= 0.02 for result in results)
    assert 0 < drawn < len(results)
    assert outcome.out.splitlines() == [
        f"{len(results)} objects in 9 images: {folder}/predictions.json",
        f"{drawn} of them with a score from 0.02 on: {folder}/overlays",
    ]
    for path in pictures:
        assert min(cv2.imread(str(path)).shape[:2]) >= 500  # enlarged, so that text is legible


def test_the_picture_shows_what_was_found(nano, predicted):
    folder, _ = predicted
    results = results_in(folder)
    name = max(results, key=lambda name: results[name][0]["score"])
    picture = cv2.imread(str(folder / "overlays" / name)).astype(int)
    image = cv2.imread(str(nano.data / "images" / name))
    size = picture.shape[1::-1]
    enlarged = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    changed = np.abs(picture - enlarged).sum(axis=2) > 30
    mask = coco_mask.decode(results[name][0]["segmentation"])
    inside = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST) == 1
    assert changed[inside].mean() > 0.6


def test_a_file_a_pattern_and_names_that_collide(nano, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(nano.data / "images" / "image_0.png", tmp_path / folder / "same.png")
    outcome = predict(nano, tmp_path / "a" / "same.png", tmp_path / "one")
    assert outcome.code == 0 and " in 1 images" in outcome.out
    assert set(results_in(tmp_path / "one")) == {"same.png"}
    assert predict(nano, tmp_path / "*" / "*.png", tmp_path / "two").code == 0
    results = results_in(tmp_path / "two")
    assert set(results) == {"a/same.png", "b/same.png"}
    names = sorted(path.name for path in (tmp_path / "two" / "overlays").iterdir())
    assert names == ["a_same.png", "b_same.png"]
    without_name = [[result | {"file_name": ""} for result in found] for found in results.values()]
    assert without_name[0] == without_name[1]


def test_candidates_without_room_are_counted(nano, tmp_path, caplog):
    room = [
        f"--config.evaluation.{key}=2" for key in ("max_candidates", "nms_pre", "max_detections")
    ]
    image = nano.data / "images" / "image_0.png"
    outcome = predict(nano, image, tmp_path / "out", *room)
    assert outcome.code == 0 and len(results_in(tmp_path / "out")["image_0.png"]) <= 2
    said = [line for line in caplog.messages if "evaluation.max_candidates: raise it" in line]
    assert len(said) == 1 and int(said[0].split()[0]) > 0
    caplog.clear()
    none = "--config.evaluation.score_threshold=0.99"
    assert predict(nano, image, tmp_path / "out", none).code == 0
    assert not any("max_candidates" in line for line in caplog.messages)


# Bad input.


def test_broken_images_are_reported_and_left_out(nano, tmp_path, caplog):
    images = shutil.copytree(nano.data / "images", tmp_path / "images")
    (images / "image_0.png").write_bytes(b"")
    whole = (images / "image_1.png").read_bytes()
    (images / "image_1.png").write_bytes(whole[: len(whole) // 2])
    (images / "image_2.png").write_text("no image")
    outcome = predict(nano, images, tmp_path / "out")
    assert outcome.code == 0
    assert set(results_in(tmp_path / "out")) == {f"image_{number}.png" for number in range(3, 9)}
    last = outcome.out.splitlines()[-1]
    assert last.startswith("3 images could not be read: ") and "image_2.png" in last
    for number, problem in ((0, "empty"), (1, "truncated"), (2, "not an image")):
        lines = [each for each in caplog.messages if f"image_{number}.png" in each]
        assert len(lines) == 1 and problem in lines[0]


def test_no_image_can_be_read(nano, tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.jpg"):
        (tmp_path / "images" / name).write_bytes(b"")
    outcome = predict(nano, tmp_path / "images", tmp_path / "out")
    refusal(outcome, "none of the 2 image files", "a.png")
    assert not (tmp_path / "out" / "predictions.json").exists()


@pytest.mark.parametrize(
    "images, flags, parts",
    [
        ("nowhere", [], ["--images", "nowhere", "a file, a folder or a quoted pattern"]),
        ("*.xyz", [], ["--images", "*.xyz"]),
        ("images", ["--score_threshold", "1.5"], ["--score_threshold", "1.5", "from 0 to 1"]),
        ("images", ["--score_threshold", "nan"], ["--score_threshold", "nan"]),
        ("images", ["--step", "worst"], ["'worst'", "'best'"]),
        (
            "images",
            ["--config.model.mask_features.out_channels=64"],
            ["another architecture", "params/kernel/kernel (3, 32) in it and (3, 64) here"],
        ),
        ("images", ["--config.seeds=64"], ["did you mean 'seed'"]),
    ],
)
def test_bad_flags(nano, tmp_path, images, flags, parts):
    outcome = predict(nano, nano.data / images, tmp_path / "out", *flags)
    refusal(outcome, *parts)
    assert outcome.err.count("\n") == 1 and outcome.out == ""


def test_an_output_below_a_file(nano, tmp_path):
    (tmp_path / "file").write_text("")
    outcome = predict(nano, nano.data / "images", tmp_path / "file" / "out")
    refusal(outcome, "--output", "file/out", "give the path of a folder")


def test_a_checkpoint_that_is_not_there(nano, tmp_path):
    words = ["--images", nano.data / "images", "--output", tmp_path / "out"]
    outcome = call("predict", "--checkpoint", tmp_path / "run", *words)
    refusal(outcome, str(tmp_path / "run"), "does not exist")


def test_a_full_disk_keeps_the_results_so_far(nano, tmp_path, monkeypatch):
    from solojax.inference import prediction

    write_png = prediction.write_png

    def write_until_full(path, image):
        if path.name == "image_4.png":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_png(path, image)

    monkeypatch.setattr(prediction, "write_png", write_until_full)
    outcome = predict(nano, nano.data / "images", tmp_path / "out")
    refusal(outcome, "image_4.png", "No space left", "free some space")
    found = set(results_in(tmp_path / "out"))
    assert {f"image_{number}.png" for number in range(4)} <= found
    assert "image_5.png" not in found
