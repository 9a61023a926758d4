"""solojax.ops.coords: the values, their mirror symmetry, and which channel is which axis."""

from __future__ import annotations

from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest

from solojax.ops.coords import append_coordinates, coordinate_map, linspace_symmetric


@pytest.mark.parametrize("length", [2, 3, 7, 12, 25, 40, 100, 167, 336])
def test_values_divide_the_interval_evenly_and_mirror_exactly(length):
    values = linspace_symmetric(length)
    assert values.dtype == np.float32 and values.shape == (length,)
    assert values[0] == -1 and values[-1] == 1
    half = length // 2
    np.testing.assert_array_equal(values[:half], -values[::-1][:half])
    exact = np.array([float(Fraction(2 * i, length - 1) - 1) for i in range(length)])
    # Rounding the step to float32 once moves a value by at most half of its last place per step.
    step_error = (length / 2) * np.spacing(np.float32(2 / (length - 1))) / 2
    assert np.all(np.abs(values - exact) <= step_error + np.spacing(np.abs(values)))


def test_a_single_value_is_minus_one():
    np.testing.assert_array_equal(linspace_symmetric(1), [-1.0])


def test_x_comes_before_y():
    expected_x = [[-1.0, -0.5, 0.0, 0.5, 1.0]] * 3
    expected_y = [[-1.0] * 5, [0.0] * 5, [1.0] * 5]
    np.testing.assert_array_equal(coordinate_map(3, 5)[..., 0], expected_x)
    np.testing.assert_array_equal(coordinate_map(3, 5)[..., 1], expected_y)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_appending_keeps_features_and_dtype(dtype):
    features = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5, 4)), dtype)
    out = append_coordinates(features)
    assert out.dtype == dtype and out.shape == (2, 3, 5, 6)
    np.testing.assert_array_equal(out[..., :4], features)
    for row in range(2):
        np.testing.assert_array_equal(out[row, ..., 4:].astype(np.float32), coordinate_map(3, 5))
