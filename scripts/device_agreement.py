"""Checks that training and evaluation do not depend on the number of devices.

python scripts/device_agreement.py --workdir runs/agreement
python scripts/device_agreement.py --workdir runs/agreement --config my.py --config.data.root=DIR

One process, meshes over the first 1, 2, 4 of its devices, the library's own training step; on a
CPU the devices are simulated. From a fresh state, one in mid-training and one after the learning
rate's first drop, it compares with a single device:

* the loss and each parameter's gradient of one batch in float32;
* the parameters after some steps in float64, where rounding cannot hide a mistake;
* the parameters after many float32 steps, beside those of a single device that started with every
  parameter moved by one unit in the last place: training is chaotic, so that rounding grows, but
  it must not grow from another source;

and of the last state the COCO results file of an evaluation at the same batch per device, byte for
byte. Exit code 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

LOSS_BAR = 1e-6
GRADIENT_BAR = 1e-5
BATCH_NORM_GRADIENT_BAR = 1e-3
FLOAT64_BAR = 1e-9
CHAOS_BAR = 3.0
FLOAT64_STEPS = 5
CHAOS_STEPS = 50


def main(argv: list[str] | None = None) -> int:
    import tiny_run

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tiny_run.add_flags(parser)
    parser.add_argument("--devices", default="1,2,4", help="counts to compare; the first is 1")
    args = tiny_run.parse(parser, argv)
    counts = [int(count) for count in args.devices.split(",")]
    if counts[0] != 1 or len(counts) < 2:
        parser.error("--devices begins with 1 and has at least one more")
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(max(counts)))  # before JAX is imported
    return report(run_checks(*tiny_run.config_flags(args), args.workdir, counts))


@dataclasses.dataclass(frozen=True)
class Check:
    """One comparison with a single device; passed where `value` is at most `bar`."""

    name: str
    state: str
    devices: int
    value: float
    bar: float
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.value <= self.bar


def report(checks: Iterator[Check]) -> int:
    """Prints the table row by row; 1 where a check failed."""
    print(f"{'check':30} {'state':15} {'devices':>7} {'value':>9} {'bar':>8}")
    failed = 0
    for check in checks:
        failed += not check.passed
        print(
            f"{check.name:30} {check.state:15} {check.devices:7d} {check.value:9.2g} "
            f"{check.bar:8.0e}  {'pass' if check.passed else 'FAIL'}  {check.note}",
            flush=True,
        )
    print("every bar is met" if not failed else f"{failed} bars are missed")
    return int(failed > 0)


def run_checks(
    config_spec: str, overrides: list[str], workdir: Path, counts: list[int]
) -> Iterator[Check]:
    """All checks of a config, as they are finished."""
    from solojax.config import load_config

    config = load_config(config_spec, overrides)
    lab = Lab(config)
    states = lab.reference_states()
    for name, state in states.items():
        yield from gradient_checks(lab, name, state, counts)
    for name, state in states.items():
        yield from float64_checks(lab, name, state, counts)
    for name, state in states.items():
        yield from chaos_checks(lab, name, state, counts)
    yield from evaluation_checks(config, name, state, workdir, counts)


class Lab:
    """The training step of a config on any number of devices, from any state.

    States are on the host. The optimizer is the config's own; it also keeps the gradient that it
    was given in `opt_state["gradient"]`.
    """

    def __init__(self, config):
        import jax
        from solojax.build import (
            build_optimizer,
            build_task,
            build_train_batches,
            build_train_plan,
            example_shape,
            load_train_set,
        )
        from solojax.config import milestone_steps, total_steps
        from solojax.train.state import create_state

        dataset = load_train_set(config)
        plan = build_train_plan(config, dataset)
        steps = total_steps(config, plan.steps_per_epoch)
        self.config = config
        self.task = build_task(config, len(dataset.categories))
        self._optimizer = recording(build_optimizer(config, steps)[0])
        self._make_batches = build_train_batches(
            config, dataset, plan, steps + CHAOS_STEPS, process_index=0, process_count=1
        )
        self._fresh = jax.jit(
            lambda key: create_state(self.task, self._optimizer, key, example_shape(config, plan))
        )
        drop = milestone_steps(config, steps)[0]
        self._state_steps = {"fresh": 0, "mid-training": drop // 2, "after lr drop": drop + 5}

    def reference_states(self) -> dict:
        """The three states, from one run on one device."""
        import jax

        state = jax.device_get(self._fresh(jax.random.key(self.config.seed)))
        states = {}
        for name, step in self._state_steps.items():
            state, _ = self.run(state, 1, step - int(state.step))
            states[name] = state
        return states

    def run(self, state, devices: int, steps: int, dtype: str = "float32"):
        """(state after so many steps, metrics of the last one) on the first `devices` devices."""
        import jax
        from solojax.train.sharding import make_mesh, put_batch, replicated

        mesh = make_mesh(jax.devices()[:devices])
        step_function = self._step_function(devices, dtype)
        state, metrics = jax.device_put(state, replicated(mesh)), {}
        for batch in itertools.islice(self._make_batches(int(state.step)), steps):
            state, metrics = step_function(state, put_batch(batch, mesh))
        return jax.device_get((state, metrics))

    @functools.cache  # noqa: B019 - there is one Lab
    def _step_function(self, devices: int, dtype: str):
        import jax
        from solojax.build import build_task
        from solojax.train.sharding import make_mesh, replicated
        from solojax.train.step import make_train_step

        config = self.config.copy_and_resolve_references()
        config.model.dtype = dtype
        task = build_task(config, self.task.num_classes)
        step = make_train_step(
            task,
            self._optimizer,
            seed=config.seed,
            accumulate_steps=config.train.accumulate_steps,
        )
        return jax.jit(step, out_shardings=replicated(make_mesh(jax.devices()[:devices])))


def recording(optimizer):
    """The optimizer, with the gradient kept beside its own state."""
    import jax
    import jax.numpy as jnp
    import optax

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return {"gradient": zeros, "own": optimizer.init(params)}

    def update(gradient, state, params):
        moves, own = optimizer.update(gradient, state["own"], params)
        return moves, {"gradient": gradient, "own": own}

    return optax.GradientTransformation(init, update)


def gradient_checks(lab: Lab, name: str, state, counts: list[int]) -> Iterator[Check]:
    """Loss and gradients of one batch in float32."""
    (one, expected) = lab.run(state, 1, 1)
    normed = lab.config.model.backbone.norm == "batch_norm"
    for devices in counts[1:]:
        many, metrics = lab.run(state, devices, 1)
        loss = abs(metrics["loss"] - expected["loss"]) / abs(expected["loss"])
        yield Check("loss, float32", name, devices, float(loss), LOSS_BAR)
        leaf, worst = largest(leaf_gaps(many.opt_state["gradient"], one.opt_state["gradient"]))
        bar = BATCH_NORM_GRADIENT_BAR if normed else GRADIENT_BAR
        yield Check("gradient, float32", name, devices, worst, bar, leaf)


def float64_checks(lab: Lab, name: str, state, counts: list[int]) -> Iterator[Check]:
    """Parameters and statistics after some steps in float64."""
    import jax
    import numpy as np

    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: x.astype(np.float64) if x.dtype.kind == "f" else x, state)
        one, _ = lab.run(wide, 1, FLOAT64_STEPS, "float64")
        for devices in counts[1:]:
            many, _ = lab.run(wide, devices, FLOAT64_STEPS, "float64")
            gaps = leaf_gaps(
                (many.params, many.batch_stats), (one.params, one.batch_stats)
            )
            leaf, worst = largest(gaps)
            title = f"{FLOAT64_STEPS} steps, float64"
            yield Check(title, name, devices, worst, FLOAT64_BAR, leaf)


def chaos_checks(lab: Lab, name: str, state, counts: list[int]) -> Iterator[Check]:
    """The gap after many float32 steps, in gaps of one device started one ulp away."""
    one, _ = lab.run(state, 1, CHAOS_STEPS)
    moved, _ = lab.run(one_ulp_away(state), 1, CHAOS_STEPS)
    yardstick = total_gap(moved.params, one.params)
    for devices in counts[1:]:
        many, _ = lab.run(state, devices, CHAOS_STEPS)
        gap = total_gap(many.params, one.params)
        note = f"gap {gap:.2e}, of one ulp {yardstick:.2e}"
        title = f"{CHAOS_STEPS} steps, float32 / one ulp"
        yield Check(title, name, devices, gap / yardstick, CHAOS_BAR, note)


def one_ulp_away(state):
    """The state with each parameter moved to a neighbouring float, up or down at random."""
    import jax
    import numpy as np

    rng = np.random.default_rng(0)

    def move(x):
        target = np.where(rng.random(x.shape) < 0.5, -np.inf, np.inf).astype(x.dtype)
        return np.nextafter(x, target)

    return state.replace(params=jax.tree.map(move, state.params))


def evaluation_checks(
    config, name: str, state, workdir: Path, counts: list[int]
) -> Iterator[Check]:
    """Results files of one state at the same number of images per device."""
    import jax
    from solojax.build import build_eval_batches, build_task, load_val_set
    from solojax.inference import coco_results, predict_batches
    from solojax.train.sharding import make_mesh
    from solojax.train.state import inference_variables

    dataset = load_val_set(config)
    predict = jax.jit(build_task(config, len(dataset.categories)).predict)
    files = {}
    for devices in counts:
        scaled = config.copy_and_resolve_references()
        scaled.evaluation.batch_size = config.evaluation.batch_size * devices
        batches = build_eval_batches(scaled, dataset, process_index=0, process_count=1)()
        mesh = make_mesh(jax.devices()[:devices])
        predictions = predict_batches(predict, inference_variables(state), batches, mesh)
        image_ids = [image.id for image in dataset.images]
        results = list(coco_results(predictions, image_ids, dataset.category_ids))
        files[devices] = json.dumps(results).encode()
        (workdir / f"results_{devices}_devices.json").write_bytes(files[devices])
    for devices in counts[1:]:
        differing = float(files[devices] != files[1]) if len(results) else float("nan")
        digest = hashlib.sha256(files[devices]).hexdigest()[:12]
        note = f"{len(results)} results, sha256 {digest}"
        yield Check("results file differs", name, devices, differing, 0.0, note)


def leaf_gaps(tree, expected) -> dict[str, float]:
    """{path: norm of the difference / norm of the expected leaf}; 0 where both are zero."""
    import jax
    import numpy as np

    gaps = {}
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(expected), strict=True
    ):
        gap = np.linalg.norm(np.float64(x).ravel() - np.float64(y).ravel())
        norm = np.linalg.norm(np.float64(y).ravel())
        gaps[jax.tree_util.keystr(path, simple=True, separator="/")] = float(
            gap and (gap / norm if norm else np.inf)
        )
    return gaps


def total_gap(tree, expected) -> float:
    """Norm of the difference of two trees, relative to the expected one."""
    import jax
    import numpy as np

    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True)
    difference = sum(np.sum(np.square(np.float64(x) - np.float64(y))) for x, y in pairs)
    norm = sum(np.sum(np.square(np.float64(y))) for y in jax.tree.leaves(expected))
    return float(np.sqrt(difference / norm))


def largest(gaps: dict[str, float]) -> tuple[str, float]:
    """The worst entry; one that is not a number counts as the worst."""
    import math

    return max(gaps.items(), key=lambda item: math.inf if math.isnan(item[1]) else item[1])


if __name__ == "__main__":
    sys.exit(main())
