"""solojax.losses.mask against the formulas in float64, and at extreme logits."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import plain_losses
from helpers.tiny import quick_jit

from solojax.losses.mask import bce_mask_loss, focal_mask_loss

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 5, (2, 3, 6, 5)).astype(np.float32)
TARGETS = RNG.random((2, 3, 6, 5)) < 0.3
EXTREMES = np.array([[-1e4, -100, -30, 0, 30, 100, 1e4]], np.float32)  # a mask of one row
LOSSES = {
    "focal": focal_mask_loss,
    "sharp focal": functools.partial(focal_mask_loss, gamma=0.5),
    "bce": bce_mask_loss,
}


def plain_bce(logit, is_positive, positive_weight=2.0):
    """-w log(p) for foreground, -log(1 - p) for background."""
    log_p, log_not_p = -np.logaddexp(0, -np.float64(logit)), -np.logaddexp(0, np.float64(logit))
    return -positive_weight * log_p if is_positive else -log_not_p


def plain_mean(loss_of_pixel):
    """The loss of every mask of LOGITS, pixel by pixel."""
    means = np.zeros(LOGITS.shape[:2])
    for index in np.ndindex(means.shape):
        pixels = zip(LOGITS[index].ravel(), TARGETS[index].ravel(), strict=True)
        means[index] = np.mean([loss_of_pixel(np.float64(x), t) for x, t in pixels])
    return means


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 1.5), (0.5, 0.0)])
def test_focal_of_every_mask_is_the_formula(alpha, gamma):
    out = quick_jit(functools.partial(focal_mask_loss, alpha=alpha, gamma=gamma))(LOGITS, TARGETS)
    assert out.dtype == jnp.float32
    exact = plain_mean(lambda x, t: plain_losses.focal(x, t, alpha, gamma))
    np.testing.assert_allclose(out, exact, rtol=1e-5)


@pytest.mark.parametrize("weight", [2.0, 1.0, 5.0])
def test_bce_of_every_mask_is_the_formula(weight):
    out = quick_jit(functools.partial(bce_mask_loss, positive_weight=weight))(LOGITS, TARGETS)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, plain_mean(lambda x, t: plain_bce(x, t, weight)), rtol=1e-5)


def test_worked_examples():
    logits = jnp.zeros((1, 4))
    targets = jnp.array([[1, 0, 0, 0]])
    np.testing.assert_allclose(bce_mask_loss(logits, targets), 5 / 4 * math.log(2), rtol=1e-6)
    expected = (0.25 + 3 * 0.75) / 4 * 0.25 * math.log(2)
    np.testing.assert_allclose(focal_mask_loss(logits, targets), expected, rtol=1e-6)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_soft_target_lies_between_the_hard_ones(loss):
    loss, logits = quick_jit(loss), LOGITS[0]
    nothing, everything, third = (
        np.asarray(loss(logits, np.full(logits.shape, t, np.float32))) for t in (0, 1, 1 / 3)
    )
    np.testing.assert_allclose(third, (2 * nothing + everything) / 3, rtol=1e-5)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("target", [False, True])
def test_extreme_logits_give_finite_losses_and_gradients(loss, target):
    pixels = EXTREMES.T[:, None]  # every logit a mask of its own
    targets = np.full(pixels.shape, target)
    total = quick_jit(jax.value_and_grad(lambda x: jnp.sum(loss(x, targets))))
    value, gradient = total(pixels)
    assert np.isfinite(value) and np.all(np.isfinite(gradient))
    # What is wholly wrong costs its logit, and pulls with its whole weight; what is right nothing.
    per_pixel = np.asarray(quick_jit(loss)(pixels, targets))
    weight = {True: 0.25, False: 0.75} if loss is not bce_mask_loss else {True: 2.0, False: 1.0}
    wrong = slice(0, 2) if target else slice(-2, None)
    right = slice(-2, None) if target else slice(0, 2)
    np.testing.assert_allclose(per_pixel[wrong], weight[target] * np.abs(EXTREMES[0, wrong]))
    sign = -1 if target else 1
    np.testing.assert_allclose(gradient[wrong].ravel(), sign * weight[target], rtol=1e-6)
    np.testing.assert_allclose(per_pixel[right], 0, atol=1e-30)
    np.testing.assert_allclose(gradient[right].ravel(), 0, atol=1e-30)


@pytest.mark.parametrize(
    ("loss", "plain"), [(focal_mask_loss, plain_losses.focal), (bce_mask_loss, plain_bce)]
)
def test_gradient_is_that_of_finite_differences(loss, plain):
    logits, targets = LOGITS[0, 0], TARGETS[0, 0]
    gradient = np.asarray(quick_jit(jax.grad(loss))(logits, targets))
    step = 1e-4
    for index in np.ndindex(logits.shape):
        x, target = np.float64(logits[index]), targets[index]
        slope = (plain(x + step, target) - plain(x - step, target)) / (2 * step)
        assert abs(gradient[index] - slope / logits.size) < 1e-7


@pytest.mark.parametrize("loss", [focal_mask_loss, bce_mask_loss])
def test_bfloat16_is_computed_in_float32_and_float64_in_float64(loss):
    low = jnp.asarray(LOGITS, jnp.bfloat16)
    out = loss(low, TARGETS)
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, loss(low.astype(jnp.float32), TARGETS))
    with jax.enable_x64(True):
        assert loss(jnp.asarray(LOGITS, jnp.float64), TARGETS).dtype == jnp.float64
