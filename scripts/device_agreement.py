"""Checks that training and evaluation do not depend on the number of devices.

python scripts/device_agreement.py --workdir runs/agreement
python scripts/device_agreement.py --workdir runs/agreement --config my.py --config.data.root=DIR

One process, meshes over the first 1, 2, 4 of its devices (on a CPU they are simulated), the
library's own training step. From a fresh state, one in mid-training and one after the first drop of
the learning rate (at the first of optimizer.milestones), it compares with a single device:

* the loss and each parameter's gradient of one batch in float32;
* parameters and statistics after some steps in float64, where rounding cannot hide a mistake;
* the parameters after many float32 steps, beside those of a single device that started with every
  parameter moved by one unit in the last place (ulp): training is chaotic and makes rounding grow,
  but the number of devices must not make more of it than that;

and of the last state the COCO results file of an evaluation at equal images per device, byte for
byte. Exit code 1 where a bar is missed.

A gradient may jump: where the input of a ReLU is within rounding of 0, one side of it is as right
as the other. Such a row says `kink` in place of FAIL, if the gradient of a single device that is
moved by one ulp jumps as far.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import default_run
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from solojax.build import (
    build_eval_batches,
    build_optimizer,
    build_task,
    build_train_batches,
    build_train_plan,
    example_shape,
    load_train_set,
    load_val_set,
)
from solojax.config import load_config, milestone_steps, total_steps
from solojax.errors import InputError
from solojax.inference import coco_results, predict_batches
from solojax.structures import PyTree
from solojax.train.sharding import check_batch_size, make_mesh, put_batch, replicated
from solojax.train.state import TrainState, create_state, inference_variables
from solojax.train.step import make_train_step

LOSS_BAR = 1e-6
GRADIENT_BAR = 1e-5
BATCH_NORM_GRADIENT_BAR = 1e-3
FLOAT64_BAR, FLOAT64_STEPS = 1e-9, 5
CHAOS_BAR, CHAOS_STEPS = 3.0, 50
KINK_TRIALS = 8
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
    parser.add_argument("--devices", default="1,2,4", help="what to compare (default 1,2,4)")
    args = default_run.parse(parser, argv)
    counts = [int(count) for count in args.devices.split(",")]
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", max(counts))
    if counts[0] != 1 or len(counts) < 2 or max(counts) > jax.device_count():
        parser.error(f"--devices: give 1 and others, up to the {jax.device_count()} that there are")
    try:
        config = load_config(*default_run.config_flags(args, TINY_OVERRIDES))
        for count in counts:
            check_batch_size(
                config.train.batch_size, make_mesh(jax.devices()[:count]), "train.batch_size"
            )
        return report(run_checks(config, args.workdir, counts))
    except InputError as error:
        print(f"device_agreement: {error}", file=sys.stderr)
        return 2


@dataclasses.dataclass(frozen=True)
class Check:
    """One comparison with a single device; passed where `value` is at most `bar`."""

    name: str
    state: str
    devices: int
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
    print(f"{'check':27} {'state':14} {'devices':>7} {'value':>8} {'bar':>6}")
    counts = dict.fromkeys(("pass", "kink", "FAIL"), 0)
    for check in checks:
        counts[check.verdict] += 1
        print(
            f"{check.name:27} {check.state:14} {check.devices:7d} {check.value:8.1e} "
            f"{check.bar:6.0e}  {check.verdict}  {check.note}",
            flush=True,
        )
    print(f"{counts['pass']} passed, {counts['kink']} at a kink, {counts['FAIL']} failed")
    return int(counts["FAIL"] > 0)


def run_checks(config: ConfigDict, workdir: Path, counts: Sequence[int]) -> Iterator[Check]:
    """All checks of a config, as they are finished."""
    lab = Lab(config)
    states = lab.reference_states()
    for checks in (gradient_checks, float64_checks, chaos_checks):
        for name, state in states.items():
            yield from checks(lab, name, state, counts)
    yield from evaluation_checks(config, name, state, workdir, counts)


class Lab:
    """The training step of a config, from any state, on any number of devices.

    States are on the host. The optimizer is the config's own, and keeps the gradient that it was
    given in `opt_state["gradient"]`.
    """

    def __init__(self, config: ConfigDict):
        dataset = load_train_set(config)
        plan = build_train_plan(config, dataset)
        steps = total_steps(config, plan.steps_per_epoch)
        optimizer = recording(build_optimizer(config, steps)[0])
        task = build_task(config, len(dataset.categories))
        drop = next(iter(milestone_steps(config, steps)), 3 * steps // 4)

        def create(key):
            ema = config.train.ema_decay is not None
            return create_state(task, optimizer, key, example_shape(config, plan), ema=ema)

        self.config = config
        late = "after lr drop" if config.optimizer.schedule == "step" else "late"
        self._state_steps = {"fresh": 0, "mid-training": drop // 2, late: drop + 5}
        self._create = jax.jit(create)
        self._optimizer = optimizer
        self._num_classes = task.num_classes
        self._make_batches = build_train_batches(
            config, dataset, plan, steps + 5 + CHAOS_STEPS, process_index=0, process_count=1
        )
        self._step_functions = {}

    def fresh(self) -> TrainState:
        """The state that a run begins with."""
        return jax.device_get(self._create(jax.random.key(self.config.seed)))

    def reference_states(self) -> dict[str, TrainState]:
        """The three states, from one run on one device."""
        state, states = self.fresh(), {}
        for name, step in self._state_steps.items():
            states[name] = state = self.run(state, 1, step - int(state.step))[0]
        return states

    def run(
        self, state: TrainState, devices: int, steps: int, dtype: str = "float32"
    ) -> tuple[TrainState, dict]:
        """The state after so many steps on the first `devices` devices; the last one's metrics."""
        mesh = make_mesh(jax.devices()[:devices])
        step_function = self._step_function(devices, dtype)
        state, metrics = jax.device_put(state, replicated(mesh)), {}
        for batch in itertools.islice(self._make_batches(int(state.step)), steps):
            state, metrics = step_function(state, put_batch(batch, mesh))
        return jax.device_get((state, metrics))

    def _step_function(self, devices: int, dtype: str):
        if (devices, dtype) not in self._step_functions:
            config = self.config.copy_and_resolve_references()
            config.model.dtype = dtype
            step = make_train_step(
                build_task(config, self._num_classes),
                self._optimizer,
                seed=config.seed,
                accumulate_steps=config.train.accumulate_steps,
                ema_decay=config.train.ema_decay,
            )
            mesh = make_mesh(jax.devices()[:devices])
            self._step_functions[devices, dtype] = jax.jit(step, out_shardings=replicated(mesh))
        return self._step_functions[devices, dtype]


def recording(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer, with the gradient kept beside its own state."""

    def init(params):
        return {"gradient": jax.tree.map(jnp.zeros_like, params), "own": optimizer.init(params)}

    def update(gradient, state, params):
        moves, own = optimizer.update(gradient, state["own"], params)
        return moves, {"gradient": gradient, "own": own}

    return optax.GradientTransformation(init, update)


def gradient_checks(
    lab: Lab, name: str, state: TrainState, counts: Sequence[int]
) -> Iterator[Check]:
    """Loss and gradient of one batch in float32."""
    one, expected = lab.run(state, 1, 1)
    has_batch_norm = lab.config.model.backbone.norm == "batch_norm"
    bar = BATCH_NORM_GRADIENT_BAR if has_batch_norm else GRADIENT_BAR
    for devices in counts[1:]:
        many, metrics = lab.run(state, devices, 1)
        gap = abs(metrics["loss"] - expected["loss"]) / abs(expected["loss"])
        yield Check("loss, float32", name, devices, float(gap), LOSS_BAR)
        leaf, gap = largest(leaf_gaps(many.opt_state["gradient"], one.opt_state["gradient"]))
        check = Check("gradient, float32", name, devices, gap, bar, leaf)
        if gap > bar:
            jump = _largest_jump(lab, state, one, leaf)
            note = f"{leaf}; moved by one ulp it jumps by {jump:.1e}"
            check = dataclasses.replace(check, note=note, at_kink=gap <= CHAOS_BAR * jump)
        yield check


def _largest_jump(lab: Lab, state: TrainState, one: TrainState, leaf: str) -> float:
    """How far a leaf of one device's gradient moves when the state moves by one ulp."""
    trials = (lab.run(one_ulp_away(state, seed), 1, 1)[0] for seed in range(KINK_TRIALS))
    expected = one.opt_state["gradient"]
    return max(leaf_gaps(trial.opt_state["gradient"], expected)[leaf] for trial in trials)


def float64_checks(
    lab: Lab, name: str, state: TrainState, counts: Sequence[int]
) -> Iterator[Check]:
    """Parameters and statistics after some steps in float64."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: x.astype(np.float64) if x.dtype.kind == "f" else x, state)
        one, _ = lab.run(wide, 1, FLOAT64_STEPS, "float64")
        for devices in counts[1:]:
            many, _ = lab.run(wide, devices, FLOAT64_STEPS, "float64")
            gaps = leaf_gaps((many.params, many.batch_stats), (one.params, one.batch_stats))
            leaf, gap = largest(gaps)
            title = f"{FLOAT64_STEPS} steps, float64"
            yield Check(title, name, devices, gap, FLOAT64_BAR, leaf)


def chaos_checks(lab: Lab, name: str, state: TrainState, counts: Sequence[int]) -> Iterator[Check]:
    """The gap after many float32 steps, in gaps of one device started one ulp away."""
    one, _ = lab.run(state, 1, CHAOS_STEPS)
    moved, _ = lab.run(one_ulp_away(state, 0), 1, CHAOS_STEPS)
    yardstick = total_gap(moved.params, one.params)
    for devices in counts[1:]:
        many, _ = lab.run(state, devices, CHAOS_STEPS)
        gap = total_gap(many.params, one.params)
        note = f"gap {gap:.2e}, of one ulp {yardstick:.2e}"
        title = f"{CHAOS_STEPS} steps, times one ulp's"
        yield Check(title, name, devices, gap / yardstick, CHAOS_BAR, note)


def one_ulp_away(state: TrainState, seed: int) -> TrainState:
    """The state with each parameter moved to a neighbouring float, up or down at random."""
    rng = np.random.default_rng(seed)

    def move(x: np.ndarray) -> np.ndarray:
        return np.nextafter(x, np.where(rng.random(x.shape) < 0.5, -np.inf, np.inf).astype(x.dtype))

    return state.replace(params=jax.tree.map(move, state.params))


def evaluation_checks(
    config: ConfigDict, name: str, state: TrainState, workdir: Path, counts: Sequence[int]
) -> Iterator[Check]:
    """The results files of one state at equal images per device; they stay in `workdir`."""
    dataset = load_val_set(config)
    predict = jax.jit(build_task(config, len(dataset.categories)).predict)
    image_ids = [image.id for image in dataset.images]
    files = {}
    for devices in counts:
        scaled = config.copy_and_resolve_references()
        scaled.evaluation.batch_size = config.evaluation.batch_size * devices
        batches = build_eval_batches(scaled, dataset, process_index=0, process_count=1)()
        mesh = make_mesh(jax.devices()[:devices])
        predictions = predict_batches(predict, inference_variables(state), batches, mesh)
        threshold = config.evaluation.mask_threshold
        results = list(coco_results(predictions, image_ids, dataset.category_ids, threshold))
        files[devices] = json.dumps(results).encode()
        (workdir / f"results_{devices}_devices.json").write_bytes(files[devices])
        # Nothing found would be equal too, and would say nothing.
        gap = float(files[devices] != files[1]) if results else math.nan
        if devices > 1:
            digest = hashlib.sha256(files[devices]).hexdigest()[:12]
            note = f"{len(results)} results, sha256 {digest}"
            yield Check("results files differ", name, devices, gap, 0.0, note)


def leaf_gaps(tree: PyTree, expected: PyTree) -> dict[str, float]:
    """{path: norm of the difference / norm of the expected leaf}; 0 where both are zero."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    gaps = {}
    for (path, x), y in zip(found, jax.tree.leaves(expected), strict=True):
        gap, norm = _norm(np.float64(x) - np.float64(y)), _norm(np.float64(y))
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        gaps[name] = gap / norm if norm else math.inf if gap else 0.0
    return gaps


def total_gap(tree: PyTree, expected: PyTree) -> float:
    """Norm of the difference of two trees over the norm of the expected one."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True)
    differences = [_norm(np.float64(x) - np.float64(y)) for x, y in pairs]
    return math.hypot(*differences) / math.hypot(*map(_norm, jax.tree.leaves(expected)))


def _norm(x: np.ndarray) -> float:
    return float(np.linalg.norm(np.float64(x).ravel()))


def largest(gaps: dict[str, float]) -> tuple[str, float]:
    """The worst entry; what is not a number is worse than any."""
    return max(gaps.items(), key=lambda item: math.inf if math.isnan(item[1]) else item[1])


if __name__ == "__main__":
    sys.exit(main())
