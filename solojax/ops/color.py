"""Colour operations on batches of images, each image with a factor of its own.

Images are (..., 3, H, W) float RGB in [0, 1], planes of pixels: with the channels innermost, as
elsewhere, three of the 128 lanes of a TPU's registers would work. What an operation computes is
what `torchvision.transforms.functional` computes on float tensors, of which the published runs saw
the counterpart on 8-bit Pillow images (thesis 5.3.1).

dm-pix has two of the operations with these semantics, hue and grayscale. Its brightness adds
instead of multiplying, its contrast turns around each channel's own mean instead of the mean of
the grayscale image, its saturation scales HSV's saturation instead of mixing with the grayscale
image, and nothing is clipped. So all of them stand here.
"""

from __future__ import annotations

import jax.numpy as jnp

from solojax.structures import Array

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)

# ITU-R BT.601's luma, to four digits as torchvision has them.
_LUMA = (0.2989, 0.587, 0.114)


def to_grayscale(rgb: Array) -> Array:
    """(..., 1, H, W) luma of (..., 3, H, W)."""
    red, green, blue = _planes(rgb)
    return _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue


def rotate_hue(rgb: Array, turn: Array) -> Array:
    """Turns HSV's hue by a fraction of the full circle; value and saturation stay.

    With V the largest channel, C the largest less the smallest and H in [0, 6) the hue, the
    channels of an HSV colour are V - C clip(min(k, 4 - k), 0, 1) with k = (n + H) mod 6 and n = 5,
    3, 1 for red, green, blue: there is no need to divide by V for a saturation.

    Args:
      rgb: (..., 3, H, W) in [0, 1].
      turn: (...) in [-0.5, 0.5].
    """
    red, green, blue = _planes(rgb)
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    divisor = jnp.where(chroma == 0, 1.0, chroma)
    hue = jnp.where(
        value == red,
        green - blue,
        jnp.where(value == green, blue - red + 2 * divisor, red - green + 4 * divisor),
    )
    # Three channels by broadcasting: stacked planes compile to code with branches on CPU.
    offsets = jnp.asarray([5, 3, 1], rgb.dtype)[:, None, None]
    k = _modulo_6(hue / divisor + 6 * _per_image(turn) + offsets)
    return value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)


def jitter_colors(rgb: Array, factors: Array, order: Array) -> Array:
    """Applies the four operations to each image in an order of its own.

    Brightness, contrast and saturation differ only in what they mix the image with. So every one
    of four rounds computes one mixture and one hue, not four operations, and keeps one of them.

    Args:
      rgb: (N, 3, H, W) in [0, 1].
      factors: (N, 4) of `BRIGHTNESS`, `CONTRAST`, `SATURATION` and `HUE`.
      order: (N, 4) int, a permutation of these four: `order[n, r]` is what round r does.

    Returns:
      (N, 3, H, W) in [0, 1].
    """
    in_order = jnp.take_along_axis(factors, order, axis=1)
    for operation, factor in zip(order.T, in_order.T, strict=True):
        chosen = _per_image(operation)
        gray = to_grayscale(rgb)
        other = jnp.where(chosen == CONTRAST, _mean(gray), gray)
        other = jnp.where(chosen == BRIGHTNESS, 0.0, other)
        mixed = _blend(rgb, other, _per_image(factor))
        rgb = jnp.where(chosen == HUE, rotate_hue(rgb, factor), mixed)
    return rgb


def _blend(rgb: Array, other: Array | float, factor: Array) -> Array:
    return jnp.clip(factor * rgb + (1 - factor) * other, 0, 1)


def _mean(gray: Array) -> Array:
    return jnp.mean(gray, axis=(-2, -1), keepdims=True)


def _modulo_6(hue: Array) -> Array:
    # `%` is the C library's fmod, which XLA does not vectorise on CPU.
    return hue - 6 * jnp.floor(hue / 6)


def _planes(rgb: Array) -> tuple[Array, Array, Array]:
    """Red, green and blue, (..., 1, H, W) each."""
    return rgb[..., 0:1, :, :], rgb[..., 1:2, :, :], rgb[..., 2:3, :, :]


def _per_image(factor: Array) -> Array:
    """(...) to (..., 1, 1, 1), beside (..., 3, H, W)."""
    return jnp.asarray(factor)[..., None, None, None]
