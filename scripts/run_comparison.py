"""Whether two finished runs are the same: checkpoints bit for bit, and the lines of the log."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path

import numpy as np
from etils import epath
from process_group import ProcessGroup, start_group

from solojax.errors import InputError
from solojax.train import checkpoint_format
from solojax.train.metric_writer import FILE_NAME, read_metrics

TIMES = ("seconds_per_step",)


class RunFailed(Exception):
    """A training run did not do what the test needs of it; says what, on one line."""


@dataclasses.dataclass(frozen=True)
class Run:
    """`solojax train` with some flags in a work directory of its own.

    Attributes:
      flags: of the command.
      workdir: its work directory.
      processes: how many make the run.
      devices: simulated CPU devices of all processes together; None leaves it to the environment.
    """

    flags: list[str]
    workdir: Path
    processes: int = 1
    devices: int | None = None

    @property
    def checkpoints(self) -> epath.Path:
        """Where Orbax writes."""
        return epath.Path(self.workdir / "checkpoints").absolute()

    @property
    def log(self) -> Path:
        """What process 0 says."""
        return self.workdir / "train.log"

    def start(self) -> ProcessGroup:
        """Starts the command; what it says is added to `train.log` in the work directory."""
        self.workdir.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "solojax", "train", *self.flags]
        return start_group(
            [*command, f"--workdir={self.workdir}"],
            count=self.processes,
            devices=self.devices,
            log=self.log,
        )

    def finish(self) -> float:
        """Runs to the end; returns the seconds that it took."""
        start = time.perf_counter()
        self.check(self.start().wait())
        return time.perf_counter() - start

    def check(self, exit_code: int) -> None:
        """Raises RunFailed unless the command succeeded."""
        if exit_code:
            last = (self.log.read_text(errors="replace").splitlines() or [""])[-1]
            raise RunFailed(
                f"solojax train ended with exit code {exit_code} ({last}); see {self.log}"
            )

    def metrics_id(self) -> int | None:
        """Another number each time that metrics.jsonl is replaced, which every start does."""
        path = self.workdir / FILE_NAME
        return path.stat().st_ino if path.exists() else None

    def lines(self) -> list[dict]:
        """The lines of metrics.jsonl, none before it is there."""
        try:
            return read_metrics(self.workdir / FILE_NAME)[1]
        except InputError:  # not there yet
            return []

    def last_step(self) -> int:
        """The newest step in metrics.jsonl, 0 before there is one."""
        return max((line["step"] for line in self.lines()), default=0)

    def newest_checkpoint(self) -> int:
        """The step that a restart goes on from, 0 for none."""
        return max(checkpoint_format.list_steps(self.checkpoints), default=0)

    def unfinished_save(self) -> str | None:
        """The name of the checkpoint that is being written, or that a kill left half-written."""
        for name in self._unfinished():
            if not name.endswith(checkpoint_format.REMOVED):
                return name
        return None

    def unfinished_removal(self) -> str | None:
        """The name of the checkpoint that is being deleted, or that a kill left half-deleted."""
        for name in self._unfinished():
            if name.endswith(checkpoint_format.REMOVED):
                return name
        return None

    def _unfinished(self) -> list[str]:
        found = self.checkpoints.glob(f"*{checkpoint_format.TEMPORARY}*")
        return [path.name for path in found if path.name[0].isdigit()]


def compare(expected: Run, found: Run) -> list[str]:
    """One line for each thing in which two finished runs differ; prints what was compared."""
    problems = [*_compare_folders(expected, found), *_compare_metrics(expected, found)]
    step = expected.newest_checkpoint()
    if found.newest_checkpoint() != step:
        return [*problems, f"final step {found.newest_checkpoint()} instead of {step}"]
    leaves, others = (_read_leaves(run, step) for run in (expected, found))
    print(f"checkpoint of step {step}: {_describe(leaves)}")
    if leaves.keys() != others.keys():
        return [*problems, f"checkpoint: leaves {sorted(leaves.keys() ^ others.keys())}"]
    for name, leaf in leaves.items():
        other = others[name]
        if (leaf.dtype, leaf.shape, leaf.tobytes()) != (other.dtype, other.shape, other.tobytes()):
            problems.append(f"checkpoint: {name} differs in {np.sum(leaf != other)} numbers")
    return problems


def _read_leaves(run: Run, step: int) -> dict[str, np.ndarray]:
    path = run.checkpoints / str(step)
    record = checkpoint_format.read_record(path)
    return checkpoint_format.read_leaves(path, record, record["leaves"])


def _describe(leaves: dict[str, np.ndarray]) -> str:
    counts: dict[str, int] = {}
    for name in leaves:
        part = name.partition("/")[0]
        counts[part] = counts.get(part, 0) + 1
    size = sum(leaf.nbytes for leaf in leaves.values()) / 2**20
    listed = ", ".join(f"{part} {count}" for part, count in counts.items())
    return f"{len(leaves)} leaves ({listed}), {size:.1f} MiB"


def _compare_folders(expected: Run, found: Run) -> list[str]:
    names, others = (
        sorted(path.name for path in run.checkpoints.iterdir()) for run in (expected, found)
    )
    print(f"checkpoints/: {' '.join(names)}")
    return [] if names == others else [f"checkpoints/ has {' '.join(others)}"]


def _compare_metrics(expected: Run, found: Run) -> list[str]:
    (_, lines), (_, others) = (read_metrics(run.workdir) for run in (expected, found))
    for line in (*lines, *others):
        for name in TIMES:
            line.pop(name, None)
    keys, other_keys = ([(line["step"], *sorted(line)) for line in x] for x in (lines, others))
    print(f"{FILE_NAME}: {len(lines)} lines up to step {lines[-1]['step']}")
    if len(set(other_keys)) < len(other_keys):
        twice = sorted({key[0] for key in other_keys if other_keys.count(key) > 1})
        return [f"{FILE_NAME}: steps {twice} are there twice"]
    if keys != other_keys:
        steps = sorted({key[0] for key in set(keys) ^ set(other_keys)})
        return [f"{FILE_NAME}: lines of steps {steps} are missing or too many"]
    # As text, for NaN is not equal to itself.
    pairs = zip(lines, others, strict=True)
    steps = [line["step"] for line, other in pairs if str(line) != str(other)]
    return [f"{FILE_NAME}: the numbers of steps {steps} differ"] if steps else []
