"""`solojax free-mask`: what it writes and says, and what it says to bad input."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import cv2
import pytest
from helpers.joined_threads import pretend_two
from helpers.photos import color_backbone, write_photos
from helpers.processes import Processes
from helpers.tiny_run import CONFIG, call, refusal
from pycocotools import mask as coco_mask

import solojax.features.frozen_backbone
from solojax.cli.free_mask import HELP
from solojax.cli.main import main
from solojax.config import load_config
from solojax.free_solo.stages import Stages, free_mask_run, recipe


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = write_photos(tmp_path_factory.mktemp("photos"))
    (root / "c" / "text.jpg").write_text("no image")
    return root


@pytest.fixture
def colors(monkeypatch):
    """Any checkpoint is the backbone of colours."""
    monkeypatch.setattr(
        solojax.features.frozen_backbone, "load_backbone", lambda *_: color_backbone()
    )


def find(photos, output, *words, checkpoint="runs/any"):
    flags = ["--checkpoint", checkpoint, "--images", photos, "--output", output]
    return call("free-mask", *flags, "--short_side", 192, "--batch_size", 1, *words)


def test_a_folder_in_and_masks_out(colors, photos, tmp_path):
    output = tmp_path / "new" / "masks.json"
    outcome = find(photos, output, "--min_maskness", "0.5")
    assert outcome.code == 0, outcome
    document = json.loads(output.read_text())
    masks, rate, unread = outcome.out.splitlines()
    assert masks == f"{len(document['annotations'])} masks in 7 images: {output}"
    assert rate.startswith("7 images in ") and rate.endswith(" images/s")
    assert unread == "1 images could not be read: c/text.jpg"
    names = {image["file_name"] for image in document["images"]}
    assert {"a/one.png", "b/one.png"} < names  # two files of one name
    assert all(len(a["emb"]) == 128 for a in document["annotations"])

    again = find(photos, output, "--min_maskness", "0.5")
    assert again.code == 0 and "is there already" in again.out
    # Other filters make another file; what is there is not overwritten.
    before = output.read_bytes()
    switched_off = ("--min_maskness", "off", "--min_center", "off", "--max_width", "off")
    refusal(find(photos, output, *switched_off), str(output), "stale or foreign labels")
    assert output.read_bytes() == before
    everything = tmp_path / "all.json"
    assert find(photos, everything, *switched_off).code == 0
    kept = json.loads(everything.read_text())
    assert len(kept["annotations"]) > len(document["annotations"])
    assert kept["info"]["settings"]["max_width"] is None


def test_masks_are_taken_apart_on_demand(colors, photos, tmp_path):
    output, area = tmp_path / "masks.json", 400
    words = ("--components", "--min_piece_area", area, "--min_maskness", "off")
    assert find(photos, output, *words).code == 0
    document = json.loads(output.read_text())
    settings = document["info"]["settings"]
    assert settings["components"] is True and settings["min_piece_area"] == area
    assert document["annotations"]
    for annotation in document["annotations"]:
        mask = coco_mask.decode(annotation["segmentation"])
        assert annotation["area"] >= area and cv2.connectedComponents(mask)[0] == 2
    # What is there is of other settings than this asks for.
    refusal(find(photos, output, "--min_maskness", "off"), "other components, min_piece_area")


def test_masks_are_scored_against_labels_by_file_name(colors, photos, tmp_path):
    output, truth = tmp_path / "masks.json", tmp_path / "truth.json"
    assert find(photos, output).code == 0
    document = json.loads(output.read_text())
    objects = [
        {key: a[key] for key in ("id", "image_id", "segmentation", "area", "bbox", "iscrowd")}
        for a in document["annotations"]
    ]
    for entry in (*objects, *document["images"]):  # other ids than the masks have
        key = "image_id" if "image_id" in entry else "id"
        entry[key] = 1000 - entry[key]
    document["annotations"] = [entry | {"category_id": 9} for entry in objects]
    document["categories"] = [{"id": 9, "name": "other"}]
    truth.write_text(json.dumps(document))
    outcome = call("evaluate", "--class-agnostic", "--predictions", output, "--annotations", truth)
    assert outcome.code == 0, outcome
    header, mask, box = outcome.out.splitlines()
    assert dict(zip(header.split(), box.split()[1:], strict=True))["CorLoc"] == "1.000"
    assert dict(zip(header.split(), mask.split()[1:], strict=False))["AR100"] == "1.000"


def test_an_untrained_network_of_a_config(photos, tmp_path):
    one = tmp_path / "photos"
    one.mkdir()
    (one / "one.png").write_bytes((photos / "a" / "one.png").read_bytes())
    words = ("--config", CONFIG, "--config.seed=3", "--min_maskness", "off")
    outcome = find(one, tmp_path / "masks.json", *words, checkpoint="random")
    assert outcome.code == 0, outcome
    document = json.loads((tmp_path / "masks.json").read_text())
    assert document["info"]["checkpoint"] == "random weights, seed 3"
    assert document["annotations"]


@pytest.fixture
def settings(colors, photos, tmp_path, monkeypatch):
    """What a command, a line of words, would search with."""
    searches = []
    monkeypatch.setattr(
        "solojax.free_solo.free_masks.find_masks", lambda *args: searches.append(args[3])
    )

    def of(line):
        (verb, *words) = shlex.split(line)[1:]
        outcome = call(verb, *words, "--images", photos, "--output", tmp_path / "masks.json")
        assert outcome.code == 0, outcome
        return searches.pop().described()

    return of


@pytest.mark.parametrize(
    ("variants", "overrides"),
    [
        ("r50", []),
        ("tiny", ["model.embedding=64"]),
        ("tiny,many", []),
        ("tiny,many", ["free_mask.components=false", "free_mask.max_width=none"]),
    ],
)
def test_the_command_of_a_chains_recipe_is_the_chains_search(settings, photos, variants, overrides):
    spec = f"configs/freesolo.py:{variants}"
    overrides = [f"--config.{override}" for override in overrides]
    config = load_config(spec, overrides)
    text = recipe(config, photos, Stages(Path("w"), 1), spec=spec, overrides=overrides,
                  backbone="runs/any", pretraining="")  # fmt: skip
    (line,) = (line for line in text.splitlines() if "solojax free-mask" in line)
    assert settings(line.partition(". ")[2]) == free_mask_run(config).described()


def test_the_example_for_many_small_objects_is_the_configs(settings):
    line = next(line for line in HELP.replace("\\\n", "").splitlines() if "--components" in line)
    wanted = free_mask_run(load_config("configs/freesolo.py:tiny,many"))
    assert settings(line) == wanted.described()


@pytest.mark.slow
def test_two_processes_write_the_same_file(colors, photos, tmp_path):
    words = ["--checkpoint", "runs/any", "--images", photos, "--short_side", 192]
    words += ["--min_maskness", 0.5, "--output"]
    # Not by `call`, which compiles with fewer optimisations: other last digits.
    alone = ["free-mask", *words, tmp_path / "one.json", "--batch_size", 1]
    assert main([str(word) for word in alone]) == 0
    words.append(tmp_path / "two.json")
    with Processes("free_mask_process", words, count=2, folder=tmp_path / "logs") as processes:
        processes.wait()
        assert [processes[index].code for index in range(2)] == [0, 0], processes[0].text
    assert (tmp_path / "two.json").read_bytes() == (tmp_path / "one.json").read_bytes()


@pytest.mark.parametrize(
    ("own", "others", "parts"),
    [
        ('"jax": "', '"jax": "9.', ["process 1 has jax 9."]),
        ('"flag short_side": "192', '"flag short_side": "96', ["process 1 has flag short_side 96"]),
        ("colours 0", "colours 1", ["process 1 has checkpoint colours 1", "by --step"]),
        ('"weights": "', '"weights": "x', ["process 1 has weights x"]),
        ('"number of input images": "8', '"number of input images": "7', ["input images 7"]),
        ('"input data": "', '"input data": "x', ["process 1 has input data x"]),
    ],
)
def test_processes_that_differ_find_nothing(
    colors, photos, tmp_path, monkeypatch, own, others, parts
):
    pretend_two(monkeypatch, own, others)
    monkeypatch.setattr("solojax.free_solo.free_masks.find_masks", None)
    refusal(find(photos, tmp_path / "masks.json"), *parts)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--images", "nowhere"), ["nowhere", "no such folder"]),
        (("--checkpoint", "nowhere"), ["nowhere"]),
        (("--config", CONFIG), ["--config", "random"]),
        (("--checkpoint", "random", "--step", "3"), ["--step"]),
        (("--max_width", "wide"), ["--max_width"]),
        (("--scales", "1,2"), ["scales"]),
        (("--min_piece_area", "9"), ["--components"]),
        (("--components", "--min_piece_area", "-1"), ["--min_piece_area"]),
        (("--scales", "a"), ["--scales"]),
        (("--short_side", "0"), ["--short_side"]),
        (("--long_side", "100"), ["long side 100"]),
        (("--max_mask", "3"), ["did you mean '--max_masks'"]),
    ],
)
def test_bad_input(photos, tmp_path, words, parts):
    refusal(find(photos, tmp_path / "masks.json", *words), *parts)


def test_an_early_map_with_all_queries_is_refused(colors, photos, tmp_path):
    words = ("--stage", 3, "--short_side", 1600, "--long_side", 2667)
    parts = ["C3 of 1600x2144", "70350 queries", "80.1 GB", "--scales 0.25", "--stage"]
    refusal(find(photos, tmp_path / "masks.json", *words), *parts)
    assert not list(tmp_path.iterdir())


def test_a_folder_in_the_way_of_the_output(photos, tmp_path):
    refusal(find(photos, tmp_path), "--output", "this is a folder")
