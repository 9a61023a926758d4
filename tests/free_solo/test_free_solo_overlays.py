"""Pictures of predictions: which, of what, and what happens to them when drawing is stopped."""

from __future__ import annotations

import json
import logging

import cv2
import numpy as np
import pytest
from helpers.photos import write_photos

from solojax.cli import free_solo as command
from solojax.data import label_file
from solojax.free_solo import overlays
from solojax.free_solo.chain import FreeSoloSummary
from solojax.free_solo.free_masks import load_photos
from solojax.free_solo.overlays import FoundSummary, remove_pictures, show_found
from solojax.free_solo.stages import Stages
from solojax.postprocess.rescale import encode_rle
from solojax.train import progress
from solojax.visualize import overlays as drawing
from solojax.visualize.overlays import overlay_results

NAMES = ["a_one.png", "b_one.png", "b_two.png"] + [f"c_{n}.png" for n in range(4)]
SCORES = (0.9, 0.5, 0.1)  # of the objects of every image


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Seven images as a data set, and predictions of three objects in each."""
    monkeypatch.setattr(drawing, "_LONG_SIDE", 1)  # enlarged, they would take a second each
    dataset, _ = load_photos(write_photos(tmp_path / "photos"))
    predictions = tmp_path / "predictions.json"
    write_predictions(predictions, dataset)
    return dataset, predictions


def write_predictions(path, dataset, fingerprint="f" * 16):
    label_file.write(
        path,
        images=label_file.image_entries(dataset.images),
        annotations=[each for image in dataset.images for each in objects_of(image)],
        info=label_file.LabelInfo(fingerprint, {}, "runs/a"),
    )


def objects_of(image):
    for number, score in enumerate(SCORES):
        mask = np.zeros((image.height, image.width), np.uint8)
        mask[20 * number : 20 * number + 15, 5:60] = 1
        yield {"image_id": image.id, "segmentation": encode_rle(mask), "score": score,
               "emb": [0.5] * 128}  # fmt: skip


def pictures(folder):
    """Name -> bytes and time of writing."""
    return {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob("*.png")
    }


class Stop:
    """Stands in for `write_png`; ends drawing in the middle of what follows the first `after`."""

    def __init__(self, after):
        self.written, self.after, self._write = [], after, overlays.write_png

    def __call__(self, path, image):
        if len(self.written) == self.after:
            path.write_bytes(b"\x89PNG cut off")
            raise KeyboardInterrupt
        self.written.append(path.name.removesuffix(".tmp"))
        self._write(path, image)


@pytest.fixture
def stopped(photos, tmp_path, monkeypatch):
    """Drawing into "o" was stopped in the third picture, and may go on now."""
    stop = Stop(after=2)
    monkeypatch.setattr(overlays, "write_png", stop)
    monkeypatch.setattr(overlays, "_THREADS", 1)
    with pytest.raises(KeyboardInterrupt):
        show_found(*photos, tmp_path / "o", 0.3)
    assert stop.written == NAMES[:2]
    stop.written, stop.after = [], None
    return stop


def test_every_image_has_a_picture_of_what_is_likely(photos, tmp_path):
    dataset, predictions = photos
    found = show_found(dataset, predictions, tmp_path / "o", 0.3)
    assert found == FoundSummary(images=7, objects=21, likely=14, score_threshold=0.3)
    assert sorted(pictures(tmp_path / "o")) == NAMES and found.pictures == 7
    results = [each | {"category_id": 1} for each in objects_of(dataset.images[0])]
    expected = overlay_results(dataset.read_image(0), results, {1: "object"}, 0.3)
    shown = cv2.imread(str(tmp_path / "o" / "a_one.png"))[..., ::-1]
    np.testing.assert_array_equal(shown, expected)


def test_drawing_shows_how_far_it_is(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "_LOG_SECONDS", 1e-9)
    show_found(*photos, tmp_path / "o", 0.3)
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("draw: 7/7 image [") and "image/s" in line


def test_pictures_stay_until_they_would_be_others(photos, tmp_path):
    dataset, predictions = photos
    show_found(dataset, predictions, tmp_path / "o", 0.3)
    first = pictures(tmp_path / "o")
    assert show_found(dataset, predictions, tmp_path / "o", 0.3).likely == 14
    assert pictures(tmp_path / "o") == first
    assert show_found(dataset, predictions, tmp_path / "o", 0.6).likely == 7
    second = pictures(tmp_path / "o")
    assert all(second[name][0] != first[name][0] for name in NAMES)
    write_predictions(predictions, dataset, "0" * 16)
    show_found(dataset, predictions, tmp_path / "o", 0.6)
    assert all(pictures(tmp_path / "o")[name][1] > second[name][1] for name in NAMES)


def test_other_processes_count_and_draw_nothing(photos, tmp_path):
    found = show_found(*photos, tmp_path / "o", 0.3, draws=False)
    assert found == FoundSummary(7, 21, 14, 0.3) and not (tmp_path / "o").exists()


def test_drawing_that_was_stopped_goes_on(photos, tmp_path, stopped):
    assert not (tmp_path / "o").exists()
    kept = pictures(tmp_path / "o.tmp")
    assert sorted(kept) == NAMES[:2]  # the third is not whole
    show_found(*photos, tmp_path / "o", 0.3)
    assert stopped.written == NAMES[2:]
    whole = pictures(tmp_path / "o")
    assert sorted(whole) == NAMES and whole.items() >= kept.items()
    assert all(cv2.imread(str(tmp_path / "o" / name)) is not None for name in NAMES)
    assert not (tmp_path / "o.tmp").exists()


@pytest.mark.parametrize("other", ["threshold", "predictions", "unknown"])
def test_what_was_left_of_others_is_drawn_anew(photos, tmp_path, stopped, other):
    dataset, predictions = photos
    threshold = 0.6 if other == "threshold" else 0.3
    if other == "predictions":
        write_predictions(predictions, dataset, "0" * 16)
    if other == "unknown":
        (tmp_path / "o.tmp" / "drawn.json").write_text("{")
    show_found(dataset, predictions, tmp_path / "o", threshold)
    assert stopped.written == NAMES
    assert json.loads((tmp_path / "o" / "drawn.json").read_text())["score_threshold"] == threshold


def test_a_folder_that_was_removed_in_part_is_no_whole_one(photos, tmp_path, monkeypatch):
    show_found(*photos, tmp_path / "o", 0.3)

    def removed_in_part(folder):
        (folder / "c_0.png").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(overlays.shutil, "rmtree", removed_in_part)
        remove_pictures(tmp_path / "o")
    show_found(*photos, tmp_path / "o", 0.3)
    assert sorted(pictures(tmp_path / "o")) == NAMES
    remove_pictures(tmp_path / "o")
    remove_pictures(tmp_path / "o")  # it is not there
    assert not (tmp_path / "o").exists()


def test_images_that_cannot_be_read_any_more_are_left_out(photos, tmp_path, caplog):
    (tmp_path / "photos" / "c" / "0.png").write_bytes(b"")
    show_found(*photos, tmp_path / "o", 0.3)
    assert sorted({*NAMES} - pictures(tmp_path / "o").keys()) == ["c_0.png"]
    assert "image left out" in caplog.text


def test_many_images_have_pictures_of_some_evenly_spread(photos, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="solojax")
    monkeypatch.setattr(overlays, "MAX_PICTURES", 3)
    found = show_found(*photos, tmp_path / "o", 0.3)
    assert sorted(pictures(tmp_path / "o")) == [NAMES[0], NAMES[2], NAMES[4]]
    assert f"{tmp_path / 'o'}: pictures of 3 of the 7 images, evenly spread" in caplog.text
    assert found == FoundSummary(7, 21, 14, 0.3) and found.pictures == 3
    assert len(overlays._spread(range(241_690), 1000)) == 1000
    assert overlays._spread(range(300), 1000) == list(range(300))


def test_neither_embeddings_nor_the_unlikely_are_kept(photos):
    _, predictions = photos
    _, shown = overlays._read(predictions, 0.3, pictures=2)
    assert len(shown) == 2
    for found in shown.values():
        assert [each["score"] for each in found] == [0.9, 0.5]
        assert not any("emb" in each for each in found)


@pytest.mark.parametrize(("images", "end"), [(300, ""), (5000, " (pictures of 1000 images)")])
def test_the_report_says_how_much_is_likely_and_drawn(tmp_path, images, end):
    found, stages = FoundSummary(images, 9000, 700, 0.3), Stages(tmp_path, 0)
    text = command._report(FreeSoloSummary((), found, ()), stages)
    assert text.splitlines() == [
        f"9000 objects found in {images} images: {stages.predictions}",
        f"700 of them with a score from 0.3 on: {stages.overlays}{end}",
    ]
    assert f"{overlays.MAX_PICTURES} images" in " ".join(command.HELP.split())
