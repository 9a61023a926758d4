"""solojax.models.fpn against a float64 recomputation."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from helpers import plain_network
from helpers.tiny import quick_jit, random_variables

from solojax.models.fpn import FPN

RNG = np.random.default_rng(0)
SIZES = ((16, 24, 3), (8, 12, 5), (4, 6, 7), (2, 3, 9))
FEATURES = [RNG.normal(size=(2, *size)) for size in SIZES]


def test_the_pyramid_is_laterals_top_down_sums_and_strided_copies():
    with jax.enable_x64(True):
        neck = FPN(channels=6, num_outputs=6)
        variables = random_variables(neck, FEATURES, dtype=np.float64)
        outputs = quick_jit(neck.apply)(variables, FEATURES)
        expected = plain_network.fpn(variables, FEATURES, 6)
        assert len(outputs) == len(expected) == 6
        for ours, plain in zip(outputs, expected, strict=True):
            np.testing.assert_allclose(ours, plain, rtol=0, atol=1e-12 * np.abs(plain).max())


def test_extra_levels_halve_the_last_one_rounding_up():
    features = [jax.ShapeDtypeStruct((2, *size), jnp.float32) for size in SIZES]
    outputs, _ = jax.eval_shape(FPN(8, 6).init_with_output, jax.random.key(0), features)
    assert [x.shape for x in outputs[3:]] == [(2, 2, 3, 8), (2, 1, 2, 8), (2, 1, 1, 8)]
    outputs, _ = jax.eval_shape(FPN(8, 4).init_with_output, jax.random.key(0), features)
    assert len(outputs) == 4


def test_weights_start_uniform_in_xaviers_bound():
    neck = FPN(channels=64)
    features = [np.zeros((1, 2, 2, 32), np.float32)]
    params = quick_jit(neck.init)(jax.random.key(0), features)
    params = params["params"]
    for name, fan_in, fan_out in (
        ("lateral_0", 32, 64),
        ("output_0", 9 * 64, 9 * 64),
    ):
        kernel, bound = np.asarray(params[name]["kernel"]), math.sqrt(6 / (fan_in + fan_out))
        assert 0.99 * bound < np.abs(kernel).max() <= bound
        assert abs(kernel.std() / (bound / math.sqrt(3)) - 1) < 0.03
        np.testing.assert_array_equal(params[name]["bias"], np.zeros(64))
