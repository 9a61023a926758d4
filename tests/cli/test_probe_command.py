"""`solojax probe` end to end: tables, files, and what it says to bad input."""

from __future__ import annotations

import importlib.util
import json

import cv2
import numpy as np
import pytest
from helpers.probe_process import use_small_untrained_backbone
from helpers.processes import Processes
from helpers.tiny_run import call, refusal

COLORS = {"blue": (250, 60, 40), "green": (40, 220, 60), "red": (30, 40, 240)}
SMALL = ["--short-side", "36", "--crop", "32", "--batch-size", "8", "--threads", "2"]
RANDOM = ["--checkpoint", "random", "--config", "configs/densecl.py:tiny"]


def write_photos(root, seed, count=5):
    """Class folders of noisy patches of one colour each."""
    rng = np.random.default_rng(seed)
    for name, color in COLORS.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            image = rng.normal(color, 30, (40, 48, 3)).clip(0, 255).astype(np.uint8)
            cv2.imwrite(str(root / name / f"{index}.png"), image)
    return root


def write_json(root, path):
    """A COCO json over the class folders; every image also shows the class 'thing'."""
    names = [*sorted(COLORS), "thing"]
    files = sorted(root.rglob("*.png"))
    images, annotations = [], []
    for number, file in enumerate(files):
        file_name = file.relative_to(root).as_posix()
        images.append({"id": number, "file_name": file_name, "height": 40, "width": 48})
        shown = [names.index(file.parent.name)] + [3] * (number % 2)
        for label in shown:
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": number,
                    "category_id": label,
                    "bbox": [0, 0, 48, 40],
                    "segmentation": [[0, 0, 48, 0, 48, 40, 0, 40]],
                    "area": 1920,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": label, "name": name} for label, name in enumerate(names)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(document))
    return path


@pytest.fixture(scope="module", autouse=True)
def small_backbone():
    with pytest.MonkeyPatch.context() as patch:
        use_small_untrained_backbone(patch)
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    write_photos(root / "train", 0)
    write_photos(root / "test", 1, count=3)
    (root / "train" / "blue" / "broken.png").write_bytes(b"")
    return root


def sets(photos):
    return ["--train-images", photos / "train", "--test-images", photos / "test"]


def probe(photos, *words):
    return call("probe", *RANDOM, *SMALL, *sets(photos), *words)


def test_class_folders(photos, tmp_path):
    output, features = tmp_path / "out" / "probes.json", tmp_path / "features.npz"
    words = ["--k", "3", "--costs", "0.1,1,10", "--shots", "1,2", "--repeats", "2"]
    outcome = probe(photos, *words, "--output", output, "--features-output", features)
    assert outcome.code == 0, outcome
    figures = json.loads(output.read_text())
    assert figures["classes"] == ["blue", "green", "red"]
    assert figures["counts"] == {"train": 15, "train_unread": 1, "test": 9, "test_unread": 0}
    assert figures["features"] == {
        "stage": "c5",
        "pool": 1,
        "channels": 12,
        "short_side": 36,
        "crop": 32,
    }
    # Colours are told apart by any network.
    assert figures["knn"] == {"accuracy": 1.0, "k": 3, "temperature": 0.07}
    assert figures["svm"]["accuracy"] == 1.0
    assert set(figures["low_shot"]) == {"1", "2"}
    for line, parts in zip(
        outcome.out.splitlines(),
        (
            "random weights",
            "15 training and 9 test images of 3 classes; 12 features of C5",
            "accuracy",
            "kNN, k 3, temperature 0.07 1.000",
            "linear SVM 1.000",
            "linear SVM, 1 a class over 2 draws",
            "linear SVM, 2 a class over 2 draws",
            "1 images could not be read",
        ),
        strict=True,
    ):
        assert all(part in line for part in parts.split()), line
    with np.load(features) as arrays:
        assert arrays["train_features"].shape == (15, 12)
        assert arrays["test_targets"].argmax(axis=1).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        assert arrays["classes"].tolist() == ["blue", "green", "red"]


def test_images_are_as_large_as_the_views_were(photos, tmp_path):
    output = tmp_path / "probes.json"
    words = ["--batch-size", "8", "--threads", "2", "--k", "3", "--probes", "knn"]
    outcome = call("probe", *RANDOM, *words, *sets(photos), "--output", output)
    assert outcome.code == 0, outcome
    features = json.loads(output.read_text())["features"]
    assert (features["short_side"], features["crop"]) == (110, 96)
    assert "12 features of C5, of 96x96 pixels" in outcome.out


def test_coco_jsons(photos, tmp_path):
    words = []
    for name in ("train", "test"):
        path = write_json(photos / name, tmp_path / f"{name}.json")
        words += [f"--{name}-annotations", path]
    output = tmp_path / "probes.json"
    outcome = probe(photos, *words, "--k", "3", "--costs", "0.1,1", "--output", output)
    assert outcome.code == 0, outcome
    figures = json.loads(output.read_text())
    for kind in ("knn", "svm"):
        precision = figures[kind]["average_precision"]
        assert [precision[name] for name in COLORS] == pytest.approx([1, 1, 1])
        assert precision["thing"] < 0.9  # which has no colour
        assert figures[kind]["mAP"] == pytest.approx(np.mean(list(precision.values())))
    header = outcome.out.splitlines()[2]
    assert header.split() == ["mAP_area", "mAP"]


@pytest.mark.slow
def test_two_processes_find_what_one_finds(photos, tmp_path):
    words = ["--k", "3", "--costs", "0.1,1", "--batch-size", "6"]
    alone, together = tmp_path / "alone.json", tmp_path / "together.json"
    assert probe(photos, *words, "--output", alone).code == 0
    flags = ["probe", *RANDOM, *SMALL, *sets(photos), *words, "--output", together]
    flags += ["--features-output", tmp_path / "together.npz"]
    with Processes("probe_process", flags, count=2, folder=tmp_path / "logs") as processes:
        processes.wait()
        assert [processes[index].code for index in (0, 1)] == [0, 0], processes._report()
        assert "kNN" in processes[0].text and "kNN" not in processes[1].text
    assert json.loads(together.read_text()) == json.loads(alone.read_text())
    with np.load(tmp_path / "together.npz") as arrays:
        assert arrays["train_features"].shape == (15, 12)


def test_knn_alone_does_without_scikit_learn(photos, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "sklearn" else find(name, *a)
    )
    refusal(probe(photos, "--k", "3"), "scikit-learn", "--probes knn")
    outcome = probe(photos, "--k", "3", "--probes", "knn")
    assert outcome.code == 0 and "SVM" not in outcome.out


def test_bad_sets(photos, tmp_path):
    k = ["--k", "3"]
    (tmp_path / "empty").mkdir()
    refusal(probe(photos, *k, "--train-images", tmp_path / "empty"), "no image there")
    refusal(probe(photos, *k, "--test-images", photos / "test" / "red"), "no class folders")
    other = write_photos(tmp_path / "other", 2, count=1)
    (other / "red").rename(other / "rose")
    refusal(probe(photos, *k, "--test-images", other), "(red)", "(rose)")
    few = write_photos(tmp_path / "few", 3, count=2)
    refusal(probe(photos, *k, "--train-images", few), "2 training images with class 'blue'", "3")
    for name in ("green", "red"):
        (other / ("rose" if name == "red" else name)).rename(tmp_path / name)
    refusal(probe(photos, *k, "--train-images", other), "one class alone (blue)")


def test_a_class_that_is_too_small_once_broken_images_are_out(photos, tmp_path):
    broken = write_photos(tmp_path / "broken", 4, count=3)
    (broken / "green" / "0.png").write_bytes(b"")
    outcome = probe(photos, "--k", "3", "--train-images", broken)
    refusal(outcome, "2 training images with class 'green'")


def test_bad_flags(photos, tmp_path):
    refusal(probe(photos), "k is 20 and there are 16 training images", "--k 16")
    refusal(probe(photos, "--costs", "1,x"), "give numbers with commas between")
    refusal(probe(photos, "--costs", ","), "no cost for the SVM: give at least one")
    refusal(probe(photos, "--shots", "1.5"), "whole numbers")
    refusal(probe(photos, "--probes", "svn"), "svn")
    refusal(probe(photos, "--crop", "64"), "short side 36")
    refusal(probe(photos, "--step", "3"), "--checkpoint random has no step 3")
    refusal(probe(photos, "--output", tmp_path), "this is a folder")
    words = [*SMALL, *sets(photos), "--k", "3"]
    refusal(call("probe", "--checkpoint", "random", *words), "needs --config")
    refusal(
        call("probe", "--checkpoint", tmp_path, "--config", "configs/densecl.py:tiny", *words),
        "--config describes the network of --checkpoint random",
    )
    refusal(call("probe", "--checkpoint", tmp_path / "nowhere", *words), "nowhere")
