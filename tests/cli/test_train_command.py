"""`solojax train` from the outside: what it leaves, how it goes on, what it warns of."""

from __future__ import annotations

import logging

import jax
import numpy as np
import pytest
from helpers import tiny_run
from helpers.tiny_config import TOTAL_STEPS, get_config
from helpers.tiny_run import edit_json, refusal, train

from solojax.config import from_json
from solojax.train.checkpoints import load_variables
from solojax.train.metric_writer import read_metrics

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return tiny_run.finished_run(tmp_path_factory)


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


def test_a_backbone_file_that_cannot_be_read(data, tmp_path):
    path = tmp_path / "r50.pth"
    path.write_bytes(b"no checkpoint")
    outcome = train(tmp_path / "run", data, model__backbone__checkpoint=str(path))
    refusal(outcome, "r50.pth")


# Bad configs.


@pytest.mark.parametrize(
    "flag, parts",
    [
        ("--config.optimizer.learning_rat=1", ["'optimizer.learning_rate'"]),
        ("--config.train.batch_size=six", ["train.batch_size", "'six'"]),
        ("--config.train.batch_size=6", ["train.batch_size 6", "4 devices"]),
        ("--config.model.grid.num_grids=8,6", ["2 levels", "one entry per level"]),
        ("--config.model.neck.num_outputs=4", ["5 levels", "'model.neck' gives 4"]),
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
