"""Two-dimensional convolution, and a gradient of its kernel that is fast on CPUs.

Kernels may be wider than what they are multiplied with. They are rounded for the product, but
their gradients keep their type: what several devices add up is float32 where the network computes
in bfloat16.
"""

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
      kernel: (k, k, C, D), k odd, of x's type or a wider one.
      stride: of both axes.

    Returns:
      (B, ceil(H / stride), ceil(W / stride), D).
    """
    return _convolve_by_stride(x, kernel, stride)


@jax.custom_vjp
def project(x: Array, kernel: Array) -> Array:
    """1x1 convolution as a matrix product: (B, H, W, C) and (C, D) to (B, H, W, D) of x's type."""
    return jnp.einsum("bhwi,io->bhwo", x, kernel.astype(x.dtype))


def _project_forward(x, kernel):
    return project(x, kernel), (x, kernel)


def _project_backward(residuals, gradient):
    x, kernel = residuals
    x_gradient = jnp.einsum("bhwo,io->bhwi", gradient, kernel.astype(x.dtype))
    kernel_gradient = jnp.einsum("bhwi,bhwo->io", x, gradient, preferred_element_type=kernel.dtype)
    return x_gradient, kernel_gradient


project.defvjp(_project_forward, _project_backward)


def _convolve(x: Array, kernel: Array, stride: int) -> Array:
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        window_strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
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
    sizes = {"side": kernel.shape[0], "stride": stride, "dtype": kernel.dtype}
    of_kernel = jax.lax.platform_dependent(
        x,
        gradient,
        cpu=functools.partial(_kernel_gradient_by_rows, **sizes),
        default=functools.partial(kernel_gradient, **sizes),
    )
    return x_gradient, of_kernel


_convolve_by_stride.defvjp(_forward, _backward)


def kernel_gradient(
    x: Array,
    gradient: Array,
    *,
    side: int,
    stride: int,
    dtype: jnp.dtype,
    groups: int = 1,
    pad_rows: bool = True,
) -> Array:
    """The images convolved with their gradients, batch and channels in each other's place.

    Args:
      x: (B, H, W, C), what was convolved.
      gradient: (B, h, w, D) of the output.
      side: of the kernel.
      stride: of both axes.
      dtype: of the result; sums are of this type too.
      groups: of the channels.
      pad_rows: whether the convolution padded the rows of x; its columns it always did.

    Returns:
      (k, k, C / groups, D).
    """
    padding = []
    for size, steps, pad in (
        (x.shape[1], gradient.shape[1], side // 2 if pad_rows else 0),
        (x.shape[2], gradient.shape[2], side // 2),
    ):
        # The last window may end before the padding does, or before the image.
        padding.append((pad, (steps - 1) * stride + side - size - pad))
    return jax.lax.conv_general_dilated(
        x,
        gradient,
        window_strides=(1, 1),
        padding=padding,
        rhs_dilation=(stride, stride),
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
        batch_group_count=groups,
        preferred_element_type=dtype,
    )


def _kernel_gradient_by_rows(
    x: Array, gradient: Array, *, side: int, stride: int, dtype: jnp.dtype
) -> Array:
    """Sums the gradients of bands of rows; bands read what rows beyond their own they need."""
    batch, height, width, _ = gradient.shape
    bands = math.ceil(batch * height * width / _CPU_PIXELS)
    bands = next(n for n in range(min(bands, height), height + 1) if height % n == 0)
    if bands == 1:
        return kernel_gradient(x, gradient, side=side, stride=stride, dtype=dtype)
    rows, pad = height // bands, side // 2
    padded = jnp.pad(x, ((0, 0), (pad, pad), (0, 0), (0, 0)))
    reach = (rows - 1) * stride + side

    # Unrolled: inside a loop XLA's CPU backend does not use its fast convolution.
    return sum(
        kernel_gradient(
            padded[:, start * stride : start * stride + reach],
            gradient[:, start : start + rows],
            side=side,
            stride=stride,
            dtype=dtype,
            pad_rows=False,
        )
        for start in range(0, height, rows)
    )
