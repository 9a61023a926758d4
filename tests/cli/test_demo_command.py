"""`solojax demo`: from nothing to figures and pictures."""

from __future__ import annotations

import functools
import json

import cv2
import pytest
from helpers import tiny_run
from helpers.tiny_run import call, refusal, use_nano_network

from solojax.config import from_json

NUM_VAL = 2


@pytest.fixture
def demo(monkeypatch):
    use_nano_network(monkeypatch)
    counts = ["--num_train", "4", "--num_val", str(NUM_VAL)]
    return functools.partial(call, "demo", "--config", tiny_run.NANO_CONFIG, *counts)


def test_the_demo_leaves_data_figures_and_pictures(demo, tmp_path, caplog):
    outcome = demo("--workdir", tmp_path / "w", "--seed", "5")
    assert outcome.code == 0, outcome
    for split, count in (("train", 4), ("val", NUM_VAL)):
        document = json.loads((tmp_path / "w" / "data" / f"{split}.json").read_text())
        assert len(document["images"]) == count and document["annotations"]
    figures = json.loads((tmp_path / "w" / "evaluation.json").read_text())
    assert set(figures) == {"mask", "box", "per_class"}
    pictures = sorted((tmp_path / "w" / "overlays").iterdir())
    assert [path.name for path in pictures] == ["000001.png", "000002.png"]
    assert all(cv2.imread(str(path)) is not None for path in pictures)
    out = outcome.out.splitlines()
    assert out[1].split()[:2] == ["mask", f"{figures['mask']['AP']:.3f}"]
    assert out[-2].startswith("thresholding and connected components") and "mask AP 0." in out[-2]
    assert str(tmp_path / "w" / "overlays") in out[-1]
    config = from_json((tmp_path / "w" / "config.json").read_text())
    assert config.seed == 5 and config.data.root == str(tmp_path / "w" / "data")

    # The same again is done in no time, and gives the same.
    again = demo("--workdir", tmp_path / "w", "--seed", "5")
    assert (again.code, again.out) == (0, outcome.out)
    assert "the run is complete: its checkpoint is at" in caplog.text
    assert json.loads((tmp_path / "w" / "evaluation.json").read_text()) == figures

    # Other data in the same place would be a muddle.
    refusal(demo("--workdir", tmp_path / "w", "--seed", "6"), "other settings (seed)", "delete it")


@pytest.mark.parametrize(
    "flags, parts",
    [
        (["--num_train", "0"], ["num_train is 0", "at least 1"]),
        (["--num_val", "many"], ["--num_val", "'many'"]),
        (["--config.train.batch_size=3"], ["train.batch_size 3", "devices"]),
    ],
)
def test_bad_flags(demo, tmp_path, flags, parts):
    refusal(demo("--workdir", tmp_path / "w", *flags), *parts)


def test_a_workdir_below_a_file(demo, tmp_path):
    (tmp_path / "file").write_text("")
    refusal(demo("--workdir", tmp_path / "file" / "w"), "--workdir", "give the path of a folder")
