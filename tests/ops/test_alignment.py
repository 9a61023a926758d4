"""solojax.ops.alignment against loops over cells, and worked examples."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.plain_layers import bilinear
from helpers.tiny import quick_jit

from solojax.ops.alignment import align_adaptive_max_pool, align_interpolate, align_region_grid

WAYS = (align_interpolate, align_adaptive_max_pool, align_region_grid)
# Divisible, odd, coprime, S beyond h, S beyond both, one cell, one row of pixels.
SIZES = [((8, 12), 4), ((7, 11), 3), ((13, 10), 7), ((5, 9), 6), ((3, 4), 7), ((5, 6), 1)]
SIZES += [((1, 6), 4)]


def random_features(size, channels=2):
    return np.random.default_rng(sum(size)).normal(size=(2, *size, channels)).astype(np.float32)


def plain_max_pool(image, side):
    """Adaptive maxima of one (h, w, C), bin by bin."""
    height, width, channels = image.shape
    out = np.zeros((side, side, channels))
    for i in range(side):
        for j in range(side):
            y0, y1 = math.floor(i * height / side), math.ceil((i + 1) * height / side)
            x0, x1 = math.floor(j * width / side), math.ceil((j + 1) * width / side)
            out[i, j] = image[y0:y1, x0:x1].max(axis=(0, 1))
    return out


def sample(image, y, x):
    """One bilinear sample of (h, w, C) at continuous coordinates, pixel centres at halves."""
    y, x = (min(max(p - 0.5, 0), size - 1) for p, size in zip((y, x), image.shape[:2], strict=True))
    value = 0.0
    for row in (math.floor(y), math.ceil(y)):
        for column in (math.floor(x), math.ceil(x)):
            weight_y = 1 - abs(y - row) if row != y else 0.5  # a whole y meets its row twice
            weight_x = 1 - abs(x - column) if column != x else 0.5
            value = value + weight_y * weight_x * image[row, column].astype(np.float64)
    return value


def plain_region_grid(image, side, samples_y, samples_x):
    """The mean of a grid of samples inside each cell."""
    height, width, channels = image.shape
    out = np.zeros((side, side, channels))
    for i in range(side):
        for j in range(side):
            points = [
                sample(
                    image,
                    (i + (a + 0.5) / samples_y) * height / side,
                    (j + (b + 0.5) / samples_x) * width / side,
                )
                for a in range(samples_y)
                for b in range(samples_x)
            ]
            out[i, j] = np.mean(points, axis=0)
    return out


@pytest.mark.parametrize(("size", "side"), SIZES)
def test_interpolation_is_the_loop_over_pixels(size, side):
    features = random_features(size)
    out = quick_jit(align_interpolate, static_argnums=1)(features, side)
    np.testing.assert_allclose(out, bilinear(features, side, side), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("size", "side"), SIZES)
def test_adaptive_max_pool_is_the_loop_over_bins(size, side):
    features = random_features(size)
    out = quick_jit(align_adaptive_max_pool, static_argnums=1)(features, side)
    assert out.dtype == jnp.float32
    for ours, image in zip(out, features, strict=True):
        np.testing.assert_array_equal(ours, plain_max_pool(image, side))


@pytest.mark.parametrize(("size", "side"), SIZES)
@pytest.mark.parametrize("samples", [3, None])
def test_region_grid_is_the_loop_over_samples(size, side, samples):
    features = random_features(size)
    out = quick_jit(functools.partial(align_region_grid, side=side, samples=samples))(features)
    assert out.dtype == jnp.float32
    per_axis = [samples or math.ceil(length / side) for length in size]
    for ours, image in zip(out, features, strict=True):
        plain = plain_region_grid(image, side, *per_axis)
        np.testing.assert_allclose(ours, plain, rtol=0, atol=2e-6)


def test_worked_examples():
    row = jnp.arange(5.0).reshape(1, 1, 5, 1)
    # Bins of five pixels in two cells share the middle one.
    np.testing.assert_array_equal(align_adaptive_max_pool(row, 2)[0, 0, :, 0], [2, 4])
    # More cells than pixels: a bin holds the one or two pixels that its cell touches.
    np.testing.assert_array_equal(align_adaptive_max_pool(row[:, :, :2], 3)[0, 0, :, 0], [0, 1, 1])
    # Each cell is 2.5 pixels wide: samples at 0.625 and 1.875, less half a pixel.
    out = align_region_grid(row, 2, samples=2)
    np.testing.assert_allclose(out[0, 0, :, 0], [0.75, 3.25], rtol=1e-6)


def test_one_sample_is_interpolation():
    features = random_features((7, 11))
    one = align_region_grid(features, 5, samples=1)
    np.testing.assert_allclose(one, align_interpolate(features, 5), rtol=0, atol=1e-5)


@pytest.mark.parametrize("align", WAYS)
def test_gradients_are_those_of_finite_differences(align):
    with jax.enable_x64(True):
        features = random_features((5, 7)).astype(np.float64)
        weights = np.random.default_rng(1).normal(size=(2, 3, 3, 2))

        def total(x):
            return jnp.sum(align(x, 3) * weights)

        gradient = np.asarray(quick_jit(jax.grad(total))(features))
        direction = np.random.default_rng(2).normal(size=features.shape)
        step = 1e-6  # no two pixels are as near: the maxima stay where they are
        moved = quick_jit(total)
        slope = (moved(features + step * direction) - moved(features - step * direction)) / (
            2 * step
        )
        np.testing.assert_allclose(np.sum(gradient * direction), slope, rtol=1e-7)
        if align is not align_adaptive_max_pool:  # weights of every cell sum to 1
            np.testing.assert_allclose(gradient.sum(), weights.sum(), rtol=1e-9)


def test_pixels_that_tie_share_the_gradient_of_their_bin():
    def total(x):
        return jnp.sum(align_adaptive_max_pool(x, 2))

    gradient = quick_jit(jax.grad(total))(jnp.zeros((1, 4, 4, 1)))
    np.testing.assert_allclose(gradient[0, :, :, 0], np.full((4, 4), 0.25))


@pytest.mark.parametrize("align", WAYS)
def test_bfloat16_stays_bfloat16(align):
    features = jnp.asarray(random_features((6, 9)), jnp.bfloat16)
    out = align(features, 4)
    assert out.dtype == jnp.bfloat16
    exact = align(features.astype(jnp.float32), 4)
    # Interpolation is rounded after either axis, by 2^-9 of values up to 4.
    np.testing.assert_allclose(out.astype(np.float32), exact, rtol=0, atol=2 * 4 * 2.0**-9)
