"""Gaussian blur of batches of images, each image with a width of its own."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import lax

from solojax.structures import Array

# Where the kernel ends, in units of sigma: what lies beyond sums to 6e-5.
_REACH = 4


def gaussian_blur(images: Array, sigma: Array, *, max_sigma: float) -> Array:
    """Convolves with a Gaussian; beyond the border, the border's pixels go on.

    The kernel is sampled at whole pixels and normalised, first down, then across. Its length
    is that of `max_sigma` for all images, so that one program serves every width.

    The published views are blurred by Pillow, which approximates the Gaussian by three box blurs
    of 8-bit pixels; see the tests for how far the two are apart.

    Args:
      images: (..., H, W) float.
      sigma: standard deviations in pixels, in [0, max_sigma], of a shape that broadcasts with that
        of the images without H and W, as (N, 1) for (N, 3, H, W). 0 leaves an image as it is, to
        the bit.
      max_sigma: static.

    Returns:
      (..., H, W).
    """
    radius = max(1, math.ceil(_REACH * max_sigma))
    kernel = _gaussian_kernel(jnp.asarray(sigma, images.dtype), radius)
    return _convolve(_convolve(images, kernel, axis=-2), kernel, axis=-1)


def _gaussian_kernel(sigma: Array, radius: int) -> list[Array]:
    """2 radius + 1 weights of shape (..., 1, 1) that sum to 1."""
    sigma = sigma[..., None, None]
    is_blurred = sigma > 0
    variance = jnp.where(is_blurred, sigma, 1) ** 2
    # With sigma 0 the weight of the distance 0 stands alone.
    weights = [
        jnp.where(is_blurred, jnp.exp(-(distance**2) / (2 * variance)), float(distance == 0))
        for distance in range(-radius, radius + 1)
    ]
    total = sum(weights)
    return [weight / total for weight in weights]


def _convolve(images: Array, kernel: list[Array], axis: int) -> Array:
    """Along one axis, as a sum of shifted images: a multiply-add per weight and pixel.

    A convolution with a kernel per image would need a group per image, which compiles badly, and
    a product with a banded matrix H or W times wider than the kernel.
    """
    radius, length = len(kernel) // 2, images.shape[axis]
    padding = [(0, 0)] * images.ndim
    padding[axis] = (radius, radius)
    # Without the barrier, XLA on CPU computes what the images came from once for every weight.
    padded = lax.optimization_barrier(jnp.pad(images, padding, mode="edge"))
    return sum(
        weight * lax.slice_in_dim(padded, start, start + length, axis=images.ndim + axis)
        for start, weight in enumerate(kernel)
    )
