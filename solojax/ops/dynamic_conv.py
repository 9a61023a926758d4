"""Dynamic 3x3 convolution: the kernel shape that thesis Table 4.3 compares with 1x1."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from solojax.ops.convolution import convolve
from solojax.structures import Array


def dynamic_conv_3x3(kernels: Array, features: Array) -> Array:
    """Convolves every image's features with that image's own 3x3 kernels (thesis 4.2.1).

    Taps are row by row, E innermost: `kernels.reshape(B, P, 3, 3, E)`, and as in every network
    library the kernel is not mirrored. Beyond the map lie zeros.

    Written as convolutions, since sums of nine shifted products hold about nine maps at once. All
    images go through one grouped convolution, which accelerators run well and can split over
    devices along B; CPUs have no fast one and take the images one by one.

    Args:
      kernels: (B, P, 9 * E).
      features: (B, h, w, E).

    Returns:
      (B, P, h, w) mask logits, float32 (float64 for float64 inputs); half precision is widened
      before the products.
    """
    batch, count, _ = kernels.shape
    dtype = jnp.promote_types(features.dtype, jnp.float32)
    taps = kernels.astype(dtype).reshape(batch, count, 3, 3, features.shape[-1])
    logits = jax.lax.platform_dependent(
        features.astype(dtype),
        jnp.moveaxis(taps, 1, -1),
        cpu=_convolve_one_by_one,
        default=_convolve_together,
    )
    return jnp.moveaxis(logits, -1, 1)


def _convolve_one_by_one(features: Array, taps: Array) -> Array:
    """(B, h, w, E) with (B, 3, 3, E, P) to (B, h, w, P)."""
    images = [convolve(features[b : b + 1], taps[b]) for b in range(features.shape[0])]
    return jnp.concatenate(images)


def _convolve_together(features: Array, taps: Array) -> Array:
    """As `_convolve_one_by_one`."""
    convolve_image = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding=((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return jax.vmap(lambda image, tap: convolve_image(image[None], tap)[0])(features, taps)
