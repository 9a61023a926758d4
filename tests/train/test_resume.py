"""A run that is stopped or killed at any moment ends with the bits of one that is not."""

from __future__ import annotations

import shutil
from pathlib import Path

import flax.linen as nn
import numpy as np
import pytest
from flax import traverse_util
from helpers.scripts import load_script, run_script
from helpers.tiny_config import TOTAL_STEPS
from helpers.tiny_run import NANO_CONFIG, NanoNetwork, train, write_data

from solojax.inference.evaluation import Evaluation
from solojax.models.layers import backbone_norm
from solojax.train import checkpoint_format
from solojax.train.checkpoints import Checkpointer
from solojax.train.metric_writer import MetricWriter

run_comparison = load_script("run_comparison")

# Checkpoints of steps that are not those of the log, or of the evaluation.
INTERVALS = {
    "train__checkpoint_every": 3,
    "train__eval_every": 4,
    "train__ema_decay": 0.9,
    "train__keep_checkpoints": 2,
    "optimizer__warmup_steps": 6,
}


class NormedNetwork(nn.Module):
    """`NanoNetwork` behind a BatchNorm, whose running statistics are a part of the state too."""

    network: NanoNetwork

    @nn.compact
    def __call__(self, image, *, train=False, row_mask=None):
        image = backbone_norm(
            image, "batch_norm", name="bn", train=train, row_mask=row_mask, dtype=None
        )
        return self.network(image)


@pytest.fixture(autouse=True)
def network(monkeypatch):
    """Puts `NormedNetwork` in the place of the network of the config."""

    def build(config, num_classes):
        return NormedNetwork(
            NanoNetwork(
                num_classes, config.model.grid.num_grids, config.model.mask_features.out_channels
            )
        )

    monkeypatch.setattr("solojax.builders.segmentation.build_model", build)


class Preempted(BaseException):
    """What ends a run; no part of the library may catch it."""


def stop_before(monkeypatch, method, call: int) -> None:
    """Raises Preempted in place of the n-th call of a method, counted from 1."""
    owner, name = method
    original, calls = getattr(owner, name), []

    def counting(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            raise Preempted
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, counting)


def run_to_end(workdir: Path, data: Path) -> run_comparison.Run:
    assert train(workdir, data, NANO_CONFIG, **INTERVALS).code == 0
    return run_comparison.Run([], workdir)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "data")


WRITE, SAVE, EVALUATE = (MetricWriter, "write"), (Checkpointer, "save"), (Evaluation, "run")


def test_a_run_that_is_stopped_again_and_again_ends_with_the_same_bits(
    tmp_path, data, monkeypatch, capsys
):
    expected = run_to_end(tmp_path / "whole", data)
    found, left = run_comparison.Run([], tmp_path / "stopped"), []
    for method, call in ((WRITE, 2), (SAVE, 2), (EVALUATE, 2)):
        with monkeypatch.context() as patch, pytest.raises(Preempted):
            stop_before(patch, method, call)
            train(found.workdir, data, NANO_CONFIG, **INTERVALS)
        left.append((found.last_step(), found.newest_checkpoint()))
    # The last line in metrics.jsonl and the newest checkpoint after each stop.
    assert left == [(1, 0), (4, 3), (8, 6)]
    run_to_end(found.workdir, data)
    assert run_comparison.compare(expected, found) == []
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("params", "opt_state", "batch_stats", "ema_params"))
    assert f"up to step {TOTAL_STEPS}" in printed


def test_differences_are_found(tmp_path, data):
    """The comparison above would see a single bit."""
    expected = run_to_end(tmp_path / "expected", data)
    found = run_comparison.Run([], tmp_path / "found")

    def problems_after(change) -> list[str]:
        shutil.rmtree(found.workdir, ignore_errors=True)
        shutil.copytree(expected.workdir, found.workdir)
        change(found)
        return run_comparison.compare(expected, found)

    assert problems_after(lambda run: None) == []
    (problem,) = problems_after(_change_one_bit)
    assert problem == "checkpoint: batch_stats/bn/mean differs in 1 numbers"
    (problem,) = problems_after(lambda run: _edit_lines(run, lambda lines: lines + lines[-1:]))
    assert "steps [12] are there twice" in problem
    (problem,) = problems_after(lambda run: _edit_lines(run, lambda lines: lines[:3] + lines[4:]))
    assert "steps [3] are missing" in problem
    (problem,) = problems_after(lambda run: _edit_lines(run, _add_ten_to_losses))
    assert "the numbers of steps [1, 2," in problem
    problems = problems_after(lambda run: shutil.rmtree(run.checkpoints / str(TOTAL_STEPS)))
    assert "final step 9 instead of 12" in problems[-1]


def _edit_lines(run, change) -> None:
    path = run.workdir / "metrics.jsonl"
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")


def _add_ten_to_losses(lines: list[str]) -> list[str]:
    return [line.replace('"loss": ', '"loss": 1') for line in lines]


def _change_one_bit(run) -> None:
    """Writes the final checkpoint again, with the last bit of one number flipped."""
    path = run.checkpoints / str(TOTAL_STEPS)
    record = checkpoint_format.read_record(path)
    leaves = checkpoint_format.read_leaves(path, record, record["leaves"])
    leaves["batch_stats/bn/mean"].view(np.uint32)[1] ^= 1
    shutil.rmtree(path)
    with Checkpointer(run.checkpoints, keep=9) as checkpointer:
        state = traverse_util.unflatten_dict(leaves, sep="/")
        checkpointer.save(TOTAL_STEPS, state, record["metadata"])


@pytest.mark.slow
def test_a_run_that_is_killed_ends_with_the_same_bits(tmp_path):
    """The whole command in processes of its own, with SIGKILL, once inside a save."""
    done = run_script("kill_test", "--workdir", tmp_path, "--kills=3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "inside the save of" in done.stdout and "the runs are identical" in done.stdout
