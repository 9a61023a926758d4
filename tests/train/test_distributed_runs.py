"""Whole runs of two processes, of a network that compiles in seconds: slow all the same."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from helpers.processes import HEARTBEAT, Processes
from helpers.scripts import load_script, run_script
from helpers.tiny_run import NANO_CONFIG, write_data

from solojax.train.preemption import EXIT_CODE
from solojax.train.process_watch import LOST

run_comparison = load_script("run_comparison")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "data")


def start(workdir: Path, data: Path, *, count: int = 2, environment=None, **overrides) -> Processes:
    defaults = {"data__root": data, "train__eval_every": 0, "train__checkpoint_every": 3}
    words = [
        f"--config.{name.replace('__', '.')}={value}"
        for name, value in {**defaults, **overrides}.items()
    ]
    return Processes(
        "nano_process",
        ["train", "--config", NANO_CONFIG, "--workdir", workdir, "--heartbeat_timeout=10", *words],
        count=count,
        folder=workdir.with_name(f"{workdir.name}_logs"),
        environment=environment,
    )


def codes(two: Processes) -> list[int | None]:
    two.wait()
    return [two[0].code, two[1].code]


@pytest.mark.parametrize("culprit", [0, 1])
def test_bad_data_that_turns_up_half_way_on_one_host(tmp_path, data, culprit):
    environment = {culprit: {"ERROR_AT_STEP_OF_TEST": "5"}}
    with start(tmp_path / "run", data, environment=environment) as two:
        assert codes(two) == [2, 2]
        line = "photo.jpg is unlike its annotation; mend it"
        assert two[culprit].last_line == f"solojax train (process {culprit}): {line}"
        other = 1 - culprit
        expected = f"solojax (process {other}): process {culprit} stopped: {line}"
        assert two[other].last_line == expected


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_while_it_trains(tmp_path, data, victim):
    with start(tmp_path / "run", data, train__total_steps=100_000) as two:
        two.wait_for("step 20/", 0)
        two.send(signal.SIGKILL, victim)
        other = 1 - victim
        assert two.wait() <= HEARTBEAT + 1.0
        assert two[other].code == LOST
        assert f"process {victim} " in two[other].last_line and "is lost" in two[other].last_line


def test_only_process_0_logs_and_preempted_runs_go_on_with_one_process(tmp_path, data):
    with start(tmp_path / "run", data, train__total_steps=100_000) as two:
        two.wait_for("step 20/", 0)
        two.send(signal.SIGTERM, 1)
        assert codes(two) == [EXIT_CODE, EXIT_CODE]
        assert two[0].last_line.startswith("solojax train (process 0): asked to end by SIGTERM")
        assert "step " not in two[1].text.replace(two[1].last_line, "")
    run = run_comparison.Run([], tmp_path / "run")
    step = run.newest_checkpoint()
    assert step == run.last_step() >= 20
    total = {"train__total_steps": step + 3}
    with start(tmp_path / "run", data, count=1, **total) as one:
        one.wait()
        assert one[0].code == 0, one[0].text
    assert run.newest_checkpoint() == run.last_step() == step + 3


def test_a_truncated_checkpoint_is_moved_aside_and_the_loss_is_said(tmp_path, data):
    run = run_comparison.Run([], tmp_path / "run")
    with start(run.workdir, data, train__total_steps=6) as two:
        assert codes(two) == [0, 0], two[0].text
    largest = max(
        (path for path in (Path(run.checkpoints) / "6").rglob("*") if path.is_file()),
        key=lambda path: path.stat().st_size,
    )
    largest.write_bytes(largest.read_bytes()[:-100])
    with start(run.workdir, data, train__total_steps=9) as two:
        assert codes(two) == [0, 0], two[0].text
        assert "steps 4 to 6 are lost: going on from checkpoint 3" in two[0].text
    assert [line["step"] for line in run.lines()] == list(range(1, 10))


def test_runs_that_are_killed_end_with_the_same_bits(tmp_path):
    """The whole command; survivors are watched, and a run goes on with another number."""
    words = ["--processes=2", "--other_processes=1", "--kills=4"]
    done = run_script("kill_test", "--workdir", tmp_path, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the runs are identical" in done.stdout and "moved from 2 to 1" in done.stdout
