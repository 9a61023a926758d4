"""Names of results and pictures, and what is kept when the work ends half-way."""

from __future__ import annotations

import json
import types
from pathlib import Path

import cv2
import numpy as np
import pytest

from solojax.errors import InputError
from solojax.inference import prediction
from solojax.postprocess.rescale import encode_rle


class OneObject:
    """A model that finds one square in every image; fails where it is told to."""

    names = {4: "square"}

    def __init__(self, fail_at: int | None = None):
        self.calls, self.fail_at = 0, fail_at

    def predict(self, image):
        self.calls += 1
        if self.calls == self.fail_at:
            raise InputError("no canvas holds it")
        mask = np.zeros(image.shape[:2], np.uint8)
        mask[2:6, 2:6] = 1
        return [
            {"image_id": 0, "category_id": 4, "score": 0.5, "bbox": [2, 2, 4, 4],
             "segmentation": encode_rle(mask)}
        ]  # fmt: skip


@pytest.fixture
def images(tmp_path):
    paths = [tmp_path / "images" / f"{name}.png" for name in "abc"]
    paths[0].parent.mkdir()
    for path in paths:
        cv2.imwrite(str(path), np.full((16, 12, 3), 90, np.uint8))
    return paths


def names_of(*paths: str) -> list[str]:
    return list(prediction.file_names([Path(path) for path in paths]).values())


def pictures_of(*paths: str) -> list[str]:
    names = prediction.file_names([Path(path) for path in paths])
    return list(prediction.picture_names(names).values())


def test_files_are_named_by_their_name_as_long_as_it_is_theirs_alone():
    assert names_of("x/a.jpg", "y/b.jpg") == ["a.jpg", "b.jpg"]
    assert names_of("/r/x/a.jpg", "/r/y/a.jpg", "/r/b.jpg") == ["x/a.jpg", "y/a.jpg", "b.jpg"]
    assert names_of("/r/x/a.jpg") == ["a.jpg"] and names_of() == []


def test_no_two_pictures_have_one_name():
    assert pictures_of("x/a.jpg", "b.c.png") == ["a.png", "b.c.png"]
    assert pictures_of("a.jpg", "a.png", "b.jpg") == ["a.jpg.png", "a.png.png", "b.png"]
    assert pictures_of("/r/x/a.jpg", "/r/y/a.jpg") == ["x_a.png", "y_a.png"]
    clashing = pictures_of("/r/x/a.jpg", "/r/y/a.jpg", "/r/x_a.jpg", "/r/z/x_a.jpg")
    assert len(set(clashing)) == 4


def test_results_and_pictures(images, tmp_path):
    results, skipped = prediction.predict_files(OneObject(), images, tmp_path, 0.3)
    assert skipped == [] and [result["file_name"] for result in results] == [
        "a.png", "b.png", "c.png",
    ]  # fmt: skip
    assert json.loads((tmp_path / "predictions.json").read_text()) == results
    assert "image_id" not in results[0]
    shown = cv2.imread(str(tmp_path / "overlays" / "a.png"))
    plain, _ = prediction.predict_files(OneObject(), images, tmp_path, 0.6)
    hidden = cv2.imread(str(tmp_path / "overlays" / "a.png"))
    assert (shown != hidden).any() and (hidden == 90).all() and plain == results


def test_what_was_found_is_kept_when_the_work_ends_half_way(images, tmp_path):
    with pytest.raises(InputError, match="no canvas"):
        prediction.predict_files(OneObject(fail_at=3), images, tmp_path, 0.3)
    kept = json.loads((tmp_path / "predictions.json").read_text())
    assert [result["file_name"] for result in kept] == ["a.png", "b.png"]


def test_earlier_predictions_stay_when_nothing_new_was_found(images, tmp_path):
    (tmp_path / "predictions.json").write_text("earlier")
    with pytest.raises(InputError, match="no canvas"):
        prediction.predict_files(OneObject(fail_at=1), images, tmp_path, 0.3)
    for path in images:
        path.write_bytes(b"")
    with pytest.raises(InputError, match="none of the 3 image files could be read"):
        prediction.predict_files(OneObject(), images, tmp_path, 0.3)
    assert (tmp_path / "predictions.json").read_text() == "earlier"


def test_pictures_are_png_in_rgb(tmp_path):
    red = np.zeros((4, 5, 3), np.uint8)
    red[..., 0] = 200
    prediction.write_png(tmp_path / "red.png", red)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "red.png"))[..., ::-1], red)


def test_a_picture_that_cannot_be_encoded(tmp_path, monkeypatch):
    stub = types.SimpleNamespace(**vars(cv2) | {"imencode": lambda *_: (False, None)})
    monkeypatch.setattr(prediction, "cv2", stub)
    with pytest.raises(InputError, match="red.png: the picture could not be encoded"):
        prediction.write_png(tmp_path / "red.png", np.zeros((4, 5, 3), np.uint8))
