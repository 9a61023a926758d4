"""Convolution against a loop over taps, its gradients against autodiff and finite sums."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solojax.ops import convolution
from solojax.ops.convolution import convolve, project


def convolve_by_taps(x: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """Every tap of the kernel as a shifted matrix product, in float64."""
    side = kernel.shape[0]
    pad = side // 2
    padded = np.pad(x.astype(np.float64), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height, width = x.shape[1:3]
    total = 0.0
    for row in range(side):
        for column in range(side):
            shifted = padded[:, row : row + height, column : column + width]
            total = total + shifted[:, ::stride, ::stride] @ kernel[row, column].astype(np.float64)
    return total


def random_inputs(shape, side, out_channels):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape).astype(np.float32)
    kernel = rng.standard_normal((side, side, shape[-1], out_channels)).astype(np.float32)
    return x, kernel


@pytest.mark.parametrize(("side", "stride"), [(3, 1), (3, 2), (7, 2), (5, 1)])
@pytest.mark.parametrize("shape", [(2, 8, 12, 3), (1, 7, 9, 4)])
def test_equals_the_sum_over_taps(shape, side, stride):
    x, kernel = random_inputs(shape, side, 5)
    expected = convolve_by_taps(x, kernel, stride)
    np.testing.assert_allclose(convolve(x, kernel, stride), expected, atol=2e-5)


@pytest.mark.parametrize(("side", "stride"), [(3, 1), (3, 2), (7, 2)])
@pytest.mark.parametrize("shape", [(2, 12, 10, 3), (1, 14, 9, 4), (2, 7, 5, 3)])
@pytest.mark.parametrize("pixels", [10, 64, 4096])
def test_kernel_gradient_is_the_same_in_bands(monkeypatch, shape, pixels, side, stride):
    """A band is one row, some rows or all of them; the gradient is that of the definition."""
    monkeypatch.setattr(convolution, "_CPU_PIXELS", pixels)
    x, kernel = random_inputs(shape, side, 4)
    y, pull = jax.vjp(lambda k: convolve(jnp.asarray(x), k, stride), jnp.asarray(kernel))
    gradient = np.random.default_rng(1).standard_normal(y.shape).astype(np.float32)
    pad = side // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0))).astype(np.float64)
    height, width = shape[1:3]
    expected = np.stack(
        [
            np.einsum(
                "bhwi,bhwo->io",
                padded[:, i : i + height : stride, j : j + width : stride],
                gradient,
            )
            for i in range(side)
            for j in range(side)
        ]
    ).reshape(kernel.shape)
    np.testing.assert_allclose(pull(jnp.asarray(gradient))[0], expected, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_input_gradient_is_the_transpose(stride):
    """<conv(x), g> = <x, conv^T(g)> for every x and g."""
    x, kernel = random_inputs((2, 9, 8, 3), 3, 4)
    y, pull = jax.vjp(lambda x: convolve(x, jnp.asarray(kernel), stride), jnp.asarray(x))
    gradient = np.random.default_rng(1).standard_normal(y.shape).astype(np.float32)
    left = np.sum(np.asarray(y, np.float64) * gradient)
    right = np.sum(np.asarray(pull(jnp.asarray(gradient))[0], np.float64) * x)
    np.testing.assert_allclose(left, right, rtol=1e-5)


@pytest.mark.parametrize("side, stride", [(1, 1), (3, 1), (3, 2), (7, 2)])
def test_wide_kernels_have_wide_gradients(side, stride):
    """bfloat16 images with a float32 kernel: rounded once for the product, and not afterwards."""
    x, kernel = random_inputs((2, 9, 12, 4), side, 5)
    x, kernel = jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel)

    def run(x, kernel):
        if side == 1:
            return project(x, kernel[0, 0])
        return convolve(x, kernel, stride)

    y, pull = jax.vjp(run, x, kernel)
    gradient = jnp.asarray(np.random.default_rng(1).standard_normal(y.shape), jnp.bfloat16)
    x_gradient, kernel_gradient = pull(gradient)
    assert (y.dtype, x_gradient.dtype, kernel_gradient.dtype) == ("bfloat16", "bfloat16", "float32")
    exact = [each.astype(jnp.float32) for each in (x, kernel.astype(jnp.bfloat16), gradient)]
    wide_y, wide_pull = jax.vjp(run, *exact[:2])
    wide_x_gradient, wide_kernel_gradient = wide_pull(exact[2])
    np.testing.assert_allclose(kernel_gradient, wide_kernel_gradient, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(y.astype(np.float32), wide_y, rtol=0.01, atol=0.02)
    np.testing.assert_allclose(x_gradient.astype(np.float32), wide_x_gradient, rtol=0.01, atol=0.1)
