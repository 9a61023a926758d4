"""DenseCL on 1, 2 and 4 devices: the same losses, gradients and queues, and what is sent for it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.small_densecl import ROWS, SIDE, WIDTH, random_views, small_state, small_task
from helpers.tiny import quick_jit, record_gradients, relative_distance

from solojax.ops.shuffle import GroupShuffle
from solojax.train.collectives import collective_instructions
from solojax.train.optimizers import sgd
from solojax.train.sharding import (
    batch_sharding,
    make_mesh,
    put_batch,
    replicated,
    state_sharding,
)
from solojax.train.step import make_train_step

COUNTS = (1, 2, 4)
GROUPS = (4, 8)  # on four devices one group a device, and half of one
pytestmark = pytest.mark.skipif(jax.device_count() < 4, reason="fewer than 4 devices")


def build(count, group, dtype=jnp.float32, shard_queues=False, **options):
    """(mesh, task) of that many devices."""
    mesh = make_mesh(jax.devices()[:count])
    rows = batch_sharding(mesh)
    options["queue_sharding"] = rows if shard_queues else None
    return mesh, small_task(group=group, shuffle=GroupShuffle(group, rows), dtype=dtype, **options)


def run(count, group, optimizer, *, steps=1, dtype=np.float32, shard_queues=False):
    """(losses, final state) from one state on that many devices, a new batch in every step."""
    mesh, task = build(count, group, dtype, shard_queues)
    state = small_state(task, optimizer, dtype)
    shardings = state_sharding(state, mesh, False, task.is_spread)
    state = jax.device_put(state, shardings)
    step = quick_jit(make_train_step(task, optimizer), out_shardings=(shardings, replicated(mesh)))
    losses = []
    for index in range(steps):
        state, metrics = step(state, put_batch(random_views(index), mesh))
        losses.append([float(metrics[name]) for name in ("loss", "loss/global", "loss/dense")])
    return np.array(losses), jax.device_get(state)


@functools.cache
def float64_steps(count, group, shard_queues=False):
    with jax.enable_x64(True):
        optimizer = sgd(lambda step: 0.03, momentum=0.9)
        return run(count, group, optimizer, steps=5, dtype=np.float64, shard_queues=shard_queues)


@pytest.mark.parametrize(
    ("count", "group", "shard_queues"),
    [
        pytest.param(2, 4, False, marks=pytest.mark.slow),
        (4, 4, False),
        pytest.param(4, 8, False, marks=pytest.mark.slow),
        pytest.param(4, 4, True, marks=pytest.mark.slow),
    ],
)
def test_five_steps_in_float64(count, group, shard_queues):
    """Both encoders, running statistics, queues and pointers."""
    losses, state = float64_steps(count, group, shard_queues)
    expected_losses, expected = float64_steps(1, group)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-9)
    assert relative_distance(state, expected) < 1e-9
    assert state.extra["queues"]["global"]["position"] == 5 * ROWS % 64


@functools.cache
def float32_gradient(count):
    losses, state = run(count, 4, record_gradients())
    return losses[0], state


@pytest.mark.parametrize("count", COUNTS[1:])
def test_loss_gradient_and_queues_in_float32(count):
    losses, state = float32_gradient(count)
    expected_losses, expected = float32_gradient(1)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-6)
    assert relative_distance(state.opt_state, expected.opt_state) < 1e-3  # through BatchNorm
    assert relative_distance(state.extra["queues"], expected.extra["queues"]) < 1e-5


def test_groups_decide_the_numbers_as_devices_would():
    losses, _ = float64_steps(1, 4)
    other, _ = float64_steps(1, 8)
    assert np.abs(losses / other - 1).max() > 1e-3


def compiled_step(group, **options):
    """The training step on four devices, and its initial state."""
    mesh, task = build(4, group, **options)
    optimizer = sgd(lambda step: 0.03, momentum=0.9)
    state = small_state(task, optimizer)
    shardings = state_sharding(state, mesh, False, task.is_spread)
    state = jax.device_put(state, shardings)
    step = quick_jit(
        make_train_step(task, optimizer),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
    return step.lower(state, put_batch(random_views(), mesh)).compile(), state


@pytest.mark.parametrize("group", GROUPS)
def test_what_the_devices_send(group):
    """Rows of images go to other devices, in 8 bits; keys, gradients and sums to all; the batch to
    none."""
    compiled, state = compiled_step(group)
    found = collective_instructions(compiled.as_text())
    assert any(each.op == "all-to-all" for each in found)
    keys = ROWS * WIDTH * 4
    rows_of_images = max(group, ROWS // 4) * SIDE * SIDE * 3
    gathered = [each for each in found if each.op == "all-gather"]
    for each in gathered:
        assert each.bytes <= max(2 * keys, 0 if group <= ROWS // 4 else rows_of_images), each
    for each in found:
        if each.op in ("all-to-all", "collective-permute"):
            assert each.bytes <= rows_of_images, each
    image_types = {
        dtype
        for each in found
        for dtype, shape in each.arrays
        if np.prod(shape) % (SIDE * SIDE * 3) == 0
    }
    assert image_types == {"u8"}
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params)) * 4
    reduced = sum(each.bytes * each.times for each in found if each.op == "all-reduce")
    assert reduced < 3 * parameters + 20_000


def test_spread_queues_stay_where_they_are():
    """Queries travel instead, whatever the queue's length; a device holds its part alone."""
    length, cells = 4096, 6
    compiled, state = compiled_step(4, shard_queues=True, queue_length=length)
    vectors = [queue["vectors"] for queue in state.extra["queues"].values()]
    assert all(each.addressable_shards[0].data.shape == (length // 4, WIDTH) for each in vectors)
    found = collective_instructions(compiled.as_text())
    queries = ROWS * cells * WIDTH * 4
    gathered = [each.bytes for each in found if each.op == "all-gather"]
    assert max(gathered) == queries and gathered.count(queries) == 1
    scattered = [each.bytes for each in found if each.op == "reduce-scatter"]
    assert max(scattered) == queries // 4
    assert all(each.times == 1 for each in found)  # none of it in the loop over the queue
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params)) * 4
    sent = sum(each.bytes for each in found)
    assert sent < 3 * parameters + 20_000 < length * WIDTH * 4
    whole, _ = compiled_step(4, queue_length=length)
    saved, part = (each.memory_analysis().argument_size_in_bytes for each in (whole, compiled))
    assert saved - part == 2 * length * WIDTH * 4 * 3 // 4
