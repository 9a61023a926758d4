"""solojax.train.optimizers against loops over PyTorch's and mmdetection's rules."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from solojax.errors import InputError
from solojax.train.optimizers import adamw, make_schedule, sgd

RNG = np.random.default_rng(0)
PARAMS = {"kernel": RNG.normal(size=(3, 2)), "bias": RNG.normal(size=2)}
GRADIENTS = [
    {"kernel": scale * RNG.normal(size=(3, 2)), "bias": scale * RNG.normal(size=2)}
    for scale in (1.0, 30.0, 0.1, 5.0)  # the second is clipped, and the last on some settings
]


def run(optimizer, dtype=np.float32):
    """Parameters after each of the recorded gradients."""
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), PARAMS)
    state = optimizer.init(params)

    @jax.jit
    def move(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    history = []
    for gradient in GRADIENTS:
        gradient = jax.tree.map(lambda x: jnp.asarray(x, dtype), gradient)
        params, state = move(params, state, gradient)
        history.append(params)
    return history


def clipped(gradient, max_norm):
    norm = math.sqrt(sum((x**2).sum() for x in gradient.values()))
    factor = 1.0 if max_norm is None else min(1.0, max_norm / norm)
    return {name: factor * x for name, x in gradient.items()}


def sgd_by_loop(rates, momentum, weight_decay, max_norm):
    """torch.optim.SGD: the decay joins the clipped gradient, the buffer holds gradients."""
    params = dict(PARAMS)
    buffers = {name: 0.0 for name in params}
    history = []
    for rate, gradient in zip(rates, GRADIENTS, strict=True):
        gradient = clipped(gradient, max_norm)
        for name in params:
            total = gradient[name] + weight_decay * params[name]
            buffers[name] = momentum * buffers[name] + total
            params[name] = params[name] - rate * buffers[name]
        history.append(dict(params))
    return history


def adamw_by_loop(rates, weight_decay, max_norm, beta1=0.9, beta2=0.999, epsilon=1e-8):
    """Loshchilov and Hutter 2019, algorithm 2, as in optax: the decay is multiplied by the rate."""
    params = dict(PARAMS)
    first = {name: 0.0 for name in params}
    second = {name: 0.0 for name in params}
    history = []
    for step, (rate, gradient) in enumerate(zip(rates, GRADIENTS, strict=True), start=1):
        gradient = clipped(gradient, max_norm)
        for name in params:
            first[name] = beta1 * first[name] + (1 - beta1) * gradient[name]
            second[name] = beta2 * second[name] + (1 - beta2) * gradient[name] ** 2
            mean, square = first[name] / (1 - beta1**step), second[name] / (1 - beta2**step)
            move = mean / (np.sqrt(square) + epsilon) + weight_decay * params[name]
            params[name] = params[name] - rate * move
        history.append(dict(params))
    return history


def check(history, expected, rtol):
    for ours, plain in zip(history, expected, strict=True):
        for name in plain:
            np.testing.assert_allclose(ours[name], plain[name], rtol=rtol, atol=rtol)


@pytest.mark.parametrize("max_norm", [None, 35.0, 5.0])
def test_sgd_is_that_of_pytorch_with_a_rate_that_drops(max_norm):
    rates = [0.1, 0.1, 0.01, 0.01]
    schedule = make_schedule("step", peak=0.1, total_steps=4, milestones=(2,))
    optimizer = sgd(schedule, momentum=0.9, weight_decay=0.05, clip_norm=max_norm)
    with jax.enable_x64(True):
        history = run(optimizer, np.float64)
    check(history, sgd_by_loop(rates, 0.9, 0.05, max_norm), rtol=1e-12)


def test_a_gradient_of_exactly_the_norm_is_kept_and_a_larger_one_scaled():
    for gradient, expected in (([3.0, 4.0], [3.0, 4.0]), ([6.0, 8.0], [3.0, 4.0])):
        optimizer = sgd(lambda step: 1.0, momentum=0.0, weight_decay=0.0, clip_norm=5.0)
        params = jnp.zeros(2)
        updates, _ = optimizer.update(jnp.array(gradient), optimizer.init(params), params)
        np.testing.assert_allclose(updates, -np.array(expected), rtol=1e-6)


@pytest.mark.parametrize("max_norm", [None, 5.0])
def test_adamw_is_the_published_algorithm(max_norm):
    schedule = make_schedule("constant", peak=0.01, total_steps=4)
    optimizer = adamw(schedule, weight_decay=0.05, clip_norm=max_norm)
    with jax.enable_x64(True):
        history = run(optimizer, np.float64)
    check(history, adamw_by_loop([0.01] * 4, 0.05, max_norm), rtol=1e-10)


def rates_of(schedule, steps):
    compiled = jax.jit(schedule)
    return [float(compiled(step)) for step in steps]


def test_steps_multiply_from_each_milestone_on():
    schedule = make_schedule(
        "step", peak=0.02, total_steps=40, milestones=(33, 27), decay_factor=0.1
    )
    expected = [0.02, 0.02, 0.002, 0.002, 0.0002, 0.0002]
    np.testing.assert_allclose(rates_of(schedule, [0, 26, 27, 32, 33, 39]), expected, rtol=1e-6)


def test_warm_up_is_that_of_mmdetection():
    """lr (1 - (1 - k / n) (1 - f)): 0.01 of the rate at step 0, all of it from step n on."""
    schedule = make_schedule(
        "step",
        peak=0.01,
        total_steps=1000,
        warmup_steps=500,
        warmup_factor=0.01,
        milestones=(400, 900),
    )
    steps = [0, 1, 250, 399, 400, 499, 500, 899, 900]
    expected = []
    for k in steps:
        regular = 0.01 * 0.1 ** sum(k >= milestone for milestone in (400, 900))
        expected.append(regular * (1 - (1 - min(k, 500) / 500) * (1 - 0.01)))
    np.testing.assert_allclose(rates_of(schedule, steps), expected, rtol=1e-6)
    # Worked by hand: 1 % at the start, 50.5 % half way.
    np.testing.assert_allclose(expected[0], 0.0001)
    np.testing.assert_allclose(expected[2], 0.00505)


def test_cosine_falls_from_the_peak_to_zero_and_stays_there():
    schedule = make_schedule("cosine", peak=0.4, total_steps=8)
    expected = [0.4, 0.2 * (1 + math.sqrt(0.5)), 0.2, 0.2 * (1 - math.sqrt(0.5)), 0.0, 0.0]
    np.testing.assert_allclose(rates_of(schedule, [0, 2, 4, 6, 8, 9]), expected, atol=1e-7)


def test_warm_up_from_a_third_multiplies_the_cosine():
    schedule = make_schedule(
        "cosine", peak=1.0, total_steps=12, warmup_steps=6, warmup_factor=1 / 3
    )
    expected = [1 / 3, 0.5 * (1 + math.cos(math.pi / 4)) * 2 / 3, 0.5, 0.0]
    np.testing.assert_allclose(rates_of(schedule, [0, 3, 6, 12]), expected, rtol=1e-6, atol=1e-7)


def test_constant_stays():
    schedule = make_schedule("constant", peak=0.3, total_steps=5)
    np.testing.assert_allclose(rates_of(schedule, [0, 4, 100]), 0.3, rtol=1e-6)


def test_an_unknown_schedule_is_an_error():
    with pytest.raises(InputError, match="'poly'.*cosine"):
        make_schedule("poly", peak=1.0, total_steps=2)
