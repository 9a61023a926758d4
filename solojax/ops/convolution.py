"""Two-dimensional convolution, and a gradient of its kernel that is fast on CPUs."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from solojax.structures import Array

# XLA's CPU convolution sums a kernel's gradient over all pixels at once and falls from 160 to
# 25 GFLOP/s where there are many; in parts of this many pixels it keeps its speed.
_CPU_PIXELS = 4096


def convolve(x: Array, kernel: Array, stride: int = 1) -> Array:
    """Convolution with PyTorch's symmetric padding (kernel side // 2).

    Args:
      x: (B, H, W, C).
      kernel: (k, k, C, D), k odd.
      stride: of both axes.

    Returns:
      (B, ceil(H / stride), ceil(W / stride), D).
    """
    if stride == 1:
        return _convolve_stride_1(x, kernel)
    return _convolve(x, kernel, stride)


def _convolve(x: Array, kernel: Array, stride: int = 1, pad_rows: bool = True) -> Array:
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((pad, pad) if pad_rows else (0, 0), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@jax.custom_vjp
def _convolve_stride_1(x: Array, kernel: Array) -> Array:
    return _convolve(x, kernel)


def _forward(x, kernel):
    return _convolve(x, kernel), (x, kernel)


def _backward(residuals, gradient):
    x, kernel = residuals
    (x_gradient,) = jax.vjp(lambda x: _convolve(x, kernel), x)[1](gradient)
    kernel_gradient = jax.lax.platform_dependent(
        x,
        gradient,
        cpu=functools.partial(_kernel_gradient_by_rows, side=kernel.shape[0]),
        default=functools.partial(_kernel_gradient, side=kernel.shape[0]),
    )
    return x_gradient, kernel_gradient


_convolve_stride_1.defvjp(_forward, _backward)


def _kernel_gradient(x: Array, gradient: Array, *, side: int, pad_rows: bool = True) -> Array:
    kernel = jnp.zeros((side, side, x.shape[-1], gradient.shape[-1]), x.dtype)
    return jax.vjp(lambda k: _convolve(x, k, pad_rows=pad_rows), kernel)[1](gradient)[0]


def _kernel_gradient_by_rows(x: Array, gradient: Array, *, side: int) -> Array:
    """Sums the gradients of bands of rows; each band reads `side // 2` rows beyond its own."""
    batch, height, width, _ = gradient.shape
    bands = math.ceil(batch * height * width / _CPU_PIXELS)
    bands = next(n for n in range(min(bands, height), height + 1) if height % n == 0)
    if bands == 1:
        return _kernel_gradient(x, gradient, side=side)
    rows, pad = height // bands, side // 2
    padded = jnp.pad(x, ((0, 0), (pad, pad), (0, 0), (0, 0)))

    # Unrolled: inside a loop XLA's CPU backend does not use its fast convolution.
    return sum(
        _kernel_gradient(
            padded[:, start : start + rows + 2 * pad],
            gradient[:, start : start + rows],
            side=side,
            pad_rows=False,
        )
        for start in range(0, height, rows)
    )
