"""solojax.ops.images pixel by pixel."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from solojax.ops.images import normalize_image, valid_pixels

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
SIZES = np.array([[3, 4], [5, 2], [0, 0]], np.int32)


def test_valid_pixels_are_those_inside_each_image():
    valid = np.asarray(valid_pixels(5, 6, SIZES))
    for b, (height, width) in enumerate(SIZES):
        for y in range(5):
            for x in range(6):
                assert valid[b, y, x] == (y < height and x < width)


def test_normalising_pixel_by_pixel_and_zero_outside():
    image = np.random.default_rng(0).integers(0, 256, (3, 5, 6, 3), dtype=np.uint8)
    out = np.asarray(normalize_image(image, SIZES, MEAN, STD))
    assert out.dtype == np.float32
    for b, (height, width) in enumerate(SIZES):
        for y in range(5):
            for x in range(6):
                inside = y < height and x < width
                exact = [
                    (int(image[b, y, x, c]) - MEAN[c]) / STD[c] if inside else 0.0 for c in range(3)
                ]
                np.testing.assert_allclose(out[b, y, x], exact, rtol=0, atol=1e-6)


def test_bfloat16_is_rounded_once_at_the_end():
    image = np.full((1, 1, 1, 3), 124, np.uint8)
    size = np.ones((1, 2), np.int32)
    out = normalize_image(image, size, MEAN, STD, jnp.bfloat16)
    assert out.dtype == jnp.bfloat16
    exact = (124 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(out[0, 0, 0].astype(np.float32), exact, rtol=2.0**-8)
