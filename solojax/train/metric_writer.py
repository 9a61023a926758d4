"""metrics.jsonl and TensorBoard events of a run.

WORKDIR/metrics.jsonl holds one json object a line. The first is the header: what the run ran on,
and no "step". Every other line is `{"step": n, name: number, ...}`. A number that is not finite is
written as null, for json has no NaN or infinity; `read_metrics` gives it back as NaN.

WORKDIR/tensorboard holds the same numbers (with NaN and infinity as they are). The events are
written here and now rather than by tensorboardX's SummaryWriter, whose thread dies silently on a
full disk and then blocks the training step that hands it the next event.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import platform
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from solojax.errors import InputError

_logger = logging.getLogger(__name__)

FILE_NAME = "metrics.jsonl"
_PACKAGES = ("solojax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def run_header(global_batch: int, **entries: Any) -> dict[str, Any]:
    """The header of metrics.jsonl: device_count, process_count, global_batch, versions, entries."""
    return {
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        "platform": jax.default_backend(),
        "global_batch": int(global_batch),
        "versions": {"python": platform.python_version(), **_versions()},
        **entries,
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a clone
            found[package] = "not installed"
    return found


class MetricWriter:
    """Writes the metrics of one run; on processes other than the first it does nothing."""

    def __init__(
        self, workdir: str | Path, *, header: Mapping[str, Any], resume_step: int | None = None
    ):
        """Opens the files, cut back to where the run goes on.

        Args:
          workdir: made if need be.
          header: the first line, see `run_header`; an existing header line stays as it is.
          resume_step: the step that was restored. Later lines and a torn last line are removed
            from metrics.jsonl, later events hidden in TensorBoard. With None, a fresh start, an
            older metrics.jsonl that has metrics is kept as metrics.old.jsonl.

        Raises:
          InputError: the files cannot be written.
          ValueError: the header has an entry "step".
        """
        if "step" in header:
            raise ValueError("the header of metrics.jsonl cannot have a step")
        self._path = Path(workdir) / FILE_NAME
        self._file = self._events = None
        if jax.process_index() != 0:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._start_file(header, resume_step)
            # Unbuffered, so that a line is in the file or not when the run is killed.
            self._file = self._path.open("ab", buffering=0)
            self._start_events(resume_step)
        except OSError as error:
            raise self._failure(error) from error

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Adds one line, and one event per metric.

        Args:
          step: finished training steps.
          metrics: {name: scalar} of Python, NumPy or JAX.

        Raises:
          InputError: the files cannot be written (any more).
          ValueError: a metric is not a scalar or is called "step".
        """
        if self._file is None:
            return
        numbers = {name: _number(name, value) for name, value in metrics.items()}
        finite = {name: _finite_or_none(value) for name, value in numbers.items()}
        try:
            _write_line(self._file, {"step": int(step), **finite})
            # For a machine that is taken away, and for mounted buckets, which get nothing before.
            os.fsync(self._file.fileno())
            values = [Summary.Value(tag=name, simple_value=v) for name, v in numbers.items()]
            self._add_event(step=int(step), summary=Summary(value=values))
        except OSError as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Closes the files; `write` does nothing afterwards."""
        if self._events is not None:
            with contextlib.suppress(OSError):  # `write` flushed all, or raised this already
                self._events.close()
        if self._file is not None:
            self._file.close()
        self._file = self._events = None

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _start_file(self, header: Mapping[str, Any], resume_step: int | None) -> None:
        """Replaces metrics.jsonl by its part that holds, in one atomic rename."""
        old = _parse(self._path)
        kept = [line for line in old if resume_step is not None and line["step"] <= resume_step]
        first = (_read_header(self._path) if resume_step is not None else None) or dict(header)
        if resume_step is None and old:
            os.replace(self._path, self._path.with_suffix(".old.jsonl"))
        header = json.loads(json.dumps(header))  # as it would be read back
        changed = sorted(key for key in header if first.get(key) != header[key])
        if changed:
            _logger.warning(
                "the run goes on with another %s than %s began with", ", ".join(changed), self._path
            )
        temporary = self._path.with_suffix(".jsonl.tmp")
        try:
            with temporary.open("wb") as file:
                for line in (first, *kept):
                    _write_line(file, line)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def _start_events(self, resume_step: int | None) -> None:
        folder = self._path.parent / "tensorboard"
        folder.mkdir(exist_ok=True)
        # tensorboardX names a file by the second: a quick restart would overwrite the last one.
        self._events = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        if resume_step is not None or len(list(folder.iterdir())) > 1:
            purge = 0 if resume_step is None else resume_step + 1
            self._add_event(step=purge, session_log=SessionLog(status=SessionLog.START))

    def _add_event(self, **fields: Any) -> None:
        self._events.write_event(Event(wall_time=time.time(), **fields))
        self._events.flush()

    def _failure(self, error: OSError) -> InputError:
        return InputError(
            f"metrics cannot be written to {self._path}: {error.strerror or error}; "
            f"free space or choose another workdir"
        )


def read_metrics(path: str | Path) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """The header and the metric lines of a metrics.jsonl (or of the work directory with it).

    A torn last line, of a run that was killed or is still writing, is left out; null is NaN.

    Raises:
      InputError: there is no such file, or no header in it.
    """
    path = Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"{path} does not exist; give a metrics.jsonl or the workdir of a run")
    header = _read_header(path)
    if header is None:
        raise InputError(f"{path} has no header line; is it the metrics.jsonl of a run?")
    lines = [
        {name: math.nan if value is None else value for name, value in line.items()}
        for line in _parse(path)
    ]
    return header, lines


def _read_objects(path: Path) -> list[dict[str, Any]]:
    """The json objects of a file's lines; what is torn or no json object is left out."""
    objects = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            parsed = json.loads(line)
        except ValueError:
            continue
        if isinstance(parsed, dict):
            objects.append(parsed)
    return objects


def _parse(path: Path) -> list[dict[str, Any]]:
    return [line for line in _read_objects(path) if isinstance(line.get("step"), int)]


def _read_header(path: Path) -> dict[str, Any] | None:
    first = _read_objects(path)[:1]
    return first[0] if first and "step" not in first[0] else None


def _write_line(file, entries: Mapping[str, Any]) -> None:
    line = json.dumps(entries, allow_nan=False).encode() + b"\n"
    written = file.write(line)
    if written != len(line):  # an unbuffered file takes what fits
        file.write(line[written:])


def _number(name: str, value: Any) -> int | float:
    array = np.asarray(value)
    if name == "step" or array.size != 1 or array.dtype.kind not in "biuf":
        raise ValueError(f"metric {name} is not a scalar under a name of its own: {value!r}")
    return array.item()


def _finite_or_none(value: int | float) -> int | float | None:
    return value if math.isfinite(value) else None
