"""metrics.jsonl and TensorBoard events, across kills, resumes and full disks."""

from __future__ import annotations

import json
import logging
import math
import os
import resource
import signal
import struct
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from solojax.errors import InputError
from solojax.train.metric_writer import MetricWriter, read_metrics, run_header

HEADER = {"global_batch": 16, "versions": {"jax": "0"}}


def read_lines(workdir: Path) -> list[dict]:
    """Every line must be json as the standard has it, without NaN."""

    def refuse(name):
        raise AssertionError(f"{name} is not json")

    text = (workdir / "metrics.jsonl").read_text()
    assert text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def read_events(workdir: Path) -> list[list[Event]]:
    """Events of every file in the order of writing, by the TFRecord format alone."""
    files = []
    for path in sorted((workdir / "tensorboard").iterdir(), key=lambda path: path.suffix):
        data, events = path.read_bytes(), []
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            events.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
        files.append(events)
    return files


def visible_scalars(workdir: Path) -> dict[tuple[str, int], float]:
    """What TensorBoard shows: a session that starts at step n purges what came before from n on."""
    shown = {}
    for events in read_events(workdir):
        for event in events:
            if event.HasField("session_log"):
                shown = {key: value for key, value in shown.items() if key[1] < event.step}
            for value in event.summary.value:
                shown[value.tag, event.step] = value.simple_value
    return shown


def test_header_first_then_a_line_a_step(tmp_path):
    workdir = tmp_path / "new" / "run"
    with MetricWriter(workdir, header=run_header(16, config="solov2")) as writer:
        writer.write(1, {"loss": 0.5, "loss/category": jnp.float32(0.1), "pairs": np.int64(7)})
        writer.write(jnp.int32(2), {"mask/AP": np.float32(0.25)})
    header, *lines = read_lines(workdir)
    assert header["device_count"] == jax.device_count()
    assert header["process_count"] == 1
    assert (header["global_batch"], header["config"]) == (16, "solov2")
    assert header["versions"]["jax"] == jax.__version__
    assert lines == [
        {"step": 1, "loss": 0.5, "loss/category": float(np.float32(0.1)), "pairs": 7},
        {"step": 2, "mask/AP": 0.25},
    ]
    assert read_metrics(workdir) == read_metrics(workdir / "metrics.jsonl") == (header, lines)
    assert visible_scalars(workdir) == {
        ("loss", 1): 0.5,
        ("loss/category", 1): float(np.float32(0.1)),
        ("pairs", 1): 7.0,
        ("mask/AP", 2): 0.25,
    }


def test_what_is_not_finite_is_null(tmp_path):
    with MetricWriter(tmp_path, header=HEADER) as writer:
        writer.write(3, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": jnp.nan, "e": 1.0})
    assert read_lines(tmp_path)[1] == dict(step=3, a=None, b=None, c=None, d=None, e=1.0)
    _, [line] = read_metrics(tmp_path)
    assert all(math.isnan(line[name]) for name in "abcd")
    shown = visible_scalars(tmp_path)
    assert math.isnan(shown["a", 3]) and shown["b", 3] == math.inf and shown["c", 3] == -math.inf


def test_every_line_is_on_disk_at_once(tmp_path):
    with MetricWriter(tmp_path, header=HEADER) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"loss": step})
            assert read_lines(tmp_path)[-1] == {"step": step, "loss": step}
            assert visible_scalars(tmp_path)["loss", step] == step


def test_every_line_is_forced_onto_the_storage(tmp_path, monkeypatch):
    """A mounted bucket, or a machine that loses power, keeps nothing else."""
    synced = []

    def sync(descriptor):
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.name == "metrics.jsonl":
            synced.append(path.read_bytes())

    with MetricWriter(tmp_path, header=HEADER) as writer:
        monkeypatch.setattr(os, "fsync", sync)
        for step in (1, 2):
            writer.write(step, {"loss": step})
            assert synced[step - 1 :] == [(tmp_path / "metrics.jsonl").read_bytes()]


def test_a_killed_process_loses_no_line(tmp_path):
    script = (
        "import os, signal, sys\n"
        "from solojax.train.metric_writer import MetricWriter\n"
        "writer = MetricWriter(sys.argv[1], header={})\n"
        "for step in range(1, 51):\n"
        "    writer.write(step, {'loss': step / 2})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    process = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert process.returncode == -signal.SIGKILL
    assert read_metrics(tmp_path)[1] == [{"step": s, "loss": s / 2} for s in range(1, 51)]
    assert len(visible_scalars(tmp_path)) == 50


def test_resume_cuts_back_to_the_restored_step(tmp_path):
    with MetricWriter(tmp_path, header=HEADER) as writer:
        for step in (10, 20, 30):
            writer.write(step, {"loss": step})
            writer.write(step, {"mask/AP": step / 100})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2')  # torn, and would pass for an early step
    with MetricWriter(tmp_path, header=HEADER, resume_step=20) as writer:
        assert read_metrics(tmp_path)[1][-1] == {"step": 20, "mask/AP": 0.2}
        writer.write(30, {"loss": -30})
    assert read_lines(tmp_path) == [
        HEADER,
        {"step": 10, "loss": 10},
        {"step": 10, "mask/AP": 0.1},
        {"step": 20, "loss": 20},
        {"step": 20, "mask/AP": 0.2},
        {"step": 30, "loss": -30},
    ]
    shown = visible_scalars(tmp_path)
    assert shown["loss", 20] == 20 and shown["loss", 30] == -30 and ("mask/AP", 30) not in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]


def test_resumed_run_leaves_the_same_file_as_an_uninterrupted_one(tmp_path):
    def run(workdir: Path, first: int, last: int, resume_step: int | None):
        with MetricWriter(workdir, header=HEADER, resume_step=resume_step) as writer:
            for step in range(first, last + 1):
                writer.write(step, {"loss": 1 / step})

    run(tmp_path / "one", 1, 9, None)
    run(tmp_path / "two", 1, 6, None)
    run(tmp_path / "two", 4, 5, 3)  # killed again
    run(tmp_path / "two", 5, 9, 4)
    one, two = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("one", "two"))
    assert one == two
    assert visible_scalars(tmp_path / "one") == visible_scalars(tmp_path / "two")


@pytest.mark.parametrize("torn", [b"", b'{"global_batch": 1', b"\x00\x00\x00"])
def test_resume_without_a_whole_header(tmp_path, torn):
    (tmp_path / "metrics.jsonl").write_bytes(torn)
    MetricWriter(tmp_path, header=HEADER, resume_step=5).close()
    assert read_lines(tmp_path) == [HEADER]


def test_resume_keeps_the_header_and_says_what_changed(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    MetricWriter(tmp_path, header=HEADER).close()
    MetricWriter(tmp_path, header=HEADER, resume_step=0).close()
    assert not caplog.text
    MetricWriter(tmp_path, header=HEADER | {"global_batch": 8}, resume_step=0).close()
    assert "global_batch" in caplog.text and "versions" not in caplog.text
    assert read_lines(tmp_path) == [HEADER]


def test_a_fresh_start_keeps_the_old_file_aside(tmp_path):
    with MetricWriter(tmp_path, header={"run": 1}) as writer:
        writer.write(1, {"loss": 1})
    with MetricWriter(tmp_path, header={"run": 2}) as writer:
        writer.write(2, {"loss": 2})
    assert read_lines(tmp_path) == [{"run": 2}, {"step": 2, "loss": 2}]
    old = (tmp_path / "metrics.old.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in old] == [{"run": 1}, {"step": 1, "loss": 1}]
    assert visible_scalars(tmp_path) == {("loss", 2): 2}


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with MetricWriter(tmp_path / "run", header=HEADER) as writer:
        writer.write(1, {"loss": 1})
    assert not list(tmp_path.iterdir())


def test_metrics_that_are_no_scalars(tmp_path):
    with MetricWriter(tmp_path, header=HEADER) as writer:
        for metrics in ({"loss": np.ones(2)}, {"loss": "low"}, {"loss": None}, {"step": 1}):
            with pytest.raises(ValueError, match=next(iter(metrics))):
                writer.write(1, metrics)
    assert read_lines(tmp_path) == [HEADER]
    with pytest.raises(ValueError, match="step"):
        MetricWriter(tmp_path, header={"step": 1})


def test_a_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError) as error:
        MetricWriter(tmp_path / "file" / "run", header=HEADER)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on file sizes")
def test_a_full_disk_is_one_line_and_the_run_can_be_resumed(tmp_path):
    """A limit on file sizes makes the next byte fail, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with MetricWriter(tmp_path, header=HEADER) as writer:
        writer.write(1, {"loss": 1})
        size = os.path.getsize(tmp_path / "metrics.jsonl")
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, hard))
        try:
            with pytest.raises(InputError) as error:
                writer.write(2, {"loss": 2})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot be written" in str(error.value) and "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert read_metrics(tmp_path)[1] == [{"step": 1, "loss": 1}]  # the torn line is passed over
    with MetricWriter(tmp_path, header=HEADER, resume_step=1) as writer:
        writer.write(2, {"loss": 2})
    assert read_lines(tmp_path) == [HEADER, {"step": 1, "loss": 1}, {"step": 2, "loss": 2}]


def test_read_metrics_says_what_is_missing(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1}\n')
    with pytest.raises(InputError, match="no header"):
        read_metrics(tmp_path)
