"""solojax.ops.pooling against the loop over bins."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.golden import load_arrays

from solojax.ops.pooling import adaptive_average_pool


@pytest.mark.parametrize("grid", [(1, 1), (3, 3), (5, 2), (7, 6), (9, 4), (14, 12)])
def test_every_cell_is_the_mean_of_its_bin(grid):
    x = np.random.default_rng(0).normal(size=(2, 7, 6, 3)).astype(np.float32)
    out = adaptive_average_pool(jnp.asarray(x), grid)
    assert out.shape == (2, *grid, 3) and out.dtype == jnp.float32
    for i in range(grid[0]):
        for j in range(grid[1]):
            rows = slice(i * 7 // grid[0], -(-(i + 1) * 7 // grid[0]))
            columns = slice(j * 6 // grid[1], -(-(j + 1) * 6 // grid[1]))
            expected = x[:, rows, columns].mean(axis=(1, 2))
            np.testing.assert_allclose(out[:, i, j], expected, rtol=1e-5, atol=1e-6)


def test_the_recorded_pooling_of_pytorch():
    recorded = load_arrays("matrix_nms/interp.npz")
    x = recorded["adaptive_avgpool_7to3/in"].transpose(0, 2, 3, 1)
    out = adaptive_average_pool(jnp.asarray(x), (3, 3)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(out, recorded["adaptive_avgpool_7to3/out"], rtol=1e-5, atol=1e-6)


def test_a_map_of_the_grids_size_is_itself():
    x = jnp.arange(24.0).reshape(1, 3, 4, 2)
    assert adaptive_average_pool(x, (3, 4)) is x


def test_half_precision_stays_but_is_summed_in_float32():
    x = jnp.full((1, 64, 64, 1), 1.0, jnp.bfloat16).at[0, 0, 0, 0].set(257.0)
    out = adaptive_average_pool(x, (1, 1))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(np.float32), 1.0625, rtol=0.01)
