"""What a person sees of long work, on a terminal and in a log file."""

from __future__ import annotations

import pytest

from solojax.train import progress
from solojax.train.progress import TrainProgress, progress_bar

METRICS = {
    "grad_norm": 9.0,
    "loss": 2.6249,
    "loss/category": 0.9715,
    "loss/mask": 1.6534,
    "seconds_per_step": 0.5,
}


@pytest.fixture
def log(capsys):
    """What went to stderr, which is no terminal."""
    return lambda: capsys.readouterr().err


@pytest.fixture
def terminal(capsys, monkeypatch):
    """What went to stderr, which passes for a terminal."""
    monkeypatch.setattr(progress, "_is_terminal", lambda: True)
    return lambda: capsys.readouterr().err


def train_some(enabled=True):
    shown = TrainProgress(total_steps=100, start_step=10, batch_size=8, enabled=enabled)
    shown.advance(None)
    shown.advance(METRICS)
    shown.note("step 12: mask AP 0.5")
    shown.skip_time()
    shown.close()


def test_a_log_gets_a_line_for_every_line_of_metrics(log):
    train_some()
    # 88 steps of half a second are left, of 8 images each.
    assert log() == (
        "step 12/100  loss 2.62 (category 0.972, mask 1.65), 16 images/s, 0:00:44 left\n"
        "step 12: mask AP 0.5\n"
    )


def test_a_terminal_gets_a_bar_with_losses_and_rate(terminal):
    train_some()
    seen = terminal()
    last = seen.split("\r")[-1]
    assert "12/100" in last and "step" in last
    assert "loss 2.62 (category 0.972, mask 1.65), 16 images/s" in last
    assert "step 12: mask AP 0.5\n" in seen


def test_other_processes_are_silent(log):
    train_some(enabled=False)
    assert log() == ""


def test_other_processes_are_silent_on_a_terminal(terminal):
    train_some(enabled=False)
    assert terminal() == ""


def test_losses_without_terms_and_without_time(log):
    shown = TrainProgress(total_steps=2, start_step=0, batch_size=8)
    shown.advance({"loss": 0.5})
    shown.close()
    assert log() == "step 1/2  loss 0.5, 0:00:00 left\n"


def test_compilation_does_not_spoil_the_time_that_is_left(terminal, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    shown = TrainProgress(total_steps=101, start_step=0, batch_size=8)
    clock[0] += 1000.0  # the first step compiles
    shown.skip_time()
    for _ in range(100):
        clock[0] += 1.0
        shown.advance(None)
    shown.close()
    assert " 1.00step/s" in terminal().split("\r")[-1]


def test_short_work_writes_nothing_into_a_log(log):
    with progress_bar(5, description="evaluate", unit="image") as bar:
        for _ in range(5):
            bar.update()
    assert log() == ""


def test_long_work_writes_lines_into_a_log(log, monkeypatch):
    monkeypatch.setattr(progress, "_LOG_SECONDS", 1e-9)
    with progress_bar(4, description="evaluate", unit="image") as bar:
        for _ in range(4):
            bar.update()
    written = log()
    lines = written.splitlines()
    assert lines[-1].startswith("evaluate: 4/4 image [") and "image/s" in lines[-1]
    assert len(lines) >= 4 and "\r" not in written


def test_long_work_draws_a_bar_on_a_terminal(terminal):
    with progress_bar(4, description="evaluate", unit="image") as bar:
        bar.update(4)
    seen = terminal()
    assert "evaluate: 100%" in seen and "4/4" in seen
