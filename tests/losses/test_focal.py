"""solojax.losses.focal against the formula of Lin et al. 2017, and at extreme logits."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import plain_losses
from helpers.tiny import quick_jit

from solojax.losses.focal import category_focal_loss

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 4, (2, 7, 3)).astype(np.float32)
CATEGORY = RNG.integers(0, 4, (2, 7)).astype(np.int32)  # 3 is background


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.4, 1.5), (0.5, 0.5)])
def test_every_cell_and_class_is_the_formula(alpha, gamma):
    out = category_focal_loss(LOGITS, CATEGORY, alpha=alpha, gamma=gamma)
    assert out.dtype == jnp.float32
    expected = np.zeros((2, 7, 3))
    for b, g, k in np.ndindex(2, 7, 3):
        expected[b, g, k] = plain_losses.focal(LOGITS[b, g, k], CATEGORY[b, g] == k, alpha, gamma)
    np.testing.assert_allclose(out, expected, rtol=1e-5)


def test_worked_examples():
    logits = jnp.zeros((1, 2, 1))
    out = category_focal_loss(logits, jnp.array([[0, 1]]))
    expected = [[[0.25 * 0.25 * math.log(2)], [0.75 * 0.25 * math.log(2)]]]
    np.testing.assert_allclose(out, expected, rtol=1e-6)


def test_without_focus_it_is_half_the_cross_entropy():
    out = category_focal_loss(LOGITS, CATEGORY, alpha=0.5, gamma=0.0)
    positive = CATEGORY[..., None] == np.arange(3)
    log_p = -np.logaddexp(0, np.where(positive, -LOGITS, LOGITS).astype(np.float64))
    np.testing.assert_allclose(out, -0.5 * log_p, rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_extreme_logits_give_finite_losses_and_gradients(gamma):
    logits = np.array([[[-1e4, -110, -30, 0, 30, 110, 1e4]]], np.float32).repeat(2, axis=1)
    for category in (0, 7):
        targets = np.array([[category, category]], np.int32)

        def total(x, targets=targets):
            return jnp.sum(category_focal_loss(x, targets, gamma=gamma))

        value, gradient = quick_jit(jax.value_and_grad(total))(logits)
        assert np.isfinite(value) and np.all(np.isfinite(gradient))
    out = category_focal_loss(logits, np.full((1, 2), 7, np.int32), gamma=gamma)
    np.testing.assert_allclose(out[0, 0, -2:], [0.75 * 110, 0.75 * 1e4], rtol=1e-6)


def test_bfloat16_logits_are_computed_in_float32():
    low = jnp.asarray(LOGITS, jnp.bfloat16)
    out = category_focal_loss(low, CATEGORY)
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, category_focal_loss(low.astype(jnp.float32), CATEGORY))


def test_gradient_is_that_of_finite_differences():
    def total(x):
        return jnp.sum(category_focal_loss(x, CATEGORY))

    gradient = np.asarray(quick_jit(jax.grad(total))(LOGITS))
    step = 1e-5
    for b, g, k in np.ndindex(2, 7, 3):
        positive, logit = CATEGORY[b, g] == k, float(LOGITS[b, g, k])
        up, down = (plain_losses.focal(logit + s, positive) for s in (step, -step))
        assert abs(gradient[b, g, k] - (up - down) / (2 * step)) < 1e-5
