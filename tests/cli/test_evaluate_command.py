"""`solojax evaluate` of a checkpoint and of a results file, and what it says to bad input."""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import shutil

import numpy as np
import pytest
from helpers import tiny_run
from helpers.joined_threads import pretend_two
from helpers.processes import Processes
from helpers.tiny_config import TOTAL_STEPS
from helpers.tiny_run import call, edit_json, refusal, use_nano_network
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from solojax.data.coco import load_coco
from solojax.evaluators.coco import CocoEvaluator
from solojax.evaluators.error_analysis import replace_masks_with_gt
from solojax.inference import segmenter
from solojax.interop.published import unnamed_classes
from solojax.train.metric_writer import read_metrics

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return tiny_run.finished_run(tmp_path_factory)


@pytest.fixture(scope="module")
def evaluated(finished, tmp_path_factory):
    """The folder with figures.json and results.json of the finished run."""
    folder = tmp_path_factory.mktemp("evaluated")
    words = ["--output", folder / "figures.json", "--save_predictions", folder / "results.json"]
    outcome = call("evaluate", "--checkpoint", finished.workdir, *words)
    assert outcome.code == 0, outcome
    (folder / "stdout").write_text(outcome.out)
    return folder


@pytest.fixture
def nano(tmp_path_factory, monkeypatch):
    """A finished run of the nano network."""
    run = tiny_run.finished_nano_run(tmp_path_factory)
    use_nano_network(monkeypatch)
    return run


def read(path):
    return json.loads(path.read_text())


# Figures.


def test_the_figures_are_those_of_the_training_run(finished, evaluated):
    figures = read(evaluated / "figures.json")
    assert set(figures) == {"mask", "box", "per_class"}
    assert set(figures["mask"]) == set(figures["box"]) == set(FIGURES)
    names = {category["name"] for category in tiny_run.CATEGORIES}
    assert set(figures["per_class"]) == names
    logged = read_metrics(finished.workdir)[1][-1]
    for kind in ("mask", "box"):
        for name in FIGURES:
            assert figures[kind][name] == logged[f"{kind}/{name}"]
    assert figures["mask"]["AP50"] > 0.05


def test_saved_predictions_score_the_same(finished, evaluated, tmp_path):
    output = tmp_path / "figures.json"
    words = ["--predictions", evaluated / "results.json", "--output", output]
    words += ["--annotations", finished.data / "val.json"]
    outcome = call("evaluate", *words)
    assert (outcome.code, outcome.err) == (0, "")
    assert output.read_text() == (evaluated / "figures.json").read_text()
    assert call("evaluate", *words, "--backend", "reference").code == 0
    first, second = read(output), read(evaluated / "figures.json")
    for kind in ("mask", "box"):
        assert first[kind] == pytest.approx(second[kind], abs=1e-12)


def test_the_figures_are_those_of_pycocotools(finished, evaluated):
    truth = COCO(str(finished.data / "val.json"))
    evaluation = COCOeval(truth, truth.loadRes(str(evaluated / "results.json")), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    figures = read(evaluated / "figures.json")["mask"]
    expected = evaluation.stats[[0, 1, 2, 6, 7, 8]]
    np.testing.assert_allclose(
        [figures[name] for name in ("AP", "AP50", "AP75", "AR1", "AR10", "AR100")], expected
    )


def test_results_are_at_the_size_and_with_the_ids_of_the_data_set(finished, evaluated):
    images = {image["id"]: image for image in read(finished.data / "val.json")["images"]}
    results = read(evaluated / "results.json")
    assert {image["height"] for image in images.values()} == {64, 96}
    assert {result["image_id"] for result in results} == set(images)
    for result in results:
        image = images[result["image_id"]]
        assert result["segmentation"]["size"] == [image["height"], image["width"]]
        assert result["category_id"] in {category["id"] for category in tiny_run.CATEGORIES}


def test_the_table_is_for_a_person(finished, evaluated):
    out = (evaluated / "stdout").read_text()
    first, header, mask, box, *_ = out.splitlines()
    assert first == (
        f"step {TOTAL_STEPS} of {finished.workdir} on 3 images of {finished.data / 'val.json'}"
    )
    assert header.split() == list(FIGURES)
    figures = read(evaluated / "figures.json")
    for line, kind in ((mask, "mask"), (box, "box")):
        shown = [f"{x:.3f}" if x >= 0 else "-" for x in figures[kind].values()]
        assert line.split() == [kind, *shown]
    assert "-" in mask.split()  # no object is large
    disk = next(line for line in out.splitlines() if line.startswith("disk"))
    assert disk.split()[1] == f"{figures['per_class']['disk']['mask/AP']:.3f}"


def test_the_batch_size_changes_nothing(nano, tmp_path):
    """Four images on four devices, and one on one: the same work per device."""
    by_image = {}
    for batch_size in (4, 1):
        saved = tmp_path / f"{batch_size}.json"
        words = [f"--config.evaluation.batch_size={batch_size}", "--save_predictions", saved]
        assert call("evaluate", "--checkpoint", nano.workdir, *words).code == 0
        results = by_image[batch_size] = {}
        for result in read(saved):
            results.setdefault(result["image_id"], []).append(result)
    assert by_image[4] == by_image[1] and len(by_image[1]) == 3


def test_other_annotations_other_settings_and_no_classes(nano, tmp_path):
    evaluate = functools.partial(call, "evaluate", "--checkpoint", nano.workdir)
    output = tmp_path / "figures.json"
    others = ["--annotations", nano.data / "train.json", "--images", nano.data / "images"]
    outcome = evaluate(*others, "--output", output, "--class_agnostic", "--step", "best")
    assert outcome.code == 0 and "on 6 images of" in outcome.out
    assert read(output)["per_class"] == {} and "disk" not in outcome.out
    outcome = evaluate("--config.evaluation.max_images=1", "--save_predictions", output)
    assert outcome.code == 0 and "on 1 images of" in outcome.out
    first = read(nano.data / "val.json")["images"][0]
    assert {result["image_id"] for result in read(output)} == {first["id"]}


def test_without_classes_the_data_set_may_have_fewer_than_the_model(nano, tmp_path):
    document = read(nano.data / "val.json")
    kept = document["categories"][0]["id"]
    document["categories"] = document["categories"][:1]
    for annotation in document["annotations"]:
        annotation["category_id"] = kept
    (tmp_path / "one.json").write_text(json.dumps(document))
    others = ["--annotations", tmp_path / "one.json", "--images", nano.data / "images"]
    words = ["--checkpoint", nano.workdir, *others, "--save_predictions", tmp_path / "r.json"]
    outcome = call("evaluate", *words, "--class_agnostic")
    assert outcome.code == 0, outcome
    assert {result["category_id"] for result in read(tmp_path / "r.json")} == {kept}


def test_without_classes_saved_predictions_keep_the_models(nano, tmp_path):
    """The figures are those of the file, and classes are still there to be scored by."""
    saved, output, again = (tmp_path / f"{name}.json" for name in ("saved", "one", "two"))
    words = ["--checkpoint", nano.workdir, "--save_predictions", saved, "--output", output]
    assert call("evaluate", *words, "--class_agnostic").code == 0
    ids = {result["category_id"] for result in read(saved)}
    assert 1 < len(ids) and ids <= {category["id"] for category in tiny_run.CATEGORIES}
    words = ["--predictions", saved, "--annotations", nano.data / "val.json", "--output", again]
    assert call("evaluate", *words, "--class_agnostic").code == 0
    assert read(again) == read(output)
    assert call("evaluate", *words).code == 0
    assert set(read(again)["per_class"]) == {each["name"] for each in tiny_run.CATEGORIES}


@pytest.mark.parametrize("nothing", [None, []], ids=["absent", "empty"])
def test_annotations_of_boxes_alone_score_boxes(nano, tmp_path, caplog, nothing):
    """As VOC's: a mask file and a checkpoint have the boxes' figures that they had with masks."""
    saved, truth, output = (tmp_path / f"{name}.json" for name in ("saved", "truth", "output"))
    agnostic = ["--class_agnostic", "--output", output]
    model = ["--checkpoint", nano.workdir, *agnostic]
    assert call("evaluate", *model, "--save_predictions", saved).code == 0
    with_masks = read(output)["box"]
    assert with_masks["AR100"] > 0 and "CorLoc" in with_masks

    document = read(nano.data / "val.json")
    dataset = load_coco(nano.data / "val.json", nano.data / "images")
    boxes = {a.id: list(a.bbox_xywh) for image in dataset.images for a in image.annotations}
    for entry in document["annotations"]:
        entry["bbox"] = boxes[entry["id"]]
        del entry["segmentation"]
        if nothing is not None:
            entry["segmentation"] = nothing
    truth.write_text(json.dumps(document))
    others = ["--annotations", truth, "--images", nano.data / "images"]
    for words in (["--predictions", saved, "--annotations", truth, *agnostic], [*model, *others]):
        caplog.clear()
        outcome = call("evaluate", *words)
        assert outcome.code == 0, outcome
        (told,) = (message for message in caplog.messages if "boxes alone" in message)
        assert str(truth) in told and "mask" not in outcome.out
        figures = read(output)
        assert "mask" not in figures and figures["box"] == pytest.approx(with_masks)
    # By class a model needs a whole data set.
    refusal(call("evaluate", "--checkpoint", nano.workdir, *others), "segmentation")
    # One object with a mask, and the others are mistakes.
    edit_json(truth, lambda d: d["annotations"][0].update(segmentation=[[1, 1, 9, 1, 9, 9]]))
    mixed = call("evaluate", "--predictions", saved, "--annotations", truth, *agnostic)
    refusal(mixed, str(truth), "segmentation")


def test_classes_without_names_are_those_of_the_data_set(nano, tmp_path, monkeypatch):
    """Also where they are ignored, once the results are kept: they are not all one class."""
    load = segmenter.load

    def load_without_names(*args, **options):
        model = load(*args, **options)
        names = unnamed_classes(len(model.categories))
        return dataclasses.replace(model, categories=tuple(enumerate(names, start=1)))

    monkeypatch.setattr(segmenter, "load", load_without_names)
    saved, words = tmp_path / "saved.json", ["--checkpoint", nano.workdir, "--class_agnostic"]
    outcome = call("evaluate", *words, "--save_predictions", saved)
    assert outcome.code == 0 and "in the data set's order" in outcome.out
    assert len({result["category_id"] for result in read(saved)}) > 1


def test_results_without_masks_are_scored_by_their_boxes(finished, evaluated, tmp_path):
    results = read(evaluated / "results.json")
    for result in results:
        del result["segmentation"]
    (tmp_path / "boxes.json").write_text(json.dumps(results))
    words = ["--predictions", tmp_path / "boxes.json", "--output", tmp_path / "figures.json"]
    outcome = call("evaluate", *words, "--annotations", finished.data / "val.json")
    assert outcome.code == 0 and "mask" not in outcome.out
    figures = read(tmp_path / "figures.json")
    assert figures["box"]["AP"] == read(evaluated / "figures.json")["box"]["AP"]


def test_a_broken_image_among_others_is_counted(nano, tmp_path, caplog):
    data = shutil.copytree(nano.data, tmp_path / "data")
    (data / "images" / "image_6.png").write_bytes(b"")
    words = ["--checkpoint", nano.workdir, f"--config.data.root={data}"]
    outcome = call("evaluate", *words, "--save_predictions", tmp_path / "results.json")
    assert outcome.code == 0
    assert "image_6.png" in caplog.text and "1 of 3 images could not be read" in caplog.text
    assert {result["image_id"] for result in read(tmp_path / "results.json")} == {93, 92}
    for number in (7, 8):
        (data / "images" / f"image_{number}.png").unlink()
    refusal(call("evaluate", *words), "val.json", "none of its 3 images", "image_6.png")


# Bad flags and files.


@pytest.mark.parametrize(
    "words, parts",
    [
        ([], ["--checkpoint", "--predictions"]),
        (["--predictions", "r.json"], ["--annotations GT.json"]),
        (["--predictions", "r.json", "--annotations", "a.json", "--checkpoint", "c"],
         ["--checkpoint has no part"]),
        (["--predictions", "r.json", "--annotations", "a.json", "--images", "i", "--step", "3"],
         ["--step, --images has no part"]),
        (["--predictions", "r.json", "--annotations", "a.json", "--config.seed=1"],
         ["--config.seed=1 has no part"]),
        (["--checkpoint", "c", "--annotations", "a.json"], ["--images belong together"]),
        (["--checkpoint", "nowhere"], ["nowhere does not exist", "give a workdir"]),
        (["--predictions", "nowhere.json", "--annotations", "a.json"], ["nowhere.json", "No such"]),
        (["--checkpoint", "c", "--backend", "slow"], ["--backend", "'slow'"]),
    ],
)  # fmt: skip
def test_bad_flags(words, parts):
    outcome = call("evaluate", *words)
    refusal(outcome, *parts)
    assert outcome.err.count("\n") == 1 and outcome.out == ""


def test_what_is_no_checkpoint(tmp_path):
    (tmp_path / "file.bin").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    refusal(
        call("evaluate", "--checkpoint", tmp_path / "file.bin"), "file.bin", "no format of weights"
    )
    refusal(call("evaluate", "--checkpoint", tmp_path / "folder"), "no checkpoint in", "folder")


def test_a_step_that_is_not_there(finished):
    outcome = call("evaluate", "--checkpoint", finished.workdir, "--step", "7")
    refusal(outcome, "'7'", f"[{TOTAL_STEPS}]")


def test_a_checkpoint_of_another_architecture_names_its_leaves(finished):
    words = ["--checkpoint", finished.workdir, "--config.model.head.num_convs=2"]
    outcome = call("evaluate", *words)
    line = refusal(outcome, "another architecture", "leaves differ", "params/head/category_tower_1")
    assert str(finished.workdir / "checkpoints" / str(TOTAL_STEPS)) in line


def test_an_unknown_key_over_a_checkpoint(finished):
    outcome = call("evaluate", "--checkpoint", finished.workdir, "--config.evaluation.sigmas=1")
    refusal(outcome, "did you mean 'evaluation.sigma'")


def test_a_damaged_checkpoint(nano, tmp_path):
    workdir = shutil.copytree(nano.workdir, tmp_path / "run")
    for path in (workdir / "checkpoints").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[:10])
    refusal(call("evaluate", "--checkpoint", workdir), f"checkpoints/{TOTAL_STEPS} is broken")


BAD_RESULTS = {
    "another image": ({"image_id": 12345}, "image_id 12345"),
    "another class": ({"category_id": 1}, "category_id 1"),
    "a score that is NaN": ({"score": float("nan")}, "score nan"),
    "a mask of another size": ({"segmentation": {"size": [9, 9], "counts": "a"}}, "mask size"),
}


@pytest.mark.parametrize("case", BAD_RESULTS)
def test_bad_results_name_file_and_entry(finished, evaluated, tmp_path, case):
    changes, problem = BAD_RESULTS[case]
    path = tmp_path / "results.json"
    shutil.copy(evaluated / "results.json", path)
    edit_json(path, lambda results: results[2].update(changes))
    outcome = call("evaluate", "--predictions", path, "--annotations", finished.data / "val.json")
    refusal(outcome, str(path), "entry 2", problem)


@pytest.mark.parametrize("name, problem", [("folder", "this is a folder"), ("file/x", "a file is")])
@pytest.mark.parametrize("flag", ["--output", "--save_predictions"])
def test_places_that_cannot_be_written_are_found_before_the_work(
    finished, tmp_path, monkeypatch, flag, name, problem
):
    monkeypatch.setattr("solojax.inference.segmenter.load", None)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    outcome = call("evaluate", "--checkpoint", finished.workdir, flag, tmp_path / name)
    refusal(outcome, flag, problem)


def test_a_full_disk_leaves_the_figures_on_the_screen(finished, evaluated, tmp_path, monkeypatch):
    output = tmp_path / "figures.json"
    output.write_text("before")

    def full(self, *args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr("pathlib.Path.write_text", full)
    words = ["--predictions", evaluated / "results.json", "--output", output]
    outcome = call("evaluate", *words, "--annotations", finished.data / "val.json")
    refusal(outcome, "figures.json", "No space left", "free some space")
    assert outcome.out.splitlines()[1].startswith("mask ")
    monkeypatch.undo()
    assert output.read_text() == "before" and list(tmp_path.iterdir()) == [output]


def test_perfect_masks_are_scored_as_such(finished, evaluated, tmp_path):
    """Of a checkpoint and of its saved results alike; the figures are those of replaced results."""
    words = ["--replace-masks-with-gt", "--output"]
    call("evaluate", "--checkpoint", finished.workdir, *words, tmp_path / "model.json")
    annotations = finished.data / "val.json"
    saved = ["--predictions", evaluated / "results.json", "--annotations", annotations]
    call("evaluate", *saved, *words, tmp_path / "file.json")
    replaced = replace_masks_with_gt(read(evaluated / "results.json"), annotations)
    expected = CocoEvaluator(annotations).run(replaced)
    assert read(tmp_path / "model.json") == read(tmp_path / "file.json") == expected
    assert expected["mask"]["AP"] > read(evaluated / "figures.json")["mask"]["AP"]


# Several processes.


def test_processes_that_agree_go_on(nano, monkeypatch):
    pretend_two(monkeypatch)
    outcome = call("evaluate", "--checkpoint", nano.workdir)
    assert outcome.code == 0 and "mask " in outcome.out


@pytest.mark.parametrize(
    ("own", "others", "parts"),
    [
        ('"jax": "', '"jax": "9.', ["process 1 has jax 9.", "install the same everywhere"]),
        ('flag checkpoint": "\'', 'flag checkpoint": "\'x', ["process 1 has flag checkpoint 'x"]),
        (
            '"flag step": "None',
            '"flag step": "3',
            ["process 1 has flag step 3, process 0 has None"],
        ),
        (
            f"at step {TOTAL_STEPS}",
            "at step 1",
            ["process 1 has checkpoint ", "at step 1, process 0 has ", "give every host the same"],
        ),
        ('"weights": "', '"weights": "x', ["process 1 has weights x", "by --step while"]),
        ('config data.root": "', 'config data.root": "x', ["process 1 has config data.root x"]),
        ('"number of validation images": "3', '"number of validation images": "2', ["images 2"]),
        ('"validation data": "', '"validation data": "x', ["process 1 has validation data x"]),
    ],
)
def test_processes_that_differ_end_before_anything_is_predicted(
    nano, monkeypatch, own, others, parts
):
    pretend_two(monkeypatch, own, others)
    monkeypatch.setattr("solojax.inference.evaluation.Evaluation.predict", None)
    refusal(call("evaluate", "--checkpoint", nano.workdir), *parts)


@pytest.mark.slow
@pytest.mark.parametrize("differs", ["order", "file", None])
def test_two_processes_with_data_of_their_own(nano, tmp_path, differs):
    other = shutil.copytree(nano.data, tmp_path / "other")
    if differs == "order":
        edit_json(other / "val.json", lambda document: document["images"].reverse())
        problem = "process 1 has validation data "
    elif differs == "file":
        (other / "images" / "image_7.png").unlink()
        problem = "1 of 3 files of the validation data are missing in process 1 or unlike"
    words = ["evaluate", "--checkpoint", nano.workdir, "--output", tmp_path / "figures.json"]
    environment = {1: {"DATA_ROOT_OF_TEST": str(other)}}
    folder = tmp_path / "logs"
    with Processes("nano_process", words, count=2, folder=folder, environment=environment) as two:
        two.wait()
        code = 0 if differs is None else 2
        assert [two[0].code, two[1].code] == [code, code], two[0].text + two[1].text
        if differs is not None:
            assert all(problem in two[index].last_line for index in (0, 1)), two[0].text
    assert (tmp_path / "figures.json").exists() == (differs is None)
