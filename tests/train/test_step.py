"""solojax.train.step: on a linear toy recomputed in NumPy, and on instance segmentation."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.tiny import (
    assert_same_bits,
    quick_jit,
    random_batch,
    random_state,
    record_gradients,
    relative_distance,
    tiny_task,
)

from solojax.train.optimizers import make_schedule, sgd
from solojax.train.state import create_state, split_params
from solojax.train.step import make_train_step

RNG = np.random.default_rng(0)
TOY_BATCH = {
    "x": RNG.normal(size=(8, 3)).astype(np.float32),
    "y": RNG.normal(size=8).astype(np.float32),
    "count": RNG.integers(1, 5, 8).astype(np.float32),
}


@dataclasses.dataclass(frozen=True)
class Toy:
    """Weighted least squares with one frozen parameter; it reports what it is given."""

    def init(self, rng, batch):
        params = {"slope": jnp.array([1.0, -2.0, 0.5]), "offset": jnp.array(0.25)}
        zero = jnp.zeros(())
        return {
            "params": params,
            "batch_stats": {"first_y": zero},
            "extra": {"calls": zero},
        }

    def is_trainable(self, path):
        return path == ("slope",)

    def row_weights(self, batch):
        # A mean over things of which every row has another number.
        return {"row": jnp.full_like(batch["count"], 1 / jnp.sum(batch["count"]))}

    def loss_fn(self, params, state, batch, rng, weights):
        error = batch["x"] @ params["slope"] + params["offset"] - batch["y"]
        loss = jnp.sum(batch["count"] * error**2 * weights["row"])
        updates = {
            "batch_stats": {"first_y": batch["y"][0]},
            "extra": {"calls": state.extra["calls"] + 1},
        }
        return loss, (updates, {"loss": loss, "noise": jax.random.normal(rng)})


def toy_loss_and_gradient(slope):
    x, y, count = (TOY_BATCH[key].astype(np.float64) for key in ("x", "y", "count"))
    error = x @ slope + 0.25 - y
    return (count * error**2).sum() / count.sum(), 2 * (count * error) @ x / count.sum()


def toy_run(steps, optimizer, **options):
    """States and metrics of the first steps."""
    state = create_state(Toy(), optimizer, jax.random.key(0), TOY_BATCH, ema="ema_decay" in options)
    step = quick_jit(make_train_step(Toy(), optimizer, **options))
    history = []
    for _ in range(steps):
        state, metrics = step(state, TOY_BATCH)
        history.append((state, metrics))
    return history


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_steps_are_those_of_a_numpy_loop_whatever_the_micro_batches(parts):
    schedule = make_schedule("step", peak=0.1, total_steps=3, milestones=(2,))
    optimizer = sgd(schedule, momentum=0.9, weight_decay=0.01, clip_norm=2.0)
    slope, buffer = np.array([1.0, -2.0, 0.5]), 0.0
    history = toy_run(3, optimizer, accumulate_steps=parts, schedule=schedule)
    for index, (state, metrics) in enumerate(history):
        loss, gradient = toy_loss_and_gradient(slope)
        norm = np.linalg.norm(gradient)
        rate = (0.1, 0.1, 0.01)[index]
        buffer = 0.9 * buffer + gradient * min(1, 2.0 / norm) + 0.01 * slope
        slope = slope - rate * buffer
        assert int(state.step) == index + 1
        np.testing.assert_allclose(state.params["slope"], slope, rtol=1e-5)
        assert state.params["offset"] == 0.25  # frozen
        np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
        np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
        np.testing.assert_allclose(metrics["learning_rate"], rate, rtol=1e-6)
        # Updates pass from one micro-batch to the next.
        assert state.extra["calls"] == parts * (index + 1)
        # Micro-batch i holds rows i, i + parts, ...: the last one starts at row parts - 1.
        assert state.batch_stats["first_y"] == TOY_BATCH["y"][parts - 1]


def test_every_step_and_micro_batch_has_a_key_of_its_own():
    def noise(steps, parts, seed):
        history = toy_run(steps, optax.sgd(0.1), accumulate_steps=parts, seed=seed)
        return [float(metrics["noise"]) for _, metrics in history]

    alone = noise(3, 1, seed=0)
    assert alone == noise(3, 1, seed=0)
    assert len(set(alone) | set(noise(3, 1, seed=1))) == 6
    # Sums over two draws of a normal: equal draws would be twice one of them.
    root = jax.random.fold_in(jax.random.key(0), 0)
    draws = [float(jax.random.normal(jax.random.fold_in(root, i))) for i in range(2)]
    np.testing.assert_allclose(noise(1, 2, seed=0), [sum(draws)], rtol=1e-6)
    assert draws[0] != draws[1]


def test_the_moving_average_follows_the_new_parameters():
    history = toy_run(3, optax.sgd(0.1), ema_decay=0.75)
    average = np.array([1.0, -2.0, 0.5])
    for state, _ in history:
        average = 0.75 * average + 0.25 * np.asarray(state.params["slope"], np.float64)
        np.testing.assert_allclose(state.ema_params["slope"], average, rtol=1e-6)
    assert toy_run(1, optax.sgd(0.1))[0][0].ema_params is None


# Instance segmentation from here on.

BATCH = random_batch(2, rows=4)


@functools.cache
def recorded(parts):
    """(metrics, gradient) of one step over the batch in that many micro-batches.

    The losses are averaged over groups of two rows, which micro-batches tear apart.
    """
    task = tiny_task(loss_group_images=2)
    optimizer = record_gradients()
    step = make_train_step(task, optimizer, accumulate_steps=parts)
    state = random_state(task, optimizer, BATCH)
    state, metrics = quick_jit(step)(state, BATCH)
    return jax.device_get((metrics, state.opt_state))


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_add_up_to_the_whole_batch(parts):
    metrics, gradient = recorded(parts)
    expected_metrics, expected_gradient = recorded(1)
    assert metrics.keys() == expected_metrics.keys()
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=2e-6, err_msg=name)
    assert relative_distance(gradient, expected_gradient) < 1e-5
    norm = np.sqrt(sum(np.sum(leaf.astype(np.float64) ** 2) for leaf in jax.tree.leaves(gradient)))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)


def test_frozen_stages_neither_move_nor_count_in_the_clip_norm():
    task = tiny_task(frozen_stages=1, loss_group_images=2)
    optimizer = sgd(lambda step: 0.1, momentum=0.9, weight_decay=0.05, clip_norm=0.5)
    before = random_state(task, optimizer, BATCH)
    step = quick_jit(make_train_step(task, optimizer))
    after, metrics = jax.device_get(step(before, BATCH))

    everything = recorded(1)[1]
    gradient = {name: tree for name, tree in everything.items() if name != "backbone"}
    norm = np.sqrt(sum(np.sum(leaf.astype(np.float64) ** 2) for leaf in jax.tree.leaves(gradient)))
    whole = np.sqrt(
        sum(np.sum(leaf.astype(np.float64) ** 2) for leaf in jax.tree.leaves(everything))
    )
    assert whole > 1.01 * norm > norm > 0.5  # what is frozen would show
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)

    assert_same_bits(after.params["backbone"], before.params["backbone"])
    trainable, frozen = split_params(before.params, task.is_trainable)
    assert set(frozen) == {"backbone"} and "backbone" not in trainable
    momentum = jax.tree.map(lambda g, p: g * (0.5 / norm) + 0.05 * p, gradient, trainable)
    (trace,) = [state.trace for state in after.opt_state if isinstance(state, optax.TraceState)]
    assert relative_distance(trace, momentum) < 1e-5
    moved = split_params(after.params, task.is_trainable)[0]
    expected = jax.tree.map(lambda p, m: p - 0.1 * m, trainable, momentum)
    assert relative_distance(moved, expected) < 1e-6
