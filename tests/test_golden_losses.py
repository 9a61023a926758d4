"""Dice and focal loss, values and gradients, against tests/golden/matrix_nms/losses.npz."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.golden import load_arrays

from solojax.losses.dice import dice_loss
from solojax.losses.focal import category_focal_loss

ABSOLUTE = 1e-6


def recorded():
    return load_arrays("matrix_nms/losses.npz")


def binary_focal(logits, targets, **settings):
    """One class per logit: label 0 where the target is 1, background elsewhere."""
    category = jnp.where(jnp.asarray(targets) > 0, 0, 1)
    return category_focal_loss(logits[..., None], category, **settings)[..., 0]


def test_dice():
    masks, targets = jnp.asarray(recorded()["dice/input"]), jnp.asarray(recorded()["dice/target"])
    ours = dice_loss(masks, targets)
    np.testing.assert_allclose(ours, recorded()["dice/loss"], rtol=0, atol=ABSOLUTE)


def test_dice_gradient():
    masks, targets = jnp.asarray(recorded()["dice/input"]), jnp.asarray(recorded()["dice/target"])
    ours = jax.grad(lambda m: jnp.sum(dice_loss(m, targets)))(masks)
    wanted = recorded()["dice/grad_input_of_sum"]
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=ABSOLUTE)


def test_focal():
    logits, targets = recorded()["focal/logits"], recorded()["focal/target"]
    assert logits.min() == -110 and logits.max() == 110
    ours = np.asarray(binary_focal(jnp.asarray(logits), targets))
    np.testing.assert_allclose(ours, recorded()["focal/loss_none"], rtol=0, atol=ABSOLUTE)
    total = ours.sum(dtype=np.float64)
    np.testing.assert_allclose(total, recorded()["focal/sum"], rtol=ABSOLUTE)


def test_focal_gradient():
    logits, targets = jnp.asarray(recorded()["focal/logits"]), recorded()["focal/target"]
    ours = jax.grad(lambda z: jnp.sum(binary_focal(z, targets)))(logits)
    np.testing.assert_allclose(ours, recorded()["focal/grad_of_sum"], rtol=0, atol=ABSOLUTE)


def test_focal_without_focus_is_cross_entropy():
    """Recorded without class weights (alpha -1 there): twice ours with both weights at a half."""
    logits, targets = jnp.asarray(recorded()["focal/logits"]), recorded()["focal/target"]
    ours = 2 * binary_focal(logits, targets, alpha=0.5, gamma=0.0)
    wanted = recorded()["focal/alpha_neg1_gamma0_none"]
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=ABSOLUTE)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.5])
def test_focal_gradient_is_finite_at_extreme_logits(gamma):
    logits, targets = jnp.asarray(recorded()["focal/logits"]), recorded()["focal/target"]
    ours = jax.grad(lambda z: jnp.sum(binary_focal(z, targets, gamma=gamma)))(logits)
    assert np.all(np.isfinite(ours))


def test_focal_reductions():
    """The published wrapper, which was recorded with a loss weight of 1.5."""
    logits, targets = jnp.asarray(recorded()["FocalLoss/pred"]), recorded()["FocalLoss/target"]
    ours = 1.5 * np.asarray(binary_focal(logits, targets))
    weighted = ours * recorded()["FocalLoss/weight"][:, None]
    for value, name in [
        (ours.sum(), "sum"),
        (ours.mean(), "mean"),
        (weighted.mean(), "weighted_mean"),
        (ours.sum() / 4, "avg_factor4"),
    ]:
        np.testing.assert_allclose(value, recorded()[f"FocalLoss/{name}"], rtol=0, atol=ABSOLUTE)
