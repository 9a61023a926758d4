"""Queues of a contrastive run: spread over devices or not, and begun anew where they must be."""

from __future__ import annotations

import shutil

import jax
import numpy as np
import pytest
from etils import epath
from helpers.photos import write_noise
from helpers.small_densecl import use_plain_colors, use_small_backbone

from solojax.config import base_config, load_config
from solojax.runs.contrast import _start
from solojax.runs.training import run_training
from solojax.train import checkpoint_format as form
from solojax.train.checkpoints import Checkpointer
from solojax.train.metric_writer import read_metrics
from solojax.train.state import TrainState

ROWS, LENGTH = 4, 8
OVERRIDES = (
    "--config.views.size=(32,32)",
    "--config.model.backbone.norm_group_images=2",
    "--config.model.hidden_channels=8",
    "--config.model.embedding=8",
    "--config.model.grid=(2,2)",
    f"--config.contrast.queue_length={LENGTH}",
    f"--config.train.batch_size={ROWS}",
    "--config.train.total_steps=3",
    "--config.train.log_every=1",
    "--config.train.checkpoint_every=1",
    "--config.data.threads=1",
)


pytestmark = pytest.mark.slow  # the runs of test_contrast_run are those of every day


@pytest.fixture(scope="module", autouse=True)
def small_backbone():
    with pytest.MonkeyPatch.context() as patch:
        use_small_backbone(patch)
        use_plain_colors(patch)
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_noise(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    """A run with whole queues on every device, and its state after three steps."""
    workdir = tmp_path_factory.mktemp("run")
    return workdir, run(photos, workdir)


def run(photos, workdir, *more):
    root = f"--config.data.root={photos}"
    config = load_config("configs/densecl.py:tiny", [*OVERRIDES, root, *more])
    return run_training(config, workdir)


def after_step_2(finished, folder):
    """A copy of the run as it was killed after its second checkpoint."""
    shutil.copytree(finished[0], folder)
    shutil.rmtree(folder / "checkpoints" / "3")
    return folder


def renewals(caplog):
    return [text for text in (r.getMessage() for r in caplog.records) if "begins anew" in text]


@pytest.mark.skipif(jax.device_count() < 2, reason="one device")
def test_a_run_goes_on_with_spread_queues(finished, photos, tmp_path, caplog):
    _, expected = finished
    state = run(
        photos, after_step_2(finished, tmp_path / "run"), "--config.contrast.shard_queues=true"
    )
    for name, queue in state.extra["queues"].items():
        part = queue["vectors"].addressable_shards[0].data
        assert part.shape == (LENGTH // min(ROWS, jax.device_count()), 8)
        whole = expected.extra["queues"][name]
        assert whole["vectors"].is_fully_replicated
        np.testing.assert_allclose(queue["vectors"], whole["vectors"], rtol=0, atol=1e-5)
        assert queue["position"] == whole["position"] == 3 * ROWS % LENGTH
    lines = [read_metrics(folder)[1][-1] for folder in (finished[0], tmp_path / "run")]
    assert lines[1]["loss"] == pytest.approx(lines[0]["loss"], rel=1e-5)
    assert not renewals(caplog)
    # And back: the checkpoint of step 3 is read with whole queues.
    back = run(photos, tmp_path / "run")
    assert back.extra["queues"]["dense"]["vectors"].is_fully_replicated


def test_queues_of_another_length_begin_anew(finished, photos, tmp_path, caplog):
    """The run ends where it is gone on with, so that nothing is compiled; see below for a step."""
    workdir = after_step_2(finished, tmp_path / "run")
    words = f"--config.contrast.queue_length={2 * LENGTH}", "--config.train.total_steps=2"
    state = run(photos, workdir, *words)
    (line,) = renewals(caplog)
    assert f"{workdir}/checkpoints/2" in line and "extra/queues begins anew" in line
    assert "float32[8,8] in it and float32[16,8] here" in line
    for queue in state.extra["queues"].values():
        assert queue["vectors"].shape == (2 * LENGTH, 8) and queue["position"] == 0
        np.testing.assert_allclose(np.linalg.norm(queue["vectors"], axis=1), 1, rtol=1e-5)


def test_a_checkpoint_without_queues_is_gone_on_with(finished, photos, tmp_path, caplog):
    """All else is as it was: what the key encoder learned is not lost."""
    path = epath.Path(finished[0]) / "checkpoints" / "2"
    record = form.read_record(path)
    names = [name for name in record["leaves"] if not name.startswith("extra/queues/")]
    leaves = form.read_leaves(path, record, names)
    tree: dict = {}
    for name, leaf in leaves.items():
        *groups, last = name.split("/")
        branch = tree
        for group in groups:
            branch = branch.setdefault(group, {})
        branch[last] = leaf
    with Checkpointer(tmp_path / "checkpoints") as checkpointer:
        checkpointer.save(2, tree, record["metadata"])
    state = run(photos, tmp_path, "--config.train.total_steps=2")
    (line,) = renewals(caplog)
    assert "extra/queues/dense/position is not in it" in line
    for name, leaf in form.named_leaves(state).items():
        if name in leaves:
            np.testing.assert_array_equal(leaf, leaves[name])
    for queue in state.extra["queues"].values():
        assert queue["vectors"].shape == (LENGTH, 8) and queue["position"] == 0
    trained = run(photos, tmp_path)
    assert trained.step == 3
    assert all(queue["position"] == ROWS for queue in trained.extra["queues"].values())


def test_a_start_from_a_backbone_says_that_queues_are_random(monkeypatch, caplog):
    trained = {"backbone": np.ones(2)}
    monkeypatch.setattr(
        "solojax.runs.contrast.with_backbone", lambda config, state: state.replace(params=trained)
    )
    queues = {"global": {"vectors": np.eye(2), "position": np.int32(0)}}
    extra = {"key_params": {}, "key_batch_stats": {}, "queues": queues}
    fresh = TrainState(np.int32(0), {"backbone": np.zeros(2)}, (), {}, None, extra)
    with caplog.at_level("INFO", "solojax"):
        state = _start(base_config(), fresh)
    np.testing.assert_array_equal(state.extra["key_params"]["backbone"], trained["backbone"])
    assert state.extra["queues"] is queues
    assert "queues and projection heads begin with random numbers" in caplog.text
