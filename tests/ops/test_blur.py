"""Gaussian blur against a loop and against Pillow's recorded values."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.golden import load_arrays

from solojax.ops.blur import gaussian_blur

RECORDED = load_arrays("views/views.npz")


def plain_blur(image, sigma, reach=12):
    """(H, W) float64: the Gaussian far beyond where ours ends, pixels clamped to the border."""
    distances = np.arange(-reach, reach + 1)
    kernel = np.exp(-(distances**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    for axis, length in enumerate(image.shape):
        blurred = np.zeros_like(image)
        for place in range(length):
            for distance, weight in zip(distances, kernel, strict=True):
                source = image.take(min(max(place + distance, 0), length - 1), axis)
                target = blurred[place] if axis == 0 else blurred[:, place]
                target += weight * source
        image = blurred
    return image


def test_against_a_loop():
    """Each image with its own sigma; the ends of the kernel weigh less than 1e-4."""
    rng = np.random.default_rng(0)
    sigmas = np.array([0.1, 0.4, 1.0, 1.5, 2.0])
    images = rng.random((5, 2, 11, 7))
    ours = jax.jit(lambda x, s: gaussian_blur(x, s, max_sigma=2.0))(
        jnp.float32(images), jnp.float32(sigmas)[:, None]
    )
    for image, sigma, result in zip(images, sigmas, ours, strict=True):
        for channel in range(2):
            expected = plain_blur(image[channel], sigma)
            np.testing.assert_allclose(result[channel], expected, rtol=0, atol=2e-4)


def test_sigma_0_is_the_image_to_the_bit():
    images = jnp.float32(np.random.default_rng(1).random((3, 1, 20, 18)))
    ours = gaussian_blur(images, jnp.float32([[0.0], [1.0], [0.0]]), max_sigma=2.0)
    np.testing.assert_array_equal(ours[0], images[0])
    np.testing.assert_array_equal(ours[2], images[2])
    assert np.abs(ours[1] - images[1]).max() > 0.1


def test_even_images_and_sums_stay():
    even = jnp.full((1, 9, 5), 0.3)
    np.testing.assert_allclose(gaussian_blur(even, jnp.float32([1.3]), max_sigma=2.0), 0.3, 1e-6)
    point = jnp.zeros((1, 41, 41)).at[0, 20, 20].set(1)
    blurred = np.asarray(gaussian_blur(point, jnp.float32([2.0]), max_sigma=2.0)[0], np.float64)
    assert blurred.sum() == pytest.approx(1, abs=1e-6)
    distances = np.arange(41) - 20
    assert (blurred.sum(0) * distances**2).sum() == pytest.approx(4.0, rel=2e-3)  # the variance


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 1.7, 2.0])
def test_pillows_approximation(sigma):
    """Pillow's three box blurs of 8-bit pixels: two grey levels nearly everywhere.

    At 1.7 and 2.0 up to eleven, at the border alone.
    """
    image = jnp.asarray(np.moveaxis(RECORDED["image_rgb_hwc"], -1, 0), jnp.float32) / 255
    ours = gaussian_blur(image, jnp.float32([sigma]), max_sigma=2.0)
    ours = np.rint(255 * np.moveaxis(np.asarray(ours), 0, -1)).reshape(-1)
    recorded = RECORDED[f"gaussian_blur/{sigma}/pil_uint8"].astype(int)
    apart = np.abs(ours[RECORDED["sample_idx"]] - recorded)
    assert apart.mean() < 0.7 and np.percentile(apart, 99) <= 3 and apart.max() <= 11
    y, x, _ = np.unravel_index(RECORDED["sample_idx"], RECORDED["image_rgb_hwc"].shape)
    is_inside = (y >= 6) & (y < 90) & (x >= 6) & (x < 74)
    assert apart[is_inside].max() <= 3
