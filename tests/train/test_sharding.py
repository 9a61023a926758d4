"""solojax.train.sharding, and that the number of devices changes no number."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny import (
    NUM_CLASSES,
    assert_same_bits,
    quick_jit,
    random_batch,
    random_state,
    record_gradients,
    relative_distance,
    tiny_task,
)

from solojax.errors import InputError
from solojax.models.fpn import FPN
from solojax.models.mask_feature_head import MaskFeatureHead
from solojax.models.resnet import ResNet
from solojax.models.segmenter import Segmenter
from solojax.models.solov2_head import SOLOv2Head
from solojax.structures import GridSpec
from solojax.tasks.instance_segmentation import InstanceSegmentation
from solojax.train.optimizers import sgd
from solojax.train.sharding import (
    check_batch_size,
    evaluation_mesh,
    gather_json,
    local_rows,
    make_mesh,
    prefetch,
    put_batch,
    replicated,
)
from solojax.train.step import make_train_step

BATCH = random_batch(4, rows=4)
COUNTS = (1, 2, 4)
needs_four = pytest.mark.skipif(jax.device_count() < 4, reason="fewer than 4 devices")


def mesh_of(count):
    return make_mesh(jax.devices()[:count])


def test_the_mesh_takes_all_devices_unless_told():
    assert make_mesh().size == jax.device_count()
    assert mesh_of(1).size == 1


@needs_four
def test_rows_are_spread_in_order_and_come_back_in_order():
    mesh = mesh_of(4)
    batch = put_batch(BATCH, mesh)
    for host, device in zip(jax.tree.leaves(BATCH), jax.tree.leaves(batch), strict=True):
        assert device.dtype == host.dtype
        shards = sorted(device.addressable_shards, key=lambda shard: shard.device.id)
        for row, shard in enumerate(shards):
            np.testing.assert_array_equal(shard.data, host[row : row + 1])
    assert_same_bits(local_rows(batch), BATCH)
    # In whatever order the devices stand.
    shuffled = make_mesh([jax.devices()[i] for i in (2, 0, 3, 1)])
    assert_same_bits(local_rows(put_batch(BATCH, shuffled)), BATCH)
    everywhere = jax.device_put(BATCH, replicated(mesh))
    assert_same_bits(local_rows(everywhere), BATCH)


@needs_four
def test_batches_that_do_not_divide_are_an_error():
    check_batch_size(8, mesh_of(4), "train.batch_size")
    with pytest.raises(InputError, match="train.batch_size 6 .* 4 devices"):
        check_batch_size(6, mesh_of(4), "train.batch_size")


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_prefetching_keeps_order_and_looks_ahead(depth):
    taken = []

    def batches():
        for index in range(5):
            taken.append(index)
            yield np.full((1, 2), index)

    seen = []
    for host, device in prefetch(batches(), mesh_of(1), depth):
        np.testing.assert_array_equal(host, device)
        seen.append(int(host[0, 0]))
        assert len(taken) == min(seen[-1] + depth, 5)
    assert seen == [0, 1, 2, 3, 4]


def run(task, optimizer, count, *, steps=1, dtype=np.float32):
    """(losses, final state) from one state and batch on that many devices."""
    mesh = mesh_of(count)
    state = random_state(task, optimizer, BATCH, dtype=dtype)
    state = jax.device_put(state, replicated(mesh))
    batch = put_batch(BATCH, mesh)
    step = quick_jit(make_train_step(task, optimizer), out_shardings=replicated(mesh))
    losses = []
    for _ in range(steps):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state)


@functools.cache
def float32_gradient(count):
    (loss,), state = run(tiny_task("batch_norm"), record_gradients(), count)
    return loss, state.opt_state, state.batch_stats


@needs_four
@pytest.mark.parametrize("count", COUNTS[1:])
def test_loss_and_gradient_in_float32(count):
    """BatchNorm, whose statistics are those of all devices' rows, and GroupNorm, in one network."""
    loss, gradient, batch_stats = float32_gradient(count)
    expected_loss, expected_gradient, expected_stats = float32_gradient(1)
    assert abs(loss / expected_loss - 1) < 1e-6
    assert relative_distance(gradient, expected_gradient) < 1e-5
    assert relative_distance(batch_stats, expected_stats) < 1e-5


@functools.cache
def float64_steps(count):
    with jax.enable_x64(True):
        task = tiny_task("batch_norm", dtype=jnp.float64)
        optimizer = sgd(lambda step: 0.01)
        losses, state = run(task, optimizer, count, steps=5, dtype=np.float64)
    return losses, state


@needs_four
@pytest.mark.parametrize("count", COUNTS[1:])
def test_five_steps_in_float64(count):
    losses, state = float64_steps(count)
    expected_losses, expected = float64_steps(1)
    assert expected_losses[-1] < expected_losses[0]
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-9)
    for name in ("params", "opt_state", "batch_stats"):
        assert relative_distance(getattr(state, name), getattr(expected, name)) < 1e-9, name


def test_float64_does_not_leak():
    float64_steps(1)
    assert jnp.zeros(()).dtype == jnp.float32


def whole_network(norm):
    """ResNet-18, pyramid and heads, in float64."""
    grid = GridSpec(
        num_grids=(8, 6, 5, 4, 3),
        scale_ranges=((1, 16), (8, 24), (16, 32), (24, 48), (32, 128)),
    )
    model = Segmenter(
        backbone=ResNet(18, width=32, norm=norm, frozen_stages=-1),
        neck=FPN(32),
        head=SOLOv2Head(NUM_CLASSES, grid.num_grids, 1, channels=32, kernel_channels=32),
        mask_features=MaskFeatureHead(32, 32),
    )
    return InstanceSegmentation(model, grid, NUM_CLASSES, max_positives=16, dtype=jnp.float64)


@needs_four
@pytest.mark.slow
@pytest.mark.parametrize("norm", ["frozen_batch_norm", "batch_norm"])
def test_the_gradient_of_the_whole_network_in_float64(norm):
    """Not in float32, where an input of a ReLU within rounding of 0 makes the gradient jump."""
    with jax.enable_x64(True):
        task, optimizer = whole_network(norm), record_gradients()
        results = [run(task, optimizer, count, dtype=np.float64) for count in COUNTS]
    (expected_loss,), expected = results[0]
    for (loss,), state in results[1:]:
        assert abs(loss / expected_loss - 1) < 1e-9
        assert relative_distance(state.opt_state, expected.opt_state) < 1e-9
        assert relative_distance(state.batch_stats, expected.batch_stats) < 1e-9


def test_evaluation_takes_as_many_devices_as_divide_the_batch():
    devices = jax.local_device_count()
    for batch_size in range(1, 9):
        size = evaluation_mesh(batch_size).size
        assert batch_size % size == 0
        assert not any(batch_size % n == 0 for n in range(size + 1, devices + 1))


def test_evaluation_batches_that_the_processes_do_not_divide_are_an_error(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    with pytest.raises(InputError, match="evaluation.batch_size 4 .* 3 processes; use a multiple"):
        evaluation_mesh(4)


def test_one_process_gathers_what_it_has():
    message = {"a": (1, 2.5)}
    (gathered,) = gather_json(message)
    assert gathered is message
