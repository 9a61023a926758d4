"""SIGTERM ends a run after a whole step, saved; several processes agree on the step."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from helpers.processes import Processes
from helpers.scripts import load_script
from helpers.tiny_config import TOTAL_STEPS
from helpers.tiny_run import NANO_CONFIG, train, use_nano_network, write_data

from solojax.train.metric_writer import MetricWriter
from solojax.train.preemption import EXIT_CODE, preemption_notices

run_comparison = load_script("run_comparison")

INTERVALS = {
    "train__checkpoint_every": 3,
    "train__eval_every": 4,
    "train__ema_decay": 0.9,
    "train__keep_checkpoints": 2,
}


@pytest.fixture(autouse=True)
def network(monkeypatch):
    use_nano_network(monkeypatch)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "data")


def signal_at_step(monkeypatch, step: int) -> None:
    """SIGTERM to this process while the log line of a step is written."""
    write = MetricWriter.write

    def writing(self, number, metrics):
        write(self, number, metrics)
        if number == step and "loss" in metrics:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)  # it travels through a thread

    monkeypatch.setattr(MetricWriter, "write", writing)


def test_a_run_that_is_asked_to_end_saves_and_goes_on_with_the_same_bits(
    tmp_path, data, monkeypatch
):
    whole, asked = (run_comparison.Run([], tmp_path / name) for name in ("whole", "asked"))
    assert train(whole.workdir, data, NANO_CONFIG, **INTERVALS).code == 0
    # Between two checkpoints, and at a step that evaluates and saves anyway.
    for step in (2, 8):
        with monkeypatch.context() as patch:
            signal_at_step(patch, step)
            outcome = train(asked.workdir, data, NANO_CONFIG, **INTERVALS)
        assert outcome.code == EXIT_CODE == 143
        assert f"SIGTERM: step {step} of {TOTAL_STEPS} is saved" in outcome.err.splitlines()[-1]
        assert (asked.newest_checkpoint(), asked.last_step()) == (step, step)
    assert train(asked.workdir, data, NANO_CONFIG, **INTERVALS).code == 0
    assert run_comparison.compare(whole, asked) == []


def test_at_the_last_step_the_run_is_simply_complete(tmp_path, data, monkeypatch):
    signal_at_step(monkeypatch, 2)
    overrides = {"train__total_steps": 2, "train__eval_every": 0}
    assert train(tmp_path / "run", data, NANO_CONFIG, **overrides).code == 0


def test_without_checkpoints_it_is_said_that_nothing_is_saved(tmp_path, data, monkeypatch):
    signal_at_step(monkeypatch, 1)
    overrides = {"train__checkpoint_every": 0, "train__eval_every": 0}
    outcome = train(tmp_path / "run", data, NANO_CONFIG, **overrides)
    assert outcome.code == EXIT_CODE and "step 1 of 12 is not saved" in outcome.err
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with preemption_notices() as is_due:
        assert not is_due(1)
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 30
        while not is_due(2) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert is_due(3)
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
    assert not any(thread.name == "SIGTERM" for thread in threading.enumerate())
    with preemption_notices() as is_due:
        assert not is_due(4)


STUBBORN = """
import ctypes, sys
from solojax.train import preemption
from solojax.train.preemption import preemption_notices
preemption._SAME_NOTICE_SECONDS = 1.0
with preemption_notices() as is_due:
    print("ready", flush=True)
    while True:
        ctypes.CDLL(None).sleep(100)  # as compiled code: no handler of Python's runs
"""


def test_a_notice_may_come_twice_and_a_later_one_ends_a_process_that_is_in_compiled_code():
    child = subprocess.Popen(
        [sys.executable, "-c", STUBBORN],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        assert child.stdout.readline() == b"ready\n"
        for _ in range(2):  # as `timeout` does: the process, then its group
            child.send_signal(signal.SIGTERM)
            time.sleep(0.2)
        assert child.poll() is None
        time.sleep(1.5)
        assert child.poll() is None
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 1  # not the code of a run that has saved
        assert b"not saved" in child.stderr.read()
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("whom", [(1,), (0, 1)])
def test_processes_agree_on_the_step_whoever_is_asked(tmp_path, whom):
    with Processes("joined_process", ["steps"], count=2, folder=tmp_path) as two:
        two.wait_for("joined")
        for index in whom:
            two.send(signal.SIGTERM, index)
        two.wait()
        assert [two[0].code, two[1].code] == [0, 0], two[0].text + two[1].text
        stops = [
            next(line for line in two[i].text.splitlines() if line.startswith("stops after"))
            for i in (0, 1)
        ]
        assert stops[0] == stops[1]
