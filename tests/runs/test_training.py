"""A run from Python, and what it says of itself."""

from __future__ import annotations

import json
import logging
import shutil

import numpy as np
import pytest
from helpers import tiny_run
from helpers.tiny_config import TOTAL_STEPS
from helpers.tiny_run import use_nano_network

from solojax.builders.segmentation import load_train_set
from solojax.config import from_json
from solojax.errors import InputError
from solojax.runs.segmentation import checkpoint_metadata
from solojax.runs.training import run_training
from solojax.train.checkpoint_loading import newest_metadata
from solojax.train.checkpoints import load_variables


@pytest.fixture
def finished(tmp_path_factory, tmp_path, monkeypatch):
    """A copy of a finished run of the nano network, and its config."""
    use_nano_network(monkeypatch)
    run = tiny_run.finished_nano_run(tmp_path_factory)
    workdir = shutil.copytree(run.workdir, tmp_path / "run")
    return workdir, from_json((workdir / "config.json").read_text())


def test_the_final_state_is_returned_and_is_that_of_the_checkpoint(finished):
    workdir, config = finished
    state = run_training(config, workdir)
    assert int(state.step) == TOTAL_STEPS
    saved = load_variables(workdir).params
    np.testing.assert_array_equal(state.params["kernel"]["kernel"], saved["kernel"]["kernel"])


def test_a_checkpoint_carries_config_and_classes(finished):
    _, config = finished
    metadata = json.loads(json.dumps(checkpoint_metadata(config, load_train_set(config))))
    assert from_json(metadata["config"]) == config
    assert metadata["categories"] == [
        {"id": 3, "name": "bar"},
        {"id": 5, "name": "post"},
        {"id": 7, "name": "disk"},
        {"id": 11, "name": "block"},
        {"id": 40, "name": "ring"},
    ]


def test_what_the_caller_says_is_in_every_checkpoint_too(finished):
    workdir, config = finished
    own, _ = newest_metadata(workdir)
    config.train.total_steps = TOTAL_STEPS + 1
    run_training(config, workdir, {"start": "weights"})
    metadata, path = newest_metadata(workdir)
    assert metadata["start"] == "weights" and own.keys() == metadata.keys() - {"start"}
    assert path == str(workdir / "checkpoints" / str(TOTAL_STEPS + 1))


@pytest.mark.parametrize(
    "old, said",
    [
        (None, None),
        ("{", "everything, since the old one cannot be read"),
        ('{"seed": 4}', "seed 0 (was 4)"),
        ('{"task": "densecl"}', "model.head.kind 'solov2' (was not there)"),
    ],
)
def test_config_json_is_of_the_newest_run(finished, caplog, old, said):
    workdir, config = finished
    if old is not None:
        (workdir / "config.json").write_text(old)
    run_training(config, workdir)
    assert from_json((workdir / "config.json").read_text()) == config
    lines = [message for message in caplog.messages if "is replaced" in message]
    assert len(lines) == (old is not None) and all(said in line for line in lines)


def test_what_is_trained_and_how_is_said(finished, caplog):
    caplog.set_level(logging.INFO)
    workdir, config = finished
    config.optimizer.reference_batch = 16
    run_training(config, workdir)
    assert "6 images, 12 objects, 5 classes; 12 steps of 4 images on 4 device(s)" in caplog.text
    assert "learning rate 0.0025 at 4 images a step (0.01 at 16)" in caplog.text


def test_micro_batches_that_leave_devices_idle_are_refused(finished):
    workdir, config = finished
    config.train.accumulate_steps = 2
    with pytest.raises(InputError, match="train.batch_size / train.accumulate_steps 2 .* 4 device"):
        run_training(config, workdir)


@pytest.mark.parametrize(
    "norm, stages, stuck",
    [
        ("batch_norm", -1, None),
        ("group_norm", -1, None),
        ("batch_norm", 0, "under model.backbone.frozen_stages=0;"),
        ("frozen_batch_norm", -1, "under model.backbone.norm=frozen_batch_norm;"),
        ("frozen_batch_norm", 1, "norm=frozen_batch_norm and model.backbone.frozen_stages=1;"),
    ],
)
def test_random_weights_that_never_train_are_warned_of(finished, caplog, norm, stages, stuck):
    workdir, config = finished
    config.model.backbone.norm, config.model.backbone.frozen_stages = norm, stages
    run_training(config, workdir)
    warnings = [message for message in caplog.messages if "random weights" in message]
    assert len(warnings) == (stuck is not None) and all(stuck in each for each in warnings)


def test_classes_of_another_run_are_refused(finished, tmp_path):
    workdir, config = finished
    data = shutil.copytree(config.data.root, tmp_path / "data")
    for split in ("train", "val"):
        tiny_run.edit_json(data / f"{split}.json", lambda d: d["categories"][2].update(name="hoop"))
    config.data.root = str(data)
    with pytest.raises(InputError, match="train.json: its classes are not those .*'hoop'.*'ring'"):
        run_training(config, workdir)
