"""Checks that a training run survives SIGKILL: restarted, it ends with the very same bits.

python scripts/kill_test.py --workdir runs/kill_test
python scripts/kill_test.py --workdir runs/kill_test --task densecl
python scripts/kill_test.py --workdir runs/kill_test --config my.py --config.data.root=DIR --kills 5
python scripts/kill_test.py --workdir runs/kill_test --processes 2 --other_processes 1 --kills 20

Trains twice with the same config. The first run is left alone. The second is killed at random
moments, some of them while a checkpoint is being written or an evaluation is under way
(pre-training has none), and started again with the same command until it is done. With several
processes SIGKILL goes to one of them, or to all at once; where it goes to one, the others must end
by themselves within the heartbeat time-out of 10 s, with an exit code that is not 0, and name it.
Then every leaf of the two final checkpoints (queues and key encoder too) must be equal bit for bit,
and metrics.jsonl must have the same lines (times apart).

With --other_processes, a third run is asked to end half-way by SIGTERM to one process, and goes on
with that number of processes: the loss of its next step must be that of the first run to 1e-6.

Exit code 1 where anything differs. Progress is read off metrics.jsonl: a config of one's own needs
train.log_every well below train.total_steps, and several checkpoints and evaluations.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import signal
import sys
import time
from collections.abc import Sequence

import default_run
import numpy as np
from process_group import HEARTBEAT_SECONDS, ProcessGroup
from run_comparison import TIMES, Run, RunFailed, compare

from solojax.errors import InputError
from solojax.train.preemption import EXIT_CODE as PREEMPTED
from solojax.train.process_watch import LOST

TINY_OVERRIDES = (
    "--config.train.total_steps=30",
    "--config.train.log_every=1",
    "--config.train.checkpoint_every=5",
    "--config.train.ema_decay=0.9",
    "--config.optimizer.warmup_steps=5",
)
LOSS_BAR = 1e-6
MOMENTS = ("save", "evaluation", "random", "random")
STEP_POLL_SECONDS, QUICK_POLL_SECONDS = 0.02, 0.001


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default_run.add_flags(parser)
    parser.add_argument("--kills", type=int, default=3, help="how often (default 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    parser.add_argument("--processes", type=int, default=1, help="of a run (default 1)")
    parser.add_argument("--other_processes", type=int, help="to go on with; see above")
    parser.add_argument(
        "--devices", type=int, help="simulated CPU devices of all processes (default one each)"
    )
    args = default_run.parse(parser, argv)
    names = ("uninterrupted", "killed", "moved")
    if any((args.workdir / name).exists() for name in names):
        parser.error(f"a run is in {args.workdir} already: delete it or give another --workdir")
    devices = args.devices
    if devices is None and max(args.processes, args.other_processes or 1) > 1:
        devices = max(args.processes, args.other_processes or 1)
    try:
        spec, overrides = default_run.config_flags(args, tiny_overrides(args.task))
        uninterrupted, killed, moved = (
            Run([f"--config={spec}", *overrides], args.workdir / name, args.processes, devices)
            for name in names
        )
        print(f"uninterrupted run: {uninterrupted.finish():.0f} s", flush=True)
        moments = MOMENTS if evaluates(uninterrupted) else [m for m in MOMENTS if m != "evaluation"]
        problems = kill_and_restart(
            killed, uninterrupted.last_step(), args.kills, args.seed, moments
        )
        problems += compare(uninterrupted, killed)
        if args.other_processes:
            problems += move(moved, uninterrupted, args.other_processes)
    except (InputError, RunFailed) as error:
        print(f"kill_test: {error}", file=sys.stderr)
        return 2
    print("\n".join(problems) or "the runs are identical")
    return int(bool(problems))


def tiny_overrides(task: str) -> tuple[str, ...]:
    """What is changed in the run that is made where no config is given."""
    if task == "densecl":  # which is not evaluated
        return TINY_OVERRIDES
    return (*TINY_OVERRIDES, "--config.train.eval_every=10")


def evaluates(run: Run) -> bool:
    """Whether a finished run has evaluated anything."""
    return any(TIMES[0] not in line for line in run.lines())


def kill_and_restart(
    run: Run, total_steps: int, kills: int, seed: int, moments: Sequence[str]
) -> list[str]:
    """Runs to the end, killed at random moments; returns what survivors did wrong."""
    rng = np.random.default_rng(seed)
    targets = np.sort(rng.integers(1, total_steps, kills)).tolist()
    kinds = list(moments) * (kills // len(moments) + 1)
    kinds = rng.permutation(kinds[:kills]).tolist()
    problems = []
    print(f"{'kill':>4}  {'step':>4}  {'moment':34}  {'whom':>4}  survivors  goes on from step")
    for number, (target, kind) in enumerate(zip(targets, kinds, strict=True)):
        death = None
        while death is None:  # a save may end just before the signal arrives
            death = kill_once(run, target, kind, rng)
        problems += [f"kill {number + 1}: {problem}" for problem in death.problems]
        print(
            f"{number + 1:4d}  {run.last_step():4d}  {death.moment:34}  {death.whom:>4}  "
            f"{death.survivors:9}  {run.newest_checkpoint()}",
            flush=True,
        )
    run.finish()
    return problems


@dataclasses.dataclass(frozen=True)
class Death:
    """When and whom a SIGKILL hit, and what became of the others."""

    moment: str
    whom: str
    survivors: str
    problems: list[str]


def kill_once(run: Run, target: int, kind: str, rng: np.random.Generator) -> Death | None:
    """Starts the run and kills it after step `target`; None if the moment was missed."""
    before = run.metrics_id()
    group = run.start()
    try:
        wait = functools.partial(_wait, run, group)
        wait(lambda: run.metrics_id() != before, STEP_POLL_SECONDS)
        wait(lambda: run.last_step() >= target, STEP_POLL_SECONDS)
        if kind == "save":
            wait(lambda: run.unfinished_save() is not None, QUICK_POLL_SECONDS)
        elif kind == "evaluation":
            step = _next_evaluation(run)
            wait(lambda: run.last_step() >= step, QUICK_POLL_SECONDS)
        else:
            time.sleep(rng.uniform(0, _seconds_per_line(run)))
        every_one = run.processes == 1 or rng.random() < 0.3
        victims = range(run.processes) if every_one else [int(rng.integers(run.processes))]
        group.send(signal.SIGKILL, victims)
        whom = "all" if every_one else str(victims[0])
        survivors, problems = ("", []) if every_one else _watch_survivors(run, group, victims[0])
    finally:
        group.kill()
    inside = _inside(run)
    if kind == "save":
        missed = run.unfinished_save() is None
        return None if missed else Death(inside, whom, survivors, problems)
    if kind == "evaluation":
        missed = any(line["step"] == step and TIMES[0] not in line for line in run.lines())
        return (
            None if missed else Death(f"inside the evaluation of {step}", whom, survivors, problems)
        )
    return Death(f"random{', ' if inside else ''}{inside}", whom, survivors, problems)


def _inside(run: Run) -> str:
    """What was going on with the checkpoints when the run was killed."""
    for doing, left in (("save", run.unfinished_save()), ("removal", run.unfinished_removal())):
        if left:
            return f"inside the {doing} of {left.partition('.')[0]}"
    return ""


def _watch_survivors(run: Run, group: ProcessGroup, victim: int) -> tuple[str, list[str]]:
    """How long the others took to end, and what they should have done otherwise."""
    seconds = group.seconds_to_end(HEARTBEAT_SECONDS + 5)
    if seconds is None:
        return "hung", [f"not all processes ended after the loss of process {victim}"]
    problems = []
    for index, code in enumerate(group.codes):
        log = run.log.with_name(f"{run.log.name}.{index}") if index else run.log
        if index == victim:
            continue
        last = log.read_text(errors="replace").splitlines()[-1]
        if code != LOST or f"process {victim} " not in last or "is lost" not in last:
            problems.append(f"process {index} ended with code {code}, not naming {victim} ({last})")
    return f"{seconds:.1f} s", problems


def _next_evaluation(run: Run) -> int:
    train = json.loads((run.workdir / "config.json").read_text())["train"]
    every = train["eval_every"]
    return (run.last_step() // every + 1) * every if every else train["total_steps"]


def _wait(run: Run, group: ProcessGroup, condition, seconds: float) -> None:
    """Looks again and again until the condition holds, so many seconds apart."""
    while not condition():
        code = group.poll()
        if code is not None:
            run.check(code)
            raise RunFailed(
                f"{run.workdir}: the run ended before it could be killed; give a config with more "
                "steps and checkpoints, and a smaller train.log_every"
            )
        time.sleep(seconds)


def _seconds_per_line(run: Run) -> float:
    """How long the run takes from one line of metrics.jsonl to the next, roughly."""
    lines = [line for line in run.lines() if TIMES[0] in line]
    steps = [line["step"] for line in lines[-2:]]
    return lines[-1][TIMES[0]] * (steps[-1] - steps[0] or 1)


def move(run: Run, uninterrupted: Run, processes: int) -> list[str]:
    """Ends a run half-way, politely, and goes on with another number of processes."""
    group = run.start()
    try:
        middle = uninterrupted.last_step() // 2
        _wait(run, group, lambda: run.last_step() >= middle, STEP_POLL_SECONDS)
        group.send(signal.SIGTERM, [run.processes - 1])
        code = group.wait()
    finally:
        group.kill()
    if code != PREEMPTED:
        return [f"after SIGTERM the exit code was {code} instead of {PREEMPTED}"]
    step = run.newest_checkpoint()
    dataclasses.replace(run, processes=processes).finish()
    expected, found = (_losses(each) for each in (uninterrupted, run))
    gaps = {n: abs(found[n] - expected[n]) / abs(expected[n]) for n in expected}
    after = [gap for n, gap in gaps.items() if n > step]
    print(
        f"moved from {run.processes} to {processes} processes after step {step}: the next loss "
        f"is {after[0]:.1e} from that of the uninterrupted run, the furthest later {max(after):.1e}"
    )
    same_before = max(gap for n, gap in gaps.items() if n <= step) == 0.0
    problems = [] if same_before else ["the losses before the move differ"]
    return problems + ([] if after[0] <= LOSS_BAR else [f"the next loss is {after[0]:.1e} away"])


def _losses(run: Run) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in run.lines() if "loss" in line}


if __name__ == "__main__":
    sys.exit(main())
