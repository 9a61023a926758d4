from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solojax.ops.normalization import group_norm

EPSILON = 1e-5


def plain_group_norm(x, scale, bias, num_groups):
    """Loops over images and groups, as the definition reads."""
    out = np.empty(x.shape, np.float64)
    size = x.shape[-1] // num_groups
    for image in range(x.shape[0]):
        for first in range(0, x.shape[-1], size):
            part = x[image, ..., first : first + size].astype(np.float64)
            part = (part - part.mean()) / np.sqrt(part.var() + EPSILON)
            channels = slice(first, first + size)
            out[image, ..., channels] = part * scale[channels] + bias[channels]
    return out


def draw(seed, shape, dtype=np.float32):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=shape) * 3 + 2).astype(dtype)
    scale, bias = rng.normal(size=(2, shape[-1])).astype(dtype)
    return x, scale, bias


@settings(deadline=None, max_examples=6)
@given(
    st.integers(0, 99), st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3)
)
def test_equals_a_plain_loop(seed, batch, height, groups, channels):
    x, scale, bias = draw(seed, (batch, height, 3, groups * channels))
    got = group_norm(x, scale, bias, groups, EPSILON)
    np.testing.assert_allclose(got, plain_group_norm(x, scale, bias, groups), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("wanted", [0, 1, 2], ids=["x", "scale", "bias"])
def test_gradient_is_that_of_finite_differences(wanted):
    with jax.enable_x64(True):
        arguments = [np.asarray(v) for v in draw(0, (2, 2, 3, 4), np.float64)]
        weights = np.random.default_rng(1).normal(size=arguments[0].shape)

        def loss(*arguments):
            return jnp.sum(weights * group_norm(*arguments, 2, EPSILON) ** 2)

        gradient = jax.grad(loss, wanted)(*arguments)
        step = 1e-6
        for index in np.ndindex(arguments[wanted].shape):
            high, low = ([v.copy() for v in arguments] for _ in range(2))
            high[wanted][index] += step
            low[wanted][index] -= step
            slope = (
                np.sum(weights * plain_group_norm(*high, 2) ** 2)
                - np.sum(weights * plain_group_norm(*low, 2) ** 2)
            ) / (2 * step)
            np.testing.assert_allclose(gradient[index], slope, rtol=1e-6, atol=1e-7)


def test_the_backward_pass_keeps_the_input_in_its_own_type():
    x = jnp.ones((2, 16, 16, 8), jnp.bfloat16)
    scale = bias = jnp.ones(8)
    _, pullback = jax.vjp(lambda *a: group_norm(*a, 4, EPSILON), x, scale, bias)
    maps = [leaf for leaf in jax.tree.leaves(pullback) if getattr(leaf, "ndim", 0) == 4]
    assert [(leaf.shape, leaf.dtype) for leaf in maps] == [(x.shape, jnp.bfloat16)]
