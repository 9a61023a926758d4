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
    return _convolve_by_stride(x, kernel, stride)


def _convolve(x: Array, kernel: Array, stride: int, pad_rows: bool = True) -> Array:
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((pad, pad) if pad_rows else (0, 0), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve_by_stride(x: Array, kernel: Array, stride: int) -> Array:
    return _convolve(x, kernel, stride)


def _forward(x, kernel, stride):
    return _convolve(x, kernel, stride), (x, kernel)


def _backward(stride, residuals, gradient):
    x, kernel = residuals
    (x_gradient,) = jax.vjp(lambda x: _convolve(x, kernel, stride), x)[1](gradient)
    sizes = {"side": kernel.shape[0], "stride": stride}
    kernel_gradient = jax.lax.platform_dependent(
        x,
        gradient,
        cpu=functools.partial(_kernel_gradient_by_rows, **sizes),
        default=functools.partial(_kernel_gradient, **sizes),
    )
    return x_gradient, kernel_gradient


_convolve_by_stride.defvjp(_forward, _backward)


def _kernel_gradient(
    x: Array, gradient: Array, *, side: int, stride: int, pad_rows: bool = True
) -> Array:
    kernel = jnp.zeros((side, side, x.shape[-1], gradient.shape[-1]), x.dtype)
    return jax.vjp(lambda k: _convolve(x, k, stride, pad_rows), kernel)[1](gradient)[0]


def _kernel_gradient_by_rows(x: Array, gradient: Array, *, side: int, stride: int) -> Array:
    """Sums the gradients of bands of rows; bands read what rows beyond their own they need."""
    batch, height, width, _ = gradient.shape
    bands = math.ceil(batch * height * width / _CPU_PIXELS)
    bands = next(n for n in range(min(bands, height), height + 1) if height % n == 0)
    if bands == 1:
        return _kernel_gradient(x, gradient, side=side, stride=stride)
    rows, pad = height // bands, side // 2
    padded = jnp.pad(x, ((0, 0), (pad, pad), (0, 0), (0, 0)))
    reach = (rows - 1) * stride + side

    # Unrolled: inside a loop XLA's CPU backend does not use its fast convolution.
    return sum(
        _kernel_gradient(
            padded[:, start * stride : start * stride + reach],
            gradient[:, start : start + rows],
            side=side,
            stride=stride,
            pad_rows=False,
        )
        for start in range(0, height, rows)
    )
