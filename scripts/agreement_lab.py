"""The training step and the evaluation of a config on any layout of processes and devices."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from agreement_parts import parts_of
from ml_collections import ConfigDict

from solojax.builders.segmentation import (
    build_eval_batches,
    build_optimizer,
    build_task,
    load_val_set,
)
from solojax.config import milestone_steps, total_steps
from solojax.inference.segmenter import coco_results, predict_batches
from solojax.structures import Batch, PyTree
from solojax.train.sharding import (
    batch_sharding,
    gather_json,
    make_mesh,
    put_batch,
    replicate,
    replicated,
)
from solojax.train.state import TrainState, create_state, inference_variables
from solojax.train.step import make_train_step

FLOAT64_STEPS, CHAOS_STEPS = 5, 50


@dataclasses.dataclass(frozen=True)
class Layout:
    """So many processes with so many devices each."""

    processes: int
    devices: int

    def __str__(self) -> str:
        return f"{self.processes}x{self.devices}"

    @property
    def size(self) -> int:
        """All devices."""
        return self.processes * self.devices


class Lab:
    """The training step of a config, from any state, on any number of devices.

    States are on the host. The optimizer is the config's own, and keeps the gradient that it was
    given in `opt_state["gradient"]`. Where there are several processes, all call the same methods
    with all devices.
    """

    def __init__(self, config: ConfigDict):
        parts = parts_of(config)
        steps = total_steps(config, parts.steps_per_epoch)
        optimizer = recording(build_optimizer(config, steps)[0])
        task = parts.build_task(config, None)
        drop = next(iter(milestone_steps(config, steps)), 3 * steps // 4)

        def create(key):
            ema = config.train.ema_decay is not None
            return create_state(task, optimizer, key, parts.example, ema=ema)

        def make_batches(process_index: int, process_count: int):
            return parts.make_batches(steps + 5 + CHAOS_STEPS, process_index, process_count)

        self.config = config
        self.evaluates = parts.evaluates
        late = "after lr drop" if config.optimizer.schedule == "step" else "late"
        self._state_steps = {"fresh": 0, "mid-training": drop // 2, late: drop + 5}
        self._create = jax.jit(create)
        self._optimizer = optimizer
        self._build_task = parts.build_task
        self.make_batches = make_batches
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
        """The state after so many steps on the first `devices` devices; the last one's metrics.

        With dtype "float64" the state's numbers are widened; jax_enable_x64 is then to be set.
        """
        if dtype == "float64":
            state = jax.tree.map(
                lambda x: x.astype(np.float64) if x.dtype.kind == "f" else x, state
            )
        mesh = make_mesh(_first(devices))
        step_function = self._step_function(devices, dtype)
        state, metrics = replicate(state, mesh), {}
        batches = self.make_batches(jax.process_index(), jax.process_count())(int(state.step))
        for batch in itertools.islice(batches, steps):
            state, metrics = step_function(state, put_batch(batch, mesh))
        return jax.device_get((state, metrics))

    def results(self, state: TrainState, devices: int) -> bytes:
        """The COCO results file of an evaluation; every device predicts as many images."""
        dataset = load_val_set(self.config)
        config = self.config.copy_and_resolve_references()
        config.evaluation.batch_size *= devices
        mesh = make_mesh(_first(devices))
        task = build_task(config, len(dataset.categories))
        predict = jax.jit(task.predict, out_shardings=batch_sharding(mesh))
        batches = build_eval_batches(
            config, dataset, process_index=jax.process_index(), process_count=jax.process_count()
        )
        predictions = predict_batches(predict, inference_variables(state), batches(), mesh)
        ids = [image.id for image in dataset.images]
        threshold = config.evaluation.mask_threshold
        own = list(coco_results(predictions, ids, dataset.category_ids, threshold))
        found = [result for part in gather_json(own) for result in part]
        # A larger batch takes the images of a canvas in another order.
        return json.dumps(sorted(found, key=lambda result: ids.index(result["image_id"]))).encode()

    def _step_function(self, devices: int, dtype: str):
        if (devices, dtype) not in self._step_functions:
            config = self.config.copy_and_resolve_references()
            config.model.dtype = dtype
            mesh = make_mesh(_first(devices))
            step = make_train_step(
                self._build_task(config, mesh),
                self._optimizer,
                seed=config.seed,
                accumulate_steps=config.train.accumulate_steps,
                ema_decay=config.train.ema_decay,
            )
            self._step_functions[devices, dtype] = jax.jit(step, out_shardings=replicated(mesh))
        return self._step_functions[devices, dtype]


def _first(devices: int) -> list | None:
    """So many devices, for `make_mesh`, which orders all of several processes itself."""
    return None if devices == jax.device_count() else jax.devices()[:devices]


def recording(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer, with the gradient kept beside its own state."""

    def init(params):
        return {"gradient": jax.tree.map(jnp.zeros_like, params), "own": optimizer.init(params)}

    def update(gradient, state, params):
        moves, own = optimizer.update(gradient, state["own"], params)
        return moves, {"gradient": gradient, "own": own}

    return optax.GradientTransformation(init, update)


def global_batches(lab: Lab, hosts: int, first_step: int, steps: int) -> Iterator[Batch]:
    """What the loader gives to so many hosts, their rows put together; no device has a part."""
    streams = [lab.make_batches(host, hosts)(first_step) for host in range(hosts)]
    for parts in itertools.islice(zip(*streams, strict=True), steps):
        yield jax.tree.map(lambda *rows: np.concatenate(rows), *parts)


def one_ulp_away(state: TrainState, seed: int) -> TrainState:
    """The state with each parameter moved to a neighbouring float, up or down at random."""
    rng = np.random.default_rng(seed)

    def move(x: np.ndarray) -> np.ndarray:
        return np.nextafter(x, np.where(rng.random(x.shape) < 0.5, -np.inf, np.inf).astype(x.dtype))

    return state.replace(params=jax.tree.map(move, state.params))


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
