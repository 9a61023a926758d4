"""Convolution whose channels are split into groups that do not see each other (ResNeXt)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from solojax.ops.convolution import convolve, kernel_gradient
from solojax.structures import Array

# XLA's CPU backend spends four times as long on groups of 16 channels as on dense blocks of 32 that
# are half zeros, and hundreds of times as long on their gradients; blocks of 64 cost half as much
# again as blocks of 32.
_CPU_BLOCK_CHANNELS = 32


def merge_groups(kernel: Array, groups: int, channels: int) -> tuple[Array, int]:
    """Joins neighbouring groups into larger ones by filling a block-diagonal kernel with zeros.

    Args:
      kernel: (k, k, C / groups, D), the outputs of the first group first.
      groups: that it has.
      channels: a merged group takes at most so many input channels (or is one old group).

    Returns:
      The kernel (k, k, C / merged, D) and the number of merged groups.
    """
    rows, columns, group_channels, out_channels = kernel.shape
    most = max(channels // group_channels, 1)
    count = max(n for n in range(1, groups + 1) if groups % n == 0 and n <= most)
    split = kernel.reshape(rows, columns, 1, group_channels, groups // count, count, -1)
    diagonal = jnp.eye(count, dtype=kernel.dtype).reshape(count, 1, 1, count, 1)
    merged = (split * diagonal).reshape(rows, columns, count * group_channels, out_channels)
    return merged, groups // count


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve_grouped(x: Array, kernel: Array, groups: int, stride: int = 1) -> Array:
    """Grouped convolution with PyTorch's symmetric padding (kernel side // 2).

    Args:
      x: (B, H, W, C).
      kernel: (k, k, C / groups, D), k odd, of x's type or a wider one, as its gradient then is; the
        outputs of the first group first.
      groups: divides C and D.
      stride: of both axes.

    Returns:
      (B, ceil(H / stride), ceil(W / stride), D).
    """
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_convolve_blocks, groups=groups, stride=stride),
        default=functools.partial(_convolve_groups, groups=groups, stride=stride),
    )


def _forward(x, kernel, groups, stride):
    return convolve_grouped(x, kernel, groups, stride), (x, kernel)


def _backward(groups, stride, residuals, gradient):
    # Written out, because the derivative of a choice by platform keeps what either side needs.
    sizes = {"groups": groups, "stride": stride}
    return jax.lax.platform_dependent(
        *residuals,
        gradient,
        cpu=functools.partial(_pull_blocks, **sizes),
        default=functools.partial(_pull_groups, **sizes),
    )


convolve_grouped.defvjp(_forward, _backward)


def _convolve_groups(x: Array, kernel: Array, *, groups: int, stride: int) -> Array:
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        window_strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _convolve_blocks(x: Array, kernel: Array, *, groups: int, stride: int) -> Array:
    kernel, groups = merge_groups(kernel, groups, _CPU_BLOCK_CHANNELS)
    inputs, kernels = jnp.split(x, groups, axis=-1), jnp.split(kernel, groups, axis=-1)
    outputs = [convolve(x, kernel, stride) for x, kernel in zip(inputs, kernels, strict=True)]
    return jnp.concatenate(outputs, axis=-1)


def _pull_groups(x, kernel, gradient, *, groups: int, stride: int) -> tuple[Array, Array]:
    """The gradients of x and of the kernel, summed in the kernel's type."""

    def of_image(x):
        return _convolve_groups(x, kernel, groups=groups, stride=stride)

    (x_gradient,) = jax.vjp(of_image, x)[1](gradient)
    sizes = {"side": kernel.shape[0], "stride": stride, "groups": groups, "dtype": kernel.dtype}
    return x_gradient, kernel_gradient(x, gradient, **sizes)


def _pull_blocks(x, kernel, gradient, *, groups: int, stride: int) -> tuple[Array, Array]:
    convolution = functools.partial(_convolve_blocks, groups=groups, stride=stride)
    return jax.vjp(convolution, x, kernel)[1](gradient)
