"""Resizing on the device: half-pixel centres, no corner alignment, no anti-aliasing.

`jax.image.resize` anti-aliases by default and its linear kernel, when shrinking, differs from what
the published systems compute; here every output value is a mean of its two nearest neighbours per
axis, also when shrinking.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from solojax.structures import Array


def bilinear_weights(
    out_size: int, in_size: int, dtype=np.float32, step: float | None = None
) -> np.ndarray:
    """The (out_size, in_size) matrix that resizes one axis.

    Args:
      out_size: length after.
      in_size: length before.
      dtype: the arithmetic of the positions; they are rounded as the published systems do.
      step: inputs from one output to the next, where the outputs do not cover all of the input or
        reach beyond it; None for in_size / out_size.
    """
    dtype = np.dtype(dtype).type
    scale = dtype(in_size / out_size if step is None else step)
    # One rounding for product and difference: the published systems fuse multiply and add.
    position = (np.float64(scale) * (np.arange(out_size) + 0.5) - 0.5).astype(dtype)
    position = np.maximum(position, dtype(0))
    low = np.minimum(np.floor(position).astype(np.int64), in_size - 1)
    high = np.minimum(low + 1, in_size - 1)
    fraction = position - low.astype(dtype)
    weights = np.zeros((out_size, in_size), dtype)
    rows = np.arange(out_size)
    np.add.at(weights, (rows, low), dtype(1) - fraction)
    np.add.at(weights, (rows, high), fraction)
    return weights


def resize_bilinear(x: Array, height: int, width: int) -> Array:
    """Bilinear resize of (B, h, w, C) to (B, height, width, C), dtype kept.

    Two matrix products: they run on the matrix unit, forwards and backwards, where gathers would
    not. Highest precision, because positions must not be rounded to bfloat16.
    """
    arithmetic = np.float64 if x.dtype == jnp.float64 else np.float32
    accumulate = jnp.promote_types(x.dtype, jnp.float32)
    if height != x.shape[1]:
        rows = jnp.asarray(bilinear_weights(height, x.shape[1], arithmetic), accumulate)
        x = jnp.einsum("Hh,bhwc->bHwc", rows, x, precision=jax.lax.Precision.HIGHEST).astype(
            x.dtype
        )
    if width != x.shape[2]:
        columns = jnp.asarray(bilinear_weights(width, x.shape[2], arithmetic), accumulate)
        x = jnp.einsum("Ww,bhwc->bhWc", columns, x, precision=jax.lax.Precision.HIGHEST).astype(
            x.dtype
        )
    return x


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _upsample_axis_2x(x: Array, axis: int) -> Array:
    before = jnp.concatenate([_first(x, axis), _without_last(x, axis)], axis)
    after = jnp.concatenate([_without_first(x, axis), _last(x, axis)], axis)
    return _interleave(0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after, axis)


def _upsample_forward(x: Array, axis: int):
    return _upsample_axis_2x(x, axis), None


def _upsample_backward(axis: int, _, gradient: Array):
    # Every input gathers from the four outputs it went into: a gradient by autodiff would add up
    # padded copies of the slices instead, at several times the cost on CPUs.
    length = gradient.shape[axis]
    even = jax.lax.slice_in_dim(gradient, 0, length, stride=2, axis=axis)
    odd = jax.lax.slice_in_dim(gradient, 1, length, stride=2, axis=axis)
    from_next = jnp.concatenate([_without_first(even, axis), _last(odd, axis)], axis)
    from_previous = jnp.concatenate([_first(even, axis), _without_last(odd, axis)], axis)
    return (0.75 * (even + odd) + 0.25 * (from_next + from_previous),)


_upsample_axis_2x.defvjp(_upsample_forward, _upsample_backward)


def _interleave(even: Array, odd: Array, axis: int) -> Array:
    shape = even.shape[:axis] + (2 * even.shape[axis],) + even.shape[axis + 1 :]
    return jnp.stack([even, odd], axis=axis + 1).reshape(shape)


def _first(x: Array, axis: int) -> Array:
    return jax.lax.slice_in_dim(x, 0, 1, axis=axis)


def _last(x: Array, axis: int) -> Array:
    return jax.lax.slice_in_dim(x, x.shape[axis] - 1, None, axis=axis)


def _without_first(x: Array, axis: int) -> Array:
    return jax.lax.slice_in_dim(x, 1, None, axis=axis)


def _without_last(x: Array, axis: int) -> Array:
    return jax.lax.slice_in_dim(x, 0, x.shape[axis] - 1, axis=axis)


def upsample_bilinear_2x(x: Array) -> Array:
    """Bilinear doubling of (B, h, w, C): every output is 3/4 of one pixel and 1/4 of the next."""
    return _upsample_axis_2x(_upsample_axis_2x(x, 1), 2)


def upsample_nearest_2x(x: Array) -> Array:
    """Doubles (B, h, w, C) by repeating every pixel (the FPN's top-down step)."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


def downsample_mean_2x(x: Array) -> Array:
    """Halves (B, h, w, C), h and w even, by 2x2 means: bilinear resize by exactly 0.5."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))
