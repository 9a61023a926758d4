"""Resizing on the device: half-pixel centres, no corner alignment, no anti-aliasing.

`jax.image.resize` anti-aliases by default and its linear kernel, when shrinking, differs from what
the published systems compute; here every output value is a mean of its two nearest neighbours per
axis, also when shrinking.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from solojax.structures import Array


def bilinear_weights(out_size: int, in_size: int, dtype=np.float32) -> np.ndarray:
    """The (out_size, in_size) matrix that resizes one axis.

    Args:
      out_size: length after.
      in_size: length before.
      dtype: the arithmetic of the positions; they are rounded as the published systems do.
    """
    dtype = np.dtype(dtype).type
    scale = dtype(in_size / out_size)
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


def _upsample_axis_2x(x: Array, axis: int) -> Array:
    length = x.shape[axis]
    first = jax.lax.slice_in_dim(x, 0, 1, axis=axis)
    last = jax.lax.slice_in_dim(x, length - 1, length, axis=axis)
    before = jnp.concatenate([first, jax.lax.slice_in_dim(x, 0, length - 1, axis=axis)], axis)
    after = jnp.concatenate([jax.lax.slice_in_dim(x, 1, length, axis=axis), last], axis)
    pair = jnp.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after], axis=axis + 1)
    return pair.reshape(x.shape[:axis] + (2 * length,) + x.shape[axis + 1 :])


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
