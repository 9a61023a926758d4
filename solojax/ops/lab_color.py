"""Colours as CIE Lab, in which distances are those that people see."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from solojax.structures import Array


def _linear_light() -> np.ndarray:
    """Linear light of the 256 sRGB values, IEC 61966-2-1: a line near black, a power above it."""
    values = np.arange(256) / 255.0
    return np.where(values > 0.04045, ((values + 0.055) / 1.055) ** 2.4, values / 12.92)


_LINEAR_LIGHT = _linear_light()
# Linear sRGB (ITU-R BT.709 primaries, white point D65) to CIE XYZ, six digits, as scikit-image.
_XYZ_OF_RGB = np.array(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
)
_WHITE = np.array([0.95047, 1.0, 1.08883])  # D65 as the 2 degree observer sees it
# CIE 1976 L*a*b*: the cube root gives way to a line near black.
_LAB_THRESHOLD, _LAB_SLOPE, _LAB_OFFSET = 0.008856, 7.787, 16.0 / 116.0


def rgb_to_lab(rgb: Array) -> Array:
    """sRGB to CIE Lab: L in [0, 100], a and b in about [-108, 99].

    Linear light comes from a table, because a power in float32 would double the error. The
    differences of cube roots, of which a and b are multiples, are taken from the differences of
    what is under them, so that greys, where the roots cancel, keep their digits.

    Args:
      rgb: (..., 3) uint8.

    Returns:
      (..., 3) float32, within 5e-5 of exact values.
    """
    linear = jnp.asarray(_LINEAR_LIGHT, jnp.float32)[rgb.astype(jnp.int32)]
    rows = _XYZ_OF_RGB / _WHITE[:, None]
    x, y, z = (_weighted(linear, row) for row in rows)
    root_x, root_y, root_z = map(_root, (x, y, z))
    a = _root_difference(root_x, root_y, x, y, _weighted(linear, rows[0] - rows[1]))
    b = _root_difference(root_y, root_z, y, z, _weighted(linear, rows[1] - rows[2]))
    return jnp.stack([116.0 * root_y - 16.0, 500.0 * a, 200.0 * b], axis=-1)


def _weighted(linear: Array, row: np.ndarray) -> Array:
    return sum(float(weight) * linear[..., i] for i, weight in enumerate(row))


def _root(t: Array) -> Array:
    return jnp.where(t > _LAB_THRESHOLD, jnp.cbrt(t), _LAB_SLOPE * t + _LAB_OFFSET)


def _root_difference(root_s: Array, root_t: Array, s: Array, t: Array, difference: Array) -> Array:
    """root_s - root_t, by s - t where both are cube roots."""
    squares = root_s * root_s + root_s * root_t + root_t * root_t
    cubic = (s > _LAB_THRESHOLD) & (t > _LAB_THRESHOLD)
    return jnp.where(cubic, difference / squares, root_s - root_t)
