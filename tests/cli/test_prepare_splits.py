"""`solojax prepare image-split` and `mask-split`, and runs that train on what they wrote."""

from __future__ import annotations

import json

import pytest
from helpers.records import write_source
from helpers.tiny_run import call, refusal

from solojax.data.coco import load_coco
from solojax.train.metric_writer import read_metrics


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path / "source")


def split(source, kind, fraction, *words, name="split.json"):
    return call(
        "prepare", kind, "--annotations", source / "train.json", "--fraction", fraction,
        "--output", source / name, *words,
    )  # fmt: skip


def test_it_says_what_it_chose_and_a_run_trains_on_it(source, tmp_path, nano, caplog):
    done = split(source, "image-split", 0.5)
    assert done.code == 0, done
    part = json.loads((source / "split.json").read_text())
    said = part["info"]["split"]
    assert f"{source / 'split.json'}: 3 of 6 images, seed 0" in done.out
    assert said["sha256"] in done.out
    run = {"data__train_annotations": "split.json", "train__total_steps": 1}
    assert nano(tmp_path / "run", source, **run).code == 0
    assert any(message.startswith("3 images, ") for message in caplog.messages)


def test_masks_that_are_not_chosen_train_no_mask(source, tmp_path, nano):
    """With the masks of other objects the first step's mask loss is another, its category loss the
    same."""
    losses = {}
    for name, seed in (("one", 0), ("other", 3)):
        assert split(source, "mask-split", 0.3, "--seed", seed, name=f"{name}.json").code == 0
        marks = [
            [a.supervise_mask for a in image.annotations]
            for image in load_coco(source / f"{name}.json", source / "images").images
        ]
        run = {"data__train_annotations": f"{name}.json", "train__total_steps": 1}
        assert nano(tmp_path / name, source, **run).code == 0
        (line,) = [line for line in read_metrics(tmp_path / name)[1] if "loss" in line]
        losses[name] = marks, line["loss/mask"], line["loss/category"]
    one, other = losses.values()
    assert one[0] != other[0] and one[1] != other[1]
    assert one[2] == other[2]


def test_records_of_a_mask_split_are_refused(source, tmp_path):
    assert split(source, "mask-split", 0.3).code == 0
    words = ("--annotations", source / "split.json", "--images", source / "images")
    done = call("prepare", "coco", *words, "--output", tmp_path / "records")
    refusal(done, "split.json", "supervise_mask")


def test_bad_flags(source, tmp_path):
    refusal(split(source, "image-split", 1.5), "1.5 is not a number from 0 to 1")
    refusal(split(source, "image-split", 1), "between 0 and 1")
    refusal(split(source, "mask-split", 0.5, "--images", source), "--images has no part in")
    refusal(split(source, "mask-split", 0.5, "--verify"), "--verify has no part in prepare mask")
    refusal(split(source, "mask-split", 0.5, name="train.json"), "this is the source")
    out = ("--output", tmp_path / "x.json")
    refusal(call("prepare", "image-split", *out), "needs --annotations and --fraction")
    url = ("--annotations", source / "train.json", "--fraction", 0.5, "--output", "gs://b/x.json")
    refusal(call("prepare", "image-split", *url), "gs://b/x.json", "give a local path")
    words = ("--images", source / "images", *out, "--seed", 1)
    refusal(call("prepare", "folder", *words), "--seed has no part in prepare folder")
