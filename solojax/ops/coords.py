"""Coordinate maps that tell a convolution where it is (CoordConv, thesis 3.2.2)."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from solojax.structures import Array


def linspace_symmetric(length: int) -> np.ndarray:
    """`length` float32 values from -1 to 1, mirrored exactly, as torch.linspace makes them.

    The upper half counts down from 1, so that rounding is mirrored; np.linspace is not. Product
    and sum are rounded together, once, as a fused multiply-add does. The middle of an odd length
    has no mirror: the rounded step may leave it up to 6e-8 from 0.
    """
    if length == 1:
        return np.array([-1.0], np.float32)
    step = np.float64(np.float32(2.0) / np.float32(length - 1))
    index = np.arange(length)
    up = -1.0 + step * index
    down = 1.0 - step * (length - 1 - index)
    return np.where(index < length // 2, up, down).astype(np.float32)


def coordinate_map(height: int, width: int) -> np.ndarray:
    """(height, width, 2) float32: x then y, each from -1 to 1 over the whole map."""
    ys, xs = np.meshgrid(linspace_symmetric(height), linspace_symmetric(width), indexing="ij")
    return np.stack([xs, ys], axis=-1)


def append_coordinates(features: Array) -> Array:
    """Appends the two coordinate channels: (B, h, w, C) to (B, h, w, C + 2), dtype kept."""
    return _append(features, coordinate_map(*features.shape[1:3]))


def append_x(features: Array) -> Array:
    """Appends the x coordinate alone: (B, h, w, C) to (B, h, w, C + 1), dtype kept."""
    return _append(features, coordinate_map(*features.shape[1:3])[..., :1])


def append_y(features: Array) -> Array:
    """Appends the y coordinate alone: (B, h, w, C) to (B, h, w, C + 1), dtype kept."""
    return _append(features, coordinate_map(*features.shape[1:3])[..., 1:])


def _append(features: Array, coords: np.ndarray) -> Array:
    shape = (*features.shape[:3], coords.shape[-1])
    coords = jnp.broadcast_to(jnp.asarray(coords, features.dtype), shape)
    return jnp.concatenate([features, coords], axis=-1)
