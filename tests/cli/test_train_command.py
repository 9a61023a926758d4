"""`solojax train` from the outside: what it leaves, how it goes on, what it says to bad input."""

from __future__ import annotations

import errno
import functools
import json
import logging

import jax
import numpy as np
import pytest
from helpers import tiny_run
from helpers.tiny_config import TOTAL_STEPS, get_config
from helpers.tiny_run import edit_json, refusal, train, use_nano_network, write_data

from solojax.build import build_train_plan, load_train_set
from solojax.config import from_json, load_config
from solojax.train.checkpoints import load_variables
from solojax.train.metric_writer import MetricWriter, read_metrics

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return tiny_run.finished_run(tmp_path_factory)


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data")


@pytest.fixture
def nano(monkeypatch):
    """`train` with a network that compiles at once."""
    use_nano_network(monkeypatch)
    return functools.partial(train, config=tiny_run.NANO_CONFIG)


def params_of(workdir, step=None):
    return load_variables(workdir, step=step).params


def assert_same_tree(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def steps_in(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


# What a run leaves.


def test_a_run_ends_well_and_says_what_it_does(finished):
    code, out, err = finished.outcome.code, finished.outcome.out, finished.outcome.err
    assert (code, out) == (0, "")
    lines = [line for line in err.splitlines() if line.startswith(f"step {TOTAL_STEPS}")]
    assert lines[0].startswith(f"step {TOTAL_STEPS}/{TOTAL_STEPS}  loss ")
    assert "category" in lines[0] and "images/s" in lines[0] and lines[0].endswith("0:00:00 left")
    assert lines[1].startswith(f"step {TOTAL_STEPS}: mask AP 0.")


def test_metrics_have_a_header_every_step_and_the_evaluation(finished):
    header, lines = read_metrics(finished.workdir)
    assert header["device_count"] == jax.device_count() and header["process_count"] == 1
    assert header["global_batch"] == 4 and header["versions"]["jax"] == jax.__version__
    *steps, evaluation = lines
    assert [line["step"] for line in steps] == list(range(1, TOTAL_STEPS + 1))
    for line in steps:
        assert line["loss"] == pytest.approx(line["loss/mask"] + line["loss/category"], rel=1e-5)
        assert line["learning_rate"] == pytest.approx(0.01) and line["grad_norm"] > 0
        assert line["targets/overflow"] == line["data/broken_images"] == 0
        assert line["data/dropped_instances"] == 0 and line["seconds_per_step"] > 0
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert evaluation.pop("step") == TOTAL_STEPS
    assert set(evaluation) == {f"{kind}/{name}" for kind in ("mask", "box") for name in FIGURES}


def test_a_run_leaves_checkpoints_events_and_its_config(finished):
    assert steps_in(finished.workdir / "checkpoints") == {str(TOTAL_STEPS)}
    assert list((finished.workdir / "tensorboard").iterdir())
    config = from_json((finished.workdir / "config.json").read_text())
    expected = get_config()
    expected.data.root = str(finished.data)
    assert config.to_dict() == expected.to_dict()
    loaded = load_variables(finished.workdir)
    assert loaded.step == TOTAL_STEPS and from_json(loaded.metadata["config"]) == config
    by_id = sorted(tiny_run.CATEGORIES, key=lambda category: category["id"])
    assert loaded.metadata["categories"] == by_id


def test_a_finished_run_says_so_and_changes_nothing(finished, caplog):
    caplog.set_level(logging.INFO)
    before = (finished.workdir / "metrics.jsonl").read_bytes()
    outcome = train(finished.workdir, finished.data)
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert f"the run is complete: its checkpoint is at step {TOTAL_STEPS}" in caplog.text
    assert (finished.workdir / "metrics.jsonl").read_bytes() == before


# Going on.


def test_a_stopped_run_goes_on_as_if_nothing_had_happened(data, tmp_path, nano, caplog):
    caplog.set_level(logging.INFO)
    kept = dict(train__checkpoint_every=2, train__eval_every=0, train__keep_checkpoints=9)
    assert nano(tmp_path / "whole", data, train__total_steps=4, **kept).code == 0
    assert nano(tmp_path / "parts", data, train__total_steps=2, **kept).code == 0
    assert "going on" not in caplog.text
    assert nano(tmp_path / "parts", data, train__total_steps=4, **kept).code == 0
    assert "going on from step 2 of 4" in caplog.text
    assert "train.total_steps 4 (was 2)" in caplog.text
    assert_same_tree(params_of(tmp_path / "whole"), params_of(tmp_path / "parts"))
    assert_same_tree(params_of(tmp_path / "whole", 2), params_of(tmp_path / "parts", 2))
    whole, parts = (read_metrics(tmp_path / name)[1] for name in ("whole", "parts"))
    for one, other in zip(whole, parts, strict=True):
        del one["seconds_per_step"], other["seconds_per_step"]
        assert one == other


def test_every_evaluated_step_is_saved_and_the_best_of_them_stays(data, tmp_path, nano):
    run = dict(train__total_steps=5, train__eval_every=2, train__checkpoint_every=100)
    assert nano(tmp_path / "run", data, train__keep_checkpoints=1, **run).code == 0
    _, lines = read_metrics(tmp_path / "run")
    scores = {line["step"]: line["mask/AP"] for line in lines if "mask/AP" in line}
    assert set(scores) == {2, 4, 5}
    best = max(scores, key=lambda step: (scores[step], step))
    assert steps_in(tmp_path / "run" / "checkpoints") == {"5", str(best)}
    assert load_variables(tmp_path / "run", step="best").step == best


def test_another_model_in_the_workdir_is_refused_and_nothing_is_touched(finished):
    config = (finished.workdir / "config.json").read_text()
    outcome = train(finished.workdir, finished.data, model__neck__channels=64)
    refusal(outcome, f"checkpoints/{TOTAL_STEPS}", "params/head", "another workdir")
    assert (finished.workdir / "config.json").read_text() == config
    assert steps_in(finished.workdir / "checkpoints") == {str(TOTAL_STEPS)}


def test_other_classes_in_the_workdir_are_refused(data, finished):
    def rename(document):
        document["categories"][1]["name"] = "stick"

    for split in ("train", "val"):
        edit_json(data / f"{split}.json", rename)
    line = refusal(train(finished.workdir, data), "train.json", "stick", "another --workdir")
    assert "'bar'" in line


# Warnings of what would be a waste of time.


def test_random_frozen_statistics_are_warned_of(data, tmp_path, nano, caplog):
    run = dict(train__total_steps=1, train__eval_every=0, train__checkpoint_every=0)
    assert nano(tmp_path / "run", data, **run).code == 0
    assert "random weights" not in caplog.text
    frozen = dict(model__backbone__norm="frozen_batch_norm", model__backbone__frozen_stages=1)
    assert nano(tmp_path / "run", data, **run, **frozen).code == 0
    warning = next(r.getMessage() for r in caplog.records if "random weights" in r.getMessage())
    assert "norm=frozen_batch_norm and model.backbone.frozen_stages=1" in warning
    assert "--config.model.backbone.norm=batch_norm" in warning


def test_backbone_files_are_refused_until_they_can_be_read(data, tmp_path):
    outcome = train(tmp_path / "run", data, model__backbone__checkpoint="r50.pth")
    refusal(outcome, "'model.backbone.checkpoint' is 'r50.pth'", "cannot be read yet")


# Bad data: one line that names the file and the entry.


def break_annotation(**changes):
    return lambda document: document["annotations"][3].update(changes)


BAD_ANNOTATIONS = {
    "an image that is not there": (break_annotation(image_id=12345), "no such image_id"),
    "a class that is not there": (break_annotation(category_id=99), "category_id 99"),
    "a mask larger than its image": (
        break_annotation(segmentation={"size": [64, 99], "counts": [64 * 99]}),
        "mask size",
    ),
    "a polygon beyond its image": (break_annotation(segmentation=[[0, 0, 200, 0, 9, 9]]), "leaves"),
    "a polygon of two points": (break_annotation(segmentation=[[1, 1, 9, 9]]), "polygon of 4"),
    "no polygon at all": (break_annotation(segmentation=[]), "segmentation is empty"),
    "a box that is NaN": (break_annotation(bbox=[1, float("nan"), 5, 5]), "NaN"),
    "an id twice": (break_annotation(id=10), "the id 10 is taken"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ANNOTATIONS)
def test_bad_annotations_name_file_and_entry(data, tmp_path, case):
    change, problem = BAD_ANNOTATIONS[case]
    edit_json(data / "train.json", change)
    outcome = train(tmp_path / "run", data)
    refusal(outcome, str(data / "train.json"), "annotation entry 3", problem, ";")
    assert outcome.err.count("\n") == 1


BAD_FILES = {
    "missing": (lambda path: path.unlink(), "No such file"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-40]), "not valid json at line 1"),
    "a list": (lambda path: path.write_text("[]"), "not a COCO file"),
    "empty": (lambda path: path.write_text(""), "not valid json"),
    "without images": (
        lambda path: path.write_text('{"images": [], "annotations": [], "categories": ['
                                     '{"id": 1, "name": "a"}]}'),
        "no images",
    ),
}  # fmt: skip


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_annotation_files(data, tmp_path, case, split):
    change, problem = BAD_FILES[case]
    change(data / f"{split}.json")
    outcome = train(tmp_path / "run", data)
    refusal(outcome, str(data / f"{split}.json"), problem)
    assert outcome.err.count("\n") == 1


def test_a_data_set_without_objects(data, tmp_path):
    edit_json(data / "train.json", lambda document: document["annotations"].clear())
    refusal(train(tmp_path / "run", data), "train.json", "none of the 6 images has an object")


def test_a_data_root_that_is_not_there(tmp_path):
    outcome = train(tmp_path / "run", tmp_path / "nowhere")
    refusal(outcome, "nowhere/train.json", "data.root", "--config.data.root=DIR")


def test_other_classes_in_the_validation_set(data, tmp_path):
    edit_json(data / "val.json", lambda document: document["categories"][0].update(name="star"))
    refusal(train(tmp_path / "run", data), "val.json", "'star'", "same categories")


def test_the_wrong_number_of_classes(data, tmp_path):
    outcome = train(tmp_path / "run", data, model__num_classes=80)
    refusal(outcome, "model.num_classes is 80", "train.json names 5")


# Broken images: work goes on with the others.


def test_broken_images_are_left_out_counted_and_named(data, tmp_path, nano, caplog):
    images = data / "images"
    (images / "image_0.png").unlink()
    (images / "image_1.png").write_bytes(b"")
    whole = (images / "image_2.png").read_bytes()
    (images / "image_2.png").write_bytes(whole[: len(whole) // 2])
    run = dict(train__total_steps=6, train__eval_every=0, train__checkpoint_every=0)
    assert nano(tmp_path / "run", data, **run).code == 0
    _, lines = read_metrics(tmp_path / "run")
    # 6 steps of 4 images are 4 epochs of 6, in each of which 3 are broken.
    assert sum(line["data/broken_images"] for line in lines) == 12
    assert all(np.isfinite(line["loss"]) for line in lines)
    for name, problem in (("0", "No such file"), ("1", "empty"), ("2", "truncated")):
        said = [r.getMessage() for r in caplog.records if f"image_{name}.png" in r.getMessage()]
        assert len(said) == 1 and problem in said[0]
    assert "data/broken_images" in caplog.text and "mend or remove" in caplog.text


@pytest.mark.parametrize("split, numbers", [("train", range(6)), ("val", range(6, 9))])
def test_no_image_can_be_read(data, tmp_path, split, numbers):
    for number in numbers:
        (data / "images" / f"image_{number}.png").write_bytes(b"")
    outcome = train(tmp_path / "run", data)
    refusal(outcome, f"{split}.json", f"none of its {len(numbers)} images", "0 bytes")


def test_an_image_unlike_its_annotation_ends_the_run_but_keeps_its_work(data, tmp_path, nano):
    run = dict(train__eval_every=0, train__checkpoint_every=100, train__total_steps=8)

    def repeat_images(document):
        first = document["annotations"][0]
        for number in range(40):
            image_id = 1000 + number
            document["images"].append(document["images"][number % 6] | {"id": image_id})
            document["annotations"].append(first | {"id": image_id, "image_id": image_id})

    edit_json(data / "train.json", repeat_images)
    config = load_config(tiny_run.NANO_CONFIG, [f"--config.data.root={data}"])
    plan = build_train_plan(config, load_train_set(config))
    late = int(plan.at(5).image_indices[0])
    good = (data / "train.json").read_text()

    def enlarge(document):
        document["images"][late].update(height=80, width=80)
        document["annotations"] = [
            annotation
            for annotation in document["annotations"]
            if annotation["image_id"] != document["images"][late]["id"]
        ]

    edit_json(data / "train.json", enlarge)
    outcome = nano(tmp_path / "run", data, **run)
    refusal(outcome, "image_", "64x64", "80x80", "correct its width and height")
    # Steps 0 to 3 ran; the batch of step 4 is handed out once that of step 5 is being copied.
    assert steps_in(tmp_path / "run" / "checkpoints") == {"4"}
    (data / "train.json").write_text(good)
    assert nano(tmp_path / "run", data, **run).code == 0
    steps = [line["step"] for line in read_metrics(tmp_path / "run")[1]]
    assert steps == list(range(1, 9))


# More than there is room for.


def test_objects_beyond_the_room_are_counted(data, tmp_path, nano, caplog):
    run = dict(train__total_steps=1, train__eval_every=0, train__checkpoint_every=0)
    assert nano(tmp_path / "few", data, data__max_instances=1, **run).code == 0
    # Two objects an image, four images.
    assert read_metrics(tmp_path / "few")[1][0]["data/dropped_instances"] == 4
    assert "data/dropped_instances" in caplog.text and "data.max_instances" in caplog.text


def test_positive_pairs_beyond_the_room_are_counted(data, tmp_path, nano, caplog):
    run = dict(train__total_steps=1, train__eval_every=0, train__checkpoint_every=0)
    assert nano(tmp_path / "all", data, **run).code == 0
    assert nano(tmp_path / "few", data, model__max_positives=2, **run).code == 0
    whole, few = (read_metrics(tmp_path / name)[1][0] for name in ("all", "few"))
    assert whole["targets/overflow"] == 0 < few["targets/overflow"]
    pairs = few["targets/positive_pairs"] + few["targets/overflow"]
    assert pairs == whole["targets/positive_pairs"]
    assert "targets/overflow" in caplog.text and "model.max_positives" in caplog.text


# Bad configs.


@pytest.mark.parametrize(
    "flag, parts",
    [
        ("--config.optimizer.learning_rat=1", ["'optimizer.learning_rate'"]),
        ("--config.train.batch_size=six", ["train.batch_size", "'six'"]),
        ("--config.train.batch_size=6", ["train.batch_size 6", "4 devices"]),
        ("--config.model.grid.num_grids=8,6", ["2 levels", "one entry per level"]),
        ("--config.model.neck.num_outputs=4", ["5 levels", "'model.neck.num_outputs' is 4"]),
        ("--config.model.neck.num_outputs=3", ["'model.neck.num_outputs' is 3"]),
        ("--config.evaluation.max_detections=99", ["max_detections 99"]),
        ("--config.train.accumulate_steps=3", ["'train.accumulate_steps' is 3"]),
    ],
)
def test_bad_config_values(data, tmp_path, flag, parts):
    words = ["train", "--config", tiny_run.CONFIG, "--workdir", tmp_path / "run", flag]
    outcome = tiny_run.call(*words, f"--config.data.root={data}")
    refusal(outcome, *parts)
    assert outcome.err.count("\n") == 1


def test_an_unknown_variant(tmp_path):
    words = ["train", "--workdir", tmp_path / "run", "--config", "configs/solov2.py:r51"]
    refusal(tiny_run.call(*words), "variant 'r51'", "'r50'")


# Storage.


def test_a_workdir_below_a_file(data, tmp_path):
    (tmp_path / "file").write_text("")
    refusal(train(tmp_path / "file" / "run", data), str(tmp_path / "file" / "run"), "a folder")


def test_a_workdir_without_permission(data, tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    refusal(train(tmp_path / "run", data), str(tmp_path / "run"), "Permission denied")


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_under_the_checkpoints_keeps_the_earlier_ones(
    data, tmp_path, nano, monkeypatch
):
    run = dict(train__eval_every=0, train__checkpoint_every=2)
    assert nano(tmp_path / "run", data, train__total_steps=2, **run).code == 0
    with monkeypatch.context() as patch:
        patch.setattr("orbax.checkpoint.AsyncCheckpointer.save", full)
        outcome = nano(tmp_path / "run", data, train__total_steps=6, **run)
    refusal(outcome, "checkpoint 4 could not be saved", "No space left", "free space")
    assert steps_in(tmp_path / "run" / "checkpoints") == {"2"}
    assert read_metrics(tmp_path / "run")[1][-1]["step"] == 4
    assert nano(tmp_path / "run", data, train__total_steps=6, **run).code == 0
    steps = [line["step"] for line in read_metrics(tmp_path / "run")[1]]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_full_disk_under_the_metrics_saves_what_was_learned(data, tmp_path, nano, monkeypatch):
    run = dict(train__eval_every=0, train__checkpoint_every=100, train__total_steps=6)
    write = MetricWriter.write

    def write_until_full(self, step, metrics):
        if step == 3:
            self._file.close()
            self._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
        write(self, step, metrics)

    with monkeypatch.context() as patch:
        patch.setattr(MetricWriter, "write", write_until_full)
        outcome = nano(tmp_path / "run", data, **run)
    refusal(outcome, str(tmp_path / "run" / "metrics.jsonl"), "No space left")
    assert steps_in(tmp_path / "run" / "checkpoints") == {"3"}
    assert nano(tmp_path / "run", data, **run).code == 0
    assert read_metrics(tmp_path / "run")[1][-1]["step"] == 6


# A loss that is no number.


def test_a_loss_that_is_not_finite_stops_and_keeps_its_batch(data, tmp_path, nano):
    run = dict(train__eval_every=0, train__checkpoint_every=1, train__total_steps=2)
    assert nano(tmp_path / "run", data, **run).code == 0
    run |= dict(train__total_steps=9, optimizer__learning_rate=1e30)
    outcome = nano(tmp_path / "run", data, **run)
    line = refusal(outcome, "the loss is not finite at step", "optimizer.learning_rate")
    step = int(line.split("at step ")[1].split()[0])
    assert 3 < step < 9
    with np.load(tmp_path / "run" / f"nonfinite_step_{step}.npz") as batch:
        assert batch["image"].shape == (4, 64, 64, 3) and batch["valid"].all()
        assert batch["instances/masks"].shape == (4, 4, 16, 2)
    saved = {int(name) for name in steps_in(tmp_path / "run" / "checkpoints")}
    assert max(saved) < step and 2 in saved
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] < step
