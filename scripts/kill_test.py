"""Checks that a training run survives SIGKILL: restarted, it ends with the very same bits.

python scripts/kill_test.py --workdir runs/kill_test
python scripts/kill_test.py --workdir runs/kill_test --config my.py --config.data.root=DIR --kills 5

Trains twice with the same config. The first run is left alone. The second is killed at random
moments, once while a checkpoint is being written, and started again with the same command until it
is done. Then every leaf of the two final checkpoints must be equal bit for bit, and metrics.jsonl
must have the same lines (times apart). Exit code 1 where anything differs.

Progress is read off metrics.jsonl: a config of one's own needs train.log_every well below
train.total_steps, and several checkpoints.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import subprocess
import sys
import time
from pathlib import Path

import default_run
import numpy as np
from etils import epath

from solojax.errors import InputError
from solojax.train import checkpoint_format
from solojax.train.metric_writer import FILE_NAME, read_metrics

TINY_OVERRIDES = (
    "--config.train.total_steps=30",
    "--config.train.log_every=1",
    "--config.train.eval_every=10",
    "--config.train.checkpoint_every=5",
    "--config.train.ema_decay=0.9",
    "--config.optimizer.warmup_steps=5",
)
STEP_POLL_SECONDS, SAVE_POLL_SECONDS = 0.02, 0.001
_TIMES = ("seconds_per_step",)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default_run.add_flags(parser)
    parser.add_argument("--kills", type=int, default=3, help="how often (default 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    args = default_run.parse(parser, argv)
    runs = {name: args.workdir / name for name in ("uninterrupted", "killed")}
    for workdir in runs.values():
        if workdir.exists():
            parser.error(f"{workdir} is there already: delete it or give another --workdir")
    try:
        spec, overrides = default_run.config_flags(args, TINY_OVERRIDES)
        uninterrupted = Run([f"--config={spec}", *overrides], runs["uninterrupted"])
        killed = dataclasses.replace(uninterrupted, workdir=runs["killed"])
        print(f"uninterrupted run: {uninterrupted.finish():.0f} s", flush=True)
        kill_and_restart(killed, uninterrupted.last_step(), args.kills, args.seed)
        problems = compare(uninterrupted, killed)
    except (InputError, RunFailed) as error:
        print(f"kill_test: {error}", file=sys.stderr)
        return 2
    print("\n".join(problems) or "the runs are identical")
    return int(bool(problems))


class RunFailed(Exception):
    """A training run did not do what the test needs of it; says what, on one line."""


@dataclasses.dataclass(frozen=True)
class Run:
    """`solojax train` with some flags in a work directory of its own."""

    flags: list[str]
    workdir: Path

    @property
    def checkpoints(self) -> epath.Path:
        """Where Orbax writes."""
        return epath.Path(self.workdir / "checkpoints").absolute()

    def start(self) -> subprocess.Popen:
        """Starts the command; what it says is added to `train.log` in the work directory."""
        self.workdir.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "solojax", "train", *self.flags]
        with (self.workdir / "train.log").open("ab") as log:
            return subprocess.Popen(
                [*command, f"--workdir={self.workdir}"], stdout=log, stderr=subprocess.STDOUT
            )

    def finish(self) -> float:
        """Runs to the end; returns the seconds that it took."""
        start = time.perf_counter()
        self.check(self.start().wait())
        return time.perf_counter() - start

    def check(self, exit_code: int) -> None:
        """Raises RunFailed unless the command succeeded."""
        if exit_code:
            log = self.workdir / "train.log"
            last = (log.read_text(errors="replace").splitlines() or [""])[-1]
            raise RunFailed(f"solojax train ended with exit code {exit_code} ({last}); see {log}")

    def metrics_id(self) -> int | None:
        """Another number each time that metrics.jsonl is replaced, which every start does."""
        path = self.workdir / FILE_NAME
        return path.stat().st_ino if path.exists() else None

    def last_step(self) -> int:
        """The newest step in metrics.jsonl, 0 before there is one."""
        try:
            lines = read_metrics(self.workdir / FILE_NAME)[1]
        except InputError:  # not there yet
            return 0
        return max((line["step"] for line in lines), default=0)

    def newest_checkpoint(self) -> int:
        """The step that a restart goes on from, 0 for none."""
        return max(checkpoint_format.list_steps(self.checkpoints), default=0)

    def unfinished_save(self) -> str | None:
        """The name of the checkpoint that is being written, or that a kill left half-written."""
        for path in self.checkpoints.glob(f"*{checkpoint_format.TEMPORARY}*"):
            if path.name[0].isdigit():
                return path.name
        return None


def kill_and_restart(run: Run, total_steps: int, kills: int, seed: int) -> None:
    """Runs to the end, killed at random moments, one of them inside a save of a checkpoint."""
    rng = np.random.default_rng(seed)
    targets = sorted(rng.choice(np.arange(1, total_steps), kills, replace=False).tolist())
    in_save = int(rng.integers(kills))
    print(f"{'kill':>4}  {'step':>4}  {'moment':34}  goes on from step")
    for number, target in enumerate(targets):
        moment = None
        while moment is None:  # a save may end just before the signal arrives
            moment = kill_once(run, target, number == in_save, rng)
        print(
            f"{number + 1:4d}  {run.last_step():4d}  {moment:34}  {run.newest_checkpoint()}",
            flush=True,
        )
    run.finish()


def kill_once(run: Run, target: int, in_save: bool, rng: np.random.Generator) -> str | None:
    """Starts the run and kills it after step `target`; says when, None if a save was missed."""
    before = run.metrics_id()
    process = run.start()
    try:
        wait = functools.partial(_wait, run, process)
        wait(lambda: run.metrics_id() != before, STEP_POLL_SECONDS)
        wait(lambda: run.last_step() >= target, STEP_POLL_SECONDS)
        if in_save:
            wait(lambda: run.unfinished_save() is not None, SAVE_POLL_SECONDS)
        else:
            time.sleep(rng.uniform(0, _seconds_per_line(run)))
    finally:
        process.kill()
        process.wait()
    left = run.unfinished_save()
    if in_save:
        return left and f"inside the save of {left.partition('.')[0]}"
    return "random" + (f", inside the save of {left.partition('.')[0]}" if left else "")


def _wait(run: Run, process: subprocess.Popen, condition, seconds: float) -> None:
    """Looks again and again until the condition holds, so many seconds apart."""
    while not condition():
        if process.poll() is not None:
            run.check(process.returncode)
            raise RunFailed(
                f"{run.workdir}: the run ended before it could be killed; give a config with more "
                "steps and checkpoints, and a smaller train.log_every"
            )
        time.sleep(seconds)


def _seconds_per_line(run: Run) -> float:
    """How long the run takes from one line of metrics.jsonl to the next, roughly."""
    lines = [line for line in read_metrics(run.workdir / FILE_NAME)[1] if _TIMES[0] in line]
    steps = [line["step"] for line in lines[-2:]]
    return lines[-1][_TIMES[0]] * (steps[-1] - steps[0] or 1)


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
        for name in _TIMES:
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


if __name__ == "__main__":
    sys.exit(main())
