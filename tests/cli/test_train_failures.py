"""`solojax train` when something is wrong: with the data, the storage or the loss."""

from __future__ import annotations

import errno
import json

import numpy as np
import pytest
from helpers import tiny_run
from helpers.tiny_run import edit_json, refusal, train

from solojax.builders.segmentation import build_train_plan, load_train_set
from solojax.config import load_config
from solojax.train.metric_writer import MetricWriter, read_metrics


def steps_in(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


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


def test_objects_and_positive_pairs_beyond_the_room_are_counted(data, tmp_path, nano, caplog):
    run = dict(train__total_steps=1, train__eval_every=0, train__checkpoint_every=0)
    assert nano(tmp_path / "all", data, **run).code == 0
    assert not any("raise it" in message for message in caplog.messages)
    room = dict(data__max_instances=1, model__max_positives=2)
    assert nano(tmp_path / "few", data, **run, **room).code == 0
    whole, few = (read_metrics(tmp_path / name)[1][0] for name in ("all", "few"))
    assert whole["targets/overflow"] == whole["data/dropped_instances"] == 0
    # Two objects an image, four images.
    assert few["data/dropped_instances"] == 4
    assert few["targets/positive_pairs"] <= 2 * 4 and few["targets/overflow"] > 0
    pairs = few["targets/positive_pairs"] + few["targets/overflow"]
    assert pairs < whole["targets/positive_pairs"]
    for metric, key in (
        ("data/dropped_instances", "data.max_instances"),
        ("targets/overflow", "model.max_positives"),
    ):
        said = [message for message in caplog.messages if message.startswith(metric)]
        assert len(said) == 1 and key in said[0] and said[0].endswith("raise it")


# Storage.


def test_a_workdir_below_a_file(data, tmp_path):
    (tmp_path / "file").write_text("")
    refusal(train(tmp_path / "file" / "run", data), str(tmp_path / "file" / "run"), "a folder")


def test_a_workdir_without_permission(data, tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    refusal(train(tmp_path / "run", data), str(tmp_path / "run"), "Permission denied")


def test_a_workdir_on_storage_that_renames_no_folders(data, tmp_path, monkeypatch):
    def refuse(self, target):
        raise OSError(errno.ENOSYS, "Function not implemented", str(self))

    monkeypatch.setattr("pathlib.Path.rename", refuse)
    refusal(train(tmp_path / "run", data), "does not rename folders", "hierarchical namespace")
    assert not list((tmp_path / "run").iterdir())


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
    line = refusal(
        outcome, "the loss or its gradient is not finite at step", "optimizer.learning_rate"
    )
    step = int(line.split("at step ")[1].split()[0])
    assert 3 < step < 9
    with np.load(tmp_path / "run" / f"nonfinite_step_{step}.npz") as batch:
        assert batch["image"].shape == (4, 64, 64, 3) and batch["valid"].all()
        assert batch["instances/masks"].shape == (4, 4, 16, 2)
    saved = {int(name) for name in steps_in(tmp_path / "run" / "checkpoints")}
    assert max(saved) < step and 2 in saved
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] < step
