"""solojax.losses.dice against its formula and its derivative."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import plain_losses
from helpers.tiny import quick_jit

from solojax.losses.dice import dice_loss

RNG = np.random.default_rng(0)
P = RNG.random((2, 3, 6, 5)).astype(np.float32)
Q = RNG.random((2, 3, 6, 5)) < 0.4


@pytest.mark.parametrize("epsilon", [1e-3, 0.0])
def test_every_mask_is_the_formula(epsilon):
    out = np.asarray(dice_loss(P, Q, epsilon=epsilon))
    assert out.shape == (2, 3) and out.dtype == np.float32
    for index in np.ndindex(2, 3):
        assert abs(out[index] - plain_losses.dice(P[index], Q[index], epsilon)) < 1e-6


def test_worked_examples():
    p = jnp.array([[[0.5, 0.5]], [[1.0, 0.0]], [[0.0, 1.0]]])
    q = jnp.array([[[1, 0]]] * 3, bool)
    np.testing.assert_allclose(dice_loss(p, q, epsilon=0.0), [1 - 1 / 1.5, 0.0, 1.0], rtol=1e-6)


def test_an_empty_target_costs_one_and_an_empty_prediction_of_it_too():
    empty = np.zeros((1, 6, 5), bool)
    np.testing.assert_allclose(dice_loss(P[0, :1], empty), [1.0])
    np.testing.assert_allclose(dice_loss(jnp.zeros((1, 6, 5)), empty), [1.0])


def test_the_gradient_is_the_derivative_of_the_quotient():
    gradient = quick_jit(jax.grad(lambda p: jnp.sum(dice_loss(p, Q))))(P)
    p, q = P.astype(np.float64), Q.astype(np.float64)
    overlap = (p * q).sum((-2, -1), keepdims=True)
    squares = (p * p).sum((-2, -1), keepdims=True) + (q * q).sum((-2, -1), keepdims=True) + 2e-3
    exact = -2 * q / squares + 4 * overlap * p / squares**2
    np.testing.assert_allclose(gradient, exact, rtol=1e-4, atol=1e-7)


def test_without_epsilon_an_empty_mask_of_an_empty_target_has_a_gradient():
    """Padded pairs are such; a 0 / 0 would spoil the gradient although they are masked out."""

    def loss(logits):
        dice = dice_loss(jax.nn.sigmoid(logits), jnp.zeros((2, 3, 3)), epsilon=0.0)
        return jnp.sum(jnp.where(jnp.array([False, True]), dice, 0.0))

    logits = jnp.full((2, 3, 3), -120.0).at[1].set(0.0)
    value, gradient = jax.value_and_grad(loss)(logits)
    assert value == 1.0
    assert np.isfinite(gradient).all() and not np.asarray(gradient[0]).any()
