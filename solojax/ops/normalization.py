"""Group normalisation with a gradient of its own."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from solojax.structures import Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def group_norm(x: Array, scale: Array, bias: Array, num_groups: int, epsilon: float) -> Array:
    """Normalises over space and each group's channels, then scales and shifts every channel.

    Statistics are in float32 at least. The backward pass keeps the input, in its own type, and two
    numbers a group, where automatic differentiation would keep two float32 copies of the map; it
    reads input and gradient twice.

    Args:
      x: (B, h, w, C).
      scale: (C,).
      bias: (C,).
      num_groups: groups of C / num_groups channels each.
      epsilon: added to the variance.

    Returns:
      (B, h, w, C) float32 (float64 for float64 inputs).
    """
    return _forward(x, scale, bias, num_groups, epsilon)[0]


def _forward(x: Array, scale: Array, bias: Array, num_groups: int, epsilon: float):
    exact = _exact(x)
    # Sums over space per channel, and only then over a group's channels: splitting the innermost
    # axis into groups would keep every unit that works on vectors from it.
    mean = _group_mean(jnp.mean(exact, axis=(1, 2)), num_groups)
    centered = exact - mean[:, None, None]
    variance = _group_mean(jnp.mean(jnp.square(centered), axis=(1, 2)), num_groups)
    inverse = jax.lax.rsqrt(variance + epsilon)
    return centered * inverse[:, None, None] * scale + bias, (x, scale, bias, mean, inverse)


def _backward(num_groups: int, epsilon: float, residuals, gradient: Array):
    x, scale, bias, mean, inverse = residuals
    normalized = (_exact(x) - mean[:, None, None]) * inverse[:, None, None]
    # Per image and channel; everything that is not elementwise follows from these two sums.
    shift = jnp.sum(gradient, axis=(1, 2))
    stretch = jnp.sum(gradient * normalized, axis=(1, 2))
    pixels = x.shape[1] * x.shape[2]
    mean_shift = _group_mean(shift * scale, num_groups)[:, None, None] / pixels
    mean_stretch = _group_mean(stretch * scale, num_groups)[:, None, None] / pixels
    moved = gradient * scale - mean_shift - normalized * mean_stretch
    return (
        (moved * inverse[:, None, None]).astype(x.dtype),
        jnp.sum(stretch, axis=0).astype(scale.dtype),
        jnp.sum(shift, axis=0).astype(bias.dtype),
    )


group_norm.defvjp(_forward, _backward)


def _exact(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _group_mean(channels: Array, num_groups: int) -> Array:
    """(B, C) to each channel's group mean (B, C)."""
    batch, count = channels.shape
    groups = jnp.mean(channels.reshape(batch, num_groups, -1), axis=-1)
    return jnp.repeat(groups, count // num_groups, axis=-1)
