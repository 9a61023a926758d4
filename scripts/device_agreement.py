"""Checks that training and evaluation do not depend on the number of devices and processes.

python scripts/device_agreement.py --workdir runs/agreement
python scripts/device_agreement.py --workdir runs/agreement --config my.py --config.data.root=DIR
python scripts/device_agreement.py --workdir runs/agreement --task densecl \
    --layouts 1x2,1x4,1x8,2x2

Layouts of processes x devices: by default 1x1, 1x2, 1x4, 2x2 and 4x1 (on a CPU devices are
simulated; several processes join as hosts do), with the library's own training step. From a fresh
state, one in mid-training and one after the first drop of the learning rate (at the first of
optimizer.milestones), it compares with a single device:

* the loss and each parameter's gradient of one batch in float32;
* of pre-training also key encoder, queues and their pointers after that step;
* parameters, statistics and, of pre-training, all of those after some steps in float64, where
  rounding cannot hide a mistake;
* the parameters after many float32 steps, beside those of a single device that started with every
  parameter moved by one unit in the last place (ulp): training is chaotic and makes rounding grow,
  but the number of devices must not make more of it than that;

of the last state, where the task is evaluated, the COCO results file at equal images per device,
byte for byte;
and what the loader gives to 1, 2 and 4 hosts, put together, number for number. Exit code 1 where a
bar is missed.

A gradient may jump: where the input of a ReLU is within rounding of 0, one side of it is as right
as the other. Such a row says `kink` in place of FAIL, if the gradient of a single device that is
moved by one ulp jumps as far.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import default_run
import jax
from agreement_lab import (
    CHAOS_STEPS,
    FLOAT64_STEPS,
    Lab,
    Layout,
    global_batches,
    largest,
    leaf_gaps,
    one_ulp_away,
    total_gap,
)
from agreement_runners import LocalRunner, ProcessRunner

from solojax.config import load_config
from solojax.errors import InputError
from solojax.train.sharding import check_batch_size, make_mesh
from solojax.train.state import TrainState

Runner = LocalRunner | ProcessRunner
LOSS_BAR = 1e-6
GRADIENT_BAR = 1e-5
BATCH_NORM_GRADIENT_BAR = 1e-3
KEYS_BAR = 1e-5
FLOAT64_BAR = 1e-9
CHAOS_BAR = 3.0
HOSTS, LOADER_STEPS = (1, 2, 4), 10
KINK_TRIALS = 32
TINY_OVERRIDES = (
    "--config.train.total_steps=120",
    "--config.optimizer.name=sgd",
    "--config.optimizer.learning_rate=0.01",
    "--config.optimizer.weight_decay=1e-4",
    "--config.optimizer.schedule=step",
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default_run.add_flags(parser)
    parser.add_argument(
        "--layouts",
        default="1x2,1x4,2x2,4x1",
        help="what to compare with 1x1, as PROCESSESxDEVICES (default 1x2,1x4,2x2,4x1)",
    )
    args = default_run.parse(parser, argv)
    layouts = [Layout(*map(int, text.split("x"))) for text in args.layouts.split(",")]
    local = [layout.devices for layout in layouts if layout.processes == 1]
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", max([1, *local]))
    if max([1, *local]) > jax.device_count():
        parser.error(f"--layouts: there are {jax.device_count()} devices in this process")
    try:
        spec, overrides = default_run.config_flags(args, TINY_OVERRIDES)
        config = load_config(spec, overrides)
        for count in local:
            check_batch_size(
                config.train.batch_size, make_mesh(jax.devices()[:count]), "train.batch_size"
            )
        return report(run_checks(Lab(config), layouts, (spec, overrides), args.workdir))
    except InputError as error:
        print(f"device_agreement: {error}", file=sys.stderr)
        return 2


@dataclasses.dataclass(frozen=True)
class Check:
    """One comparison with a single device; passed where `value` is at most `bar`."""

    name: str
    state: str
    layout: Layout
    value: float
    bar: float
    note: str = ""
    at_kink: bool = False

    @property
    def verdict(self) -> str:
        """pass, kink or FAIL."""
        return "pass" if self.value <= self.bar else "kink" if self.at_kink else "FAIL"


def report(checks: Iterator[Check]) -> int:
    """Prints a row for every check as it is finished; returns 1 where one failed."""
    print(f"{'check':27} {'state':14} {'layout':>7} {'value':>8} {'bar':>6}")
    counts = dict.fromkeys(("pass", "kink", "FAIL"), 0)
    for check in checks:
        counts[check.verdict] += 1
        print(
            f"{check.name:27} {check.state:14} {str(check.layout):>7} {check.value:8.1e} "
            f"{check.bar:6.0e}  {check.verdict}  {check.note}",
            flush=True,
        )
    print(f"{counts['pass']} passed, {counts['kink']} at a kink, {counts['FAIL']} failed")
    return int(counts["FAIL"] > 0)


def run_checks(
    lab: Lab, layouts: Sequence[Layout], config_flags: tuple[str, Sequence[str]], workdir: Path
) -> Iterator[Check]:
    """All checks of a config, as they are finished."""
    yield from loader_checks(lab)
    states = lab.reference_states()
    runners = [
        LocalRunner(lab, layout.devices)
        if layout.processes == 1
        else ProcessRunner(lab, layout, states, config_flags, workdir / f"layout_{layout}")
        for layout in layouts
    ]
    for checks in (gradient_checks, float64_checks, chaos_checks):
        for name, state in states.items():
            yield from checks(lab, name, state, runners)
    if lab.evaluates:
        yield from evaluation_checks(lab, name, state, workdir, runners)


def loader_checks(lab: Lab) -> Iterator[Check]:
    """The numbers in which global batches differ, from the first step on and from a later one."""
    for hosts in HOSTS[1:]:
        differing, leaves = 0, 0
        for first in (0, 7):
            pairs = zip(
                global_batches(lab, 1, first, LOADER_STEPS),
                global_batches(lab, hosts, first, LOADER_STEPS),
                strict=True,
            )
            for one, many in pairs:
                for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
                    leaves += 1
                    differing += x.tobytes() != y.tobytes()
        note = f"{leaves} arrays of {2 * LOADER_STEPS} global batches"
        yield Check("loader's arrays that differ", "", Layout(hosts, 1), differing, 0.0, note)


def gradient_checks(
    lab: Lab, name: str, state: TrainState, runners: Sequence[Runner]
) -> Iterator[Check]:
    """Loss and gradient of one batch in float32."""
    one, expected = lab.run(state, 1, 1)
    has_batch_norm = lab.config.model.backbone.norm == "batch_norm"
    bar = BATCH_NORM_GRADIENT_BAR if has_batch_norm else GRADIENT_BAR
    for runner in runners:
        many, metrics = runner.run(name, state, 1)
        gap = abs(metrics["loss"] - expected["loss"]) / abs(expected["loss"])
        yield Check("loss, float32", name, runner.layout, float(gap), LOSS_BAR)
        leaf, gap = largest(leaf_gaps(many.opt_state["gradient"], one.opt_state["gradient"]))
        check = Check("gradient, float32", name, runner.layout, gap, bar, leaf)
        if gap > bar:
            jump = _largest_jump(lab, state, one, leaf)
            note = f"{leaf}; moved by one ulp it jumps by {jump:.1e}"
            check = dataclasses.replace(check, note=note, at_kink=gap <= CHAOS_BAR * jump)
        yield check
        if one.extra:
            leaf, gap = largest(leaf_gaps(many.extra, one.extra))
            yield Check("keys and queues, float32", name, runner.layout, gap, KEYS_BAR, leaf)


def _largest_jump(lab: Lab, state: TrainState, one: TrainState, leaf: str) -> float:
    """How far a leaf of one device's gradient moves when the state moves by one ulp."""
    trials = (lab.run(one_ulp_away(state, seed), 1, 1)[0] for seed in range(KINK_TRIALS))
    expected = one.opt_state["gradient"]
    return max(leaf_gaps(trial.opt_state["gradient"], expected)[leaf] for trial in trials)


def float64_checks(
    lab: Lab, name: str, state: TrainState, runners: Sequence[Runner]
) -> Iterator[Check]:
    """Parameters and statistics after some steps in float64."""
    one, _ = LocalRunner(lab, 1).run(name, state, FLOAT64_STEPS, "float64")
    for runner in runners:
        many, _ = runner.run(name, state, FLOAT64_STEPS, "float64")
        gaps = leaf_gaps(_learned(many), _learned(one))
        leaf, gap = largest(gaps)
        title = f"{FLOAT64_STEPS} steps, float64"
        yield Check(title, name, runner.layout, gap, FLOAT64_BAR, leaf)


def _learned(state: TrainState) -> dict:
    """All that a step computes, the optimizer's state apart."""
    return {"params": state.params, "batch_stats": state.batch_stats, "extra": state.extra}


def chaos_checks(
    lab: Lab, name: str, state: TrainState, runners: Sequence[Runner]
) -> Iterator[Check]:
    """The gap after many float32 steps, in gaps of one device started one ulp away."""
    one, _ = lab.run(state, 1, CHAOS_STEPS)
    moved, _ = lab.run(one_ulp_away(state, 0), 1, CHAOS_STEPS)
    yardstick = total_gap(moved.params, one.params)
    for runner in runners:
        many, _ = runner.run(name, state, CHAOS_STEPS)
        gap = total_gap(many.params, one.params)
        note = f"gap {gap:.2e}, of one ulp {yardstick:.2e}"
        title = f"{CHAOS_STEPS} steps, times one ulp's"
        yield Check(title, name, runner.layout, gap / yardstick, CHAOS_BAR, note)


def evaluation_checks(
    lab: Lab, name: str, state: TrainState, workdir: Path, runners: Sequence[Runner]
) -> Iterator[Check]:
    """The results files of one state at equal images per device; they stay in `workdir`."""
    expected = lab.results(state, 1)
    (workdir / "results_1x1.json").write_bytes(expected)
    count = len(json.loads(expected))
    for runner in runners:
        found = runner.results(name, state)
        (workdir / f"results_{runner.layout}.json").write_bytes(found)
        # Nothing found would be equal too, and would say nothing.
        gap = float(found != expected) if count else math.nan
        note = f"{count} results, sha256 {hashlib.sha256(found).hexdigest()[:12]}"
        yield Check("results files differ", name, runner.layout, gap, 0.0, note)


if __name__ == "__main__":
    sys.exit(main())
