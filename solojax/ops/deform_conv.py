"""Deformable convolution: every tap of the kernel reads the image where an offset sends it.

Version 1 has offsets alone (Dai et al., "Deformable Convolutional Networks"), version 2 also
weights every tap by a mask (Zhu et al., "Deformable ConvNets v2"). Section 4.3.1 of the thesis
has them in backbones and in the last layers of the heads.

What makes the gather cheap:
* channels are innermost, so that a corner is one contiguous row of C numbers, and all that depends
  on positions (indices, bilinear weights, mask) is computed once per tap and not per channel;
* a border of zeros around the image takes the place of tests for every corner;
* a scan over the taps gathers, contracts with a matrix product and adds: one tap's samples are held
  at a time, a ninth of what a product over taps and channels together would need;
* the backward pass gathers again instead of keeping samples, and adds up the image's gradient two
  neighbouring rows at a time.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from solojax.errors import InputError
from solojax.ops.grouped_convolution import merge_groups
from solojax.structures import Array

# Groups are merged into blocks of about the width of a matrix unit.
_BLOCK_CHANNELS = 128


# Traced once for all layers of the same shapes: a network has dozens of them.
@functools.partial(
    jax.jit, static_argnames=("stride", "dilation", "groups", "offset_groups"), inline=True
)
def deform_conv(
    x: Array,
    offset: Array,
    kernel: Array,
    *,
    mask: Array | None = None,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    offset_groups: int = 1,
) -> Array:
    """Deformable convolution, padded so that offsets of zero give an ordinary convolution.

    Tap (i, j) of output (y, x) reads the image at (stride * y + dilation * (i - k // 2) + dy,
    stride * x + dilation * (j - k // 2) + dx), bilinearly, with zeros outside the image.

    Args:
      x: (B, H, W, C).
      offset: (B, h, w, offset_groups * k * k * 2), h = ceil(H / stride), in pixels of x: for every
        offset group and tap (row by row) first dy, then dx. Positions are at least float32.
      kernel: (k, k, C / groups, D), k odd, of x's type or a wider one, as its gradient then is.
      mask: (B, h, w, offset_groups * k * k), factors of the samples; None means ones (version 1).
      stride: of both axes.
      dilation: distance of the taps.
      groups: of the channels, as in grouped convolution.
      offset_groups: of the input channels, each with its own offsets and mask.

    Returns:
      (B, h, w, D) of x's dtype; sums are at least float32.

    Raises:
      InputError: on shapes that do not fit each other.
    """
    side = kernel.shape[0]
    batch, height, width = x.shape[0], -(-x.shape[1] // stride), -(-x.shape[2] // stride)
    _check_shapes(x, offset, kernel, mask, (batch, height, width), groups, offset_groups)
    index, corner_weight = _corners(x.shape[1:3], offset, side, stride, dilation, offset_groups)
    if mask is not None:
        corner_weight = corner_weight * _taps_first(mask, offset_groups, side)[..., None]

    # Blocks of channels that share their offsets and belong to one group.
    kernel, groups = merge_groups(kernel, groups, _BLOCK_CHANNELS)
    blocks = math.lcm(groups, offset_groups)
    index = jnp.repeat(index, blocks // offset_groups, axis=1)
    corner_weight = jnp.repeat(corner_weight, blocks // offset_groups, axis=1)
    kernel = kernel.reshape(side * side, blocks // groups, x.shape[-1] // blocks, groups, -1)
    kernel = kernel.transpose(0, 3, 1, 2, 4)
    out = _sample_and_contract(
        _bordered_rows(x, blocks), kernel, index, corner_weight, x.shape[2] + 2
    )
    out = jnp.moveaxis(out, 0, 2).reshape(batch, height, width, -1)
    return out.astype(x.dtype)


def _check_shapes(x, offset, kernel, mask, out_shape, groups, offset_groups) -> None:
    side, _, group_channels, out_channels = kernel.shape
    if group_channels * groups != x.shape[-1] or out_channels % groups:
        raise InputError(
            f"deform_conv: kernel {kernel.shape} does not fit {x.shape[-1]} input channels in "
            f"{groups} groups; it must be (k, k, C / groups, D) with D a multiple of groups"
        )
    if x.shape[-1] % offset_groups:
        raise InputError(
            f"deform_conv: {x.shape[-1]} input channels do not divide into {offset_groups} "
            "offset groups; choose a divisor"
        )
    taps = offset_groups * side * side
    for name, value, channels in (("offset", offset, 2 * taps), ("mask", mask, taps)):
        if value is not None and value.shape != (*out_shape, channels):
            raise InputError(
                f"deform_conv: {name} has shape {value.shape}; "
                f"this image and kernel need {(*out_shape, channels)}"
            )


def _taps_first(x: Array, offset_groups: int, side: int) -> Array:
    """(B, h, w, offset_groups * taps) to (taps, offset_groups, B, h * w)."""
    x = x.reshape(x.shape[0], x.shape[1] * x.shape[2], offset_groups, side * side)
    return x.transpose(3, 2, 0, 1)


def _corners(image_size, offset, side, stride, dilation, offset_groups) -> tuple[Array, Array]:
    """Where every sample's window of 2x2 pixels starts, and the bilinear weights of the four.

    Returns:
      Indices (taps, offset_groups, B, h * w) into the rows of the bordered image, int32, and
      weights (..., 4) of upper left, upper right, lower left, lower right.
    """
    offset = offset.astype(jnp.promote_types(offset.dtype, jnp.float32))
    height, width = offset.shape[1:3]
    tap = dilation * (np.arange(side) - side // 2)
    start_y = np.repeat(tap, side)[:, None, None] + stride * np.arange(height)[:, None]
    start_x = np.tile(tap, side)[:, None, None] + stride * np.arange(width)

    def axis(number, start, length):
        start = np.broadcast_to(start, (side * side, height, width)).reshape(side * side, 1, 1, -1)
        moved = _taps_first(offset[..., number::2], offset_groups, side)
        position = start.astype(offset.dtype) + moved
        outside = (position < -1) | (position >= length)
        # NaN is not outside, so that it is seen in the output.
        position = jnp.where(outside, 0, position)
        low = jnp.floor(position)
        fraction = position - jax.lax.stop_gradient(low)
        index = jnp.clip(low.astype(jnp.int32), -1, length - 1) + 1
        return index, jnp.where(outside, 0, 1 - fraction), jnp.where(outside, 0, fraction)

    top, upper, lower = axis(0, start_y, image_size[0])
    left, before, after = axis(1, start_x, image_size[1])
    weight = jnp.stack([upper * before, upper * after, lower * before, lower * after], axis=-1)
    return top * (image_size[1] + 2) + left, weight


def _bordered_rows(x: Array, blocks: int) -> Array:
    """(B, H, W, C) to (blocks, B, (H + 2) * (W + 2), C / blocks) with zeros around the image."""
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return jnp.moveaxis(x.reshape(x.shape[0], x.shape[1] * x.shape[2], blocks, -1), 2, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _sample_and_contract(
    rows: Array, kernel: Array, index: Array, corner_weight: Array, row_length: int
) -> Array:
    """Weighted sums of four pixels per tap and place, contracted with the kernel.

    Args:
      rows: (G * M, B, R, c) pixels of the bordered image, G groups of M blocks of c channels.
      kernel: (taps, G, M, c, d).
      index: (taps, G * M, B, P) upper left pixels.
      corner_weight: (taps, G * M, B, P, 4).
      row_length: from a pixel to the one below it.

    Returns:
      (G, B, P, d), at least float32.
    """

    def add_tap(out, tap):
        kernel, index, weight = tap
        return out + _contract(_sample(rows, index, weight, row_length), kernel, rows.dtype), None

    shape = (kernel.shape[1], *index.shape[2:], kernel.shape[4])
    out = jnp.zeros(shape, _exact(rows.dtype))
    return jax.lax.scan(add_tap, out, (kernel, index, corner_weight))[0]


def _forward(rows, kernel, index, corner_weight, row_length):
    residuals = rows, kernel, index, corner_weight
    return _sample_and_contract(*residuals, row_length), residuals


def _backward(row_length, residuals, gradient):
    rows, kernel, index, corner_weight = residuals

    def add_tap(rows_gradient, tap):
        kernel, index, weight = tap
        sample = _sample(rows, index, weight, row_length)
        (sample_gradient,) = jax.vjp(lambda s: _contract(s, kernel, rows.dtype), sample)[1](
            gradient
        )
        kernel_gradient = _kernel_gradient(sample, kernel, gradient, rows.dtype)
        weight_gradient = [
            jnp.sum(sample_gradient * _gather(rows, index + corner), axis=-1)
            for corner in _corner_steps(row_length)
        ]
        rows_gradient = _scatter(rows_gradient, sample_gradient, index, weight, row_length)
        return rows_gradient, (kernel_gradient, jnp.stack(weight_gradient, axis=-1))

    rows_gradient, (kernel_gradient, weight_gradient) = jax.lax.scan(
        add_tap,
        jnp.zeros(rows.shape, _exact(rows.dtype)),
        (kernel, index, corner_weight),
    )
    weight_gradient = weight_gradient.astype(corner_weight.dtype)
    return rows_gradient.astype(rows.dtype), kernel_gradient, None, weight_gradient


_sample_and_contract.defvjp(_forward, _backward)


def _exact(dtype):
    return jnp.promote_types(dtype, jnp.float32)


def _corner_steps(row_length: int) -> tuple[int, ...]:
    return 0, 1, row_length, row_length + 1


def _contract(sample: Array, kernel: Array, dtype: jnp.dtype) -> Array:
    """(G * M, B, P, c) and (G, M, c, d) to (G, B, P, d), products in the given dtype."""
    sample = sample.astype(dtype).reshape(*kernel.shape[:2], *sample.shape[1:])
    return jnp.einsum(
        "gmbpc,gmcd->gbpd", sample, kernel.astype(dtype), preferred_element_type=_exact(dtype)
    )


def _kernel_gradient(sample: Array, kernel: Array, gradient: Array, dtype: jnp.dtype) -> Array:
    """(G, M, c, d) in the kernel's type, which may be wider than what it is multiplied with."""
    sample = sample.astype(dtype).reshape(*kernel.shape[:2], *sample.shape[1:])
    return jnp.einsum(
        "gmbpc,gbpd->gmcd", sample, gradient, preferred_element_type=_exact(kernel.dtype)
    ).astype(kernel.dtype)


def _sample(rows: Array, index: Array, weight: Array, row_length: int) -> Array:
    """(n, B, R, c) at (n, B, P) with weights (n, B, P, 4) to (n, B, P, c), at least float32."""
    return sum(
        weight[..., number, None] * _gather(rows, index + step)
        for number, step in enumerate(_corner_steps(row_length))
    )


def _gather(rows: Array, index: Array) -> Array:
    """(n, B, R, c) at (n, B, P) to (n, B, P, c).

    Blocks and batch are batch axes of the gather, and not part of one flat index, so that a batch
    spread over devices is gathered where it is.
    """
    numbers = jax.lax.GatherDimensionNumbers(
        offset_dims=(3,),
        collapsed_slice_dims=(2,),
        start_index_map=(2,),
        operand_batching_dims=(0, 1),
        start_indices_batching_dims=(0, 1),
    )
    sizes = (1, 1, 1, rows.shape[-1])
    return jax.lax.gather(rows, index[..., None], numbers, sizes, mode="promise_in_bounds")


def _scatter(rows: Array, sample: Array, index: Array, weight: Array, row_length: int) -> Array:
    """Adds (n, B, P, c) times each of the weights (n, B, P, 4) to its pixel's row."""
    numbers = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(3, 4),
        inserted_window_dims=(),
        scatter_dims_to_operand_dims=(2,),
        operand_batching_dims=(0, 1),
        scatter_indices_batching_dims=(0, 1),
    )
    for step, pair in ((0, weight[..., :2, None]), (row_length, weight[..., 2:, None])):
        update = sample[..., None, :] * pair
        start = (index + step)[..., None]
        rows = jax.lax.scatter_add(rows, start, update, numbers, mode="promise_in_bounds")
    return rows
