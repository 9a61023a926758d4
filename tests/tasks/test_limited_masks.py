"""Objects whose masks do not supervise: their cells learn the class, the mask branch nothing."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import jax
import numpy as np
from helpers import plain_losses
from helpers.outputs import kernels_of, mask_features_of
from helpers.plain_layers import sigmoid
from helpers.plain_targets import assign
from helpers.tiny import (
    CANVAS,
    GRID,
    NUM_CLASSES,
    assert_same_bits,
    quick_jit,
    random_batch,
    random_variables,
    relative_distance,
    tiny_task,
)

BATCH = random_batch(0)
TASK = tiny_task()


@functools.cache
def variables():
    return random_variables(TASK, BATCH)


@functools.cache
def compiled():
    def loss(params, batch):
        state = SimpleNamespace(batch_stats=variables()["batch_stats"])
        weights = TASK.row_weights(batch)
        return TASK.loss_fn(params, state, batch, jax.random.key(0), weights)

    return quick_jit(jax.grad(loss, has_aux=True))


def run(mask_valid):
    """(gradient, metrics) with the masks of these instances alone."""
    batch = BATCH.replace(instances=BATCH.instances.replace(mask_valid=mask_valid))
    gradient, (_, metrics) = jax.device_get(compiled()(variables()["params"], batch))
    return gradient, metrics


def some(seed=1):
    return np.random.default_rng(seed).random(BATCH.instances.valid.shape) < 0.5


def plain_mask_loss(mask_valid):
    """The mean Dice loss over the pairs of chosen instances, in NumPy."""
    outputs = jax.device_get(quick_jit(TASK.forward)(variables(), BATCH))
    instances, losses = BATCH.instances, []
    for row in range(len(BATCH.valid)):
        arrays = (x[row] for x in (instances.boxes, instances.labels, instances.centers))
        pairs = assign(*arrays, instances.valid[row], GRID, CANVAS, NUM_CLASSES)[2]
        features = mask_features_of(outputs)[row].astype(np.float64)
        for cell, n in pairs[: TASK.max_positives]:
            if mask_valid[row, n]:
                wanted = np.unpackbits(instances.masks[row, n], axis=-1)
                kernel = kernels_of(outputs)[row, cell]
                losses.append(plain_losses.dice(sigmoid(features @ kernel), wanted))
    return 3 * np.mean(losses)


def test_the_mask_loss_is_the_mean_over_the_chosen_masks_and_the_category_loss_stays():
    chosen = some()
    _, limited = run(chosen)
    _, whole = run(np.ones_like(chosen))
    np.testing.assert_allclose(limited["loss/mask"], plain_mask_loss(chosen), rtol=1e-5)
    assert abs(limited["loss/mask"] - whole["loss/mask"]) > 1e-3
    assert_same_bits(limited["loss/category"], whole["loss/category"])
    assert limited["targets/positive_pairs"] == whole["targets/positive_pairs"]


def test_all_masks_chosen_is_the_same_as_no_choice():
    gradient, metrics = run(np.ones_like(some()))
    expected, expected_metrics = run(None)  # another program, which adds in another order
    assert relative_distance(gradient, expected) < 1e-6
    np.testing.assert_allclose(
        list(metrics.values()), [expected_metrics[name] for name in metrics], rtol=1e-6
    )


def test_without_any_chosen_mask_only_the_category_branch_learns():
    gradient, metrics = run(np.zeros_like(some()))
    assert metrics["loss/mask"] == 0 and metrics["loss/category"] > 0
    for leaf in jax.tree.leaves([gradient["kernel"], gradient["mask_features"]]):
        assert not leaf.any()
    assert np.any(gradient["category"]["kernel"])


def test_masks_that_are_not_chosen_change_no_bit():
    chosen = some()
    expected = run(chosen)
    masks = np.where(chosen[..., None, None], BATCH.instances.masks, 0x5A).astype(np.uint8)
    batch = BATCH.replace(instances=BATCH.instances.replace(masks=masks, mask_valid=chosen))
    gradient, (_, metrics) = jax.device_get(compiled()(variables()["params"], batch))
    assert_same_bits((gradient, metrics), expected)
