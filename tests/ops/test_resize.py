"""solojax.ops.resize against a loop over pixels, and worked examples."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.plain_layers import bilinear

from solojax.ops.resize import (
    bilinear_weights,
    downsample_mean_2x,
    resize_bilinear,
    upsample_bilinear_2x,
    upsample_nearest_2x,
)

IMAGES = np.random.default_rng(0).normal(size=(2, 7, 10, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "size", [(14, 20), (7, 10), (3, 4), (1, 1), (2, 11), (5, 25), (40, 36), (6, 1)]
)
def test_resizing_is_the_loop_over_pixels(size):
    resize = jax.jit(functools.partial(resize_bilinear, height=size[0], width=size[1]))
    out = resize(IMAGES)
    assert out.dtype == jnp.float32
    # A float32 position near 10 is rounded by up to 5e-7, its float32 scale by as much again, on
    # either axis; neighbours here differ by up to 5.
    np.testing.assert_allclose(out, bilinear(IMAGES, *size), rtol=0, atol=4 * 5e-7 * 5)


def test_resizing_float64_is_exact_to_float64():
    with jax.enable_x64(True):
        images = IMAGES.astype(np.float64)
        out = resize_bilinear(jnp.asarray(images), 9, 23)
        assert out.dtype == jnp.float64
        np.testing.assert_allclose(out, bilinear(images, 9, 23), rtol=0, atol=1e-13)


def test_bfloat16_stays_bfloat16_and_is_rounded_only_after_each_axis():
    images = jnp.asarray(IMAGES, jnp.bfloat16)
    out = resize_bilinear(images, 5, 12)
    assert out.dtype == jnp.bfloat16
    exact = bilinear(np.asarray(images, np.float32), 5, 12)
    # One rounding is 2^-9 of the value at most; neighbours are at most 4.
    np.testing.assert_allclose(out.astype(np.float32), exact, rtol=0, atol=2 * 4 * 2.0**-9)


def test_two_pixels_become_four_and_four_become_two():
    np.testing.assert_allclose(bilinear_weights(4, 2) @ [0, 1], [0, 0.25, 0.75, 1])
    np.testing.assert_allclose(bilinear_weights(2, 4) @ [0, 1, 10, 20], [0.5, 15])
    # Shrinking by 3 takes the middle pixel alone: there is no anti-aliasing.
    np.testing.assert_allclose(bilinear_weights(2, 6) @ [5, 1, 5, 5, 2, 5], [1, 2], atol=1e-6)


@pytest.mark.parametrize("sizes", [(1, 1), (1, 5), (5, 1), (40, 100), (36, 167), (13, 12)])
def test_weights_are_means_of_at_most_two_pixels(sizes):
    weights = bilinear_weights(*sizes)
    assert weights.shape == sizes and weights.dtype == np.float32
    assert np.all(weights >= 0)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=0, atol=1e-6)
    assert np.all(np.count_nonzero(weights, axis=1) <= 2)


def test_doubling_is_the_loop_over_pixels():
    for images in (IMAGES, IMAGES[:, :1, :1]):
        out = jax.jit(upsample_bilinear_2x)(images)
        expected = bilinear(images, 2 * images.shape[1], 2 * images.shape[2])
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(3, 4), (1, 3), (2, 1)])
def test_the_gradient_of_doubling_is_its_transpose(size):
    """Column by column: the gradient's weight of a pixel is what its own image doubles to."""
    basis = np.eye(size[0] * size[1]).reshape(-1, *size, 1)
    columns = bilinear(basis, 2 * size[0], 2 * size[1])
    cotangent = np.random.default_rng(1).normal(size=columns.shape[1:]).astype(np.float32)
    image = np.zeros((1, *size, 1), np.float32)
    pull = jax.jit(lambda g: jax.vjp(upsample_bilinear_2x, image)[1](g))
    (gradient,) = pull(cotangent[None])
    expected = (columns * cotangent).sum(axis=(1, 2, 3)).reshape(size)
    np.testing.assert_allclose(gradient[0, :, :, 0], expected, rtol=1e-5, atol=1e-6)


def test_doubling_keeps_bfloat16():
    images = jax.ShapeDtypeStruct(IMAGES.shape, jnp.bfloat16)
    assert jax.eval_shape(upsample_bilinear_2x, images).dtype == jnp.bfloat16


def test_nearest_doubling_repeats_pixels():
    out = np.asarray(upsample_nearest_2x(jnp.asarray(IMAGES)))
    assert out.shape == (2, 14, 20, 3)
    for y in range(14):
        for x in range(20):
            np.testing.assert_array_equal(out[:, y, x], IMAGES[:, y // 2, x // 2])


def test_halving_takes_means_of_four_as_bilinear_resizing_by_half_does():
    images = IMAGES[:, :6]
    out = downsample_mean_2x(jnp.asarray(images))
    assert out.shape == (2, 3, 5, 3)
    corner = (images[:, 0, 0] + images[:, 0, 1] + images[:, 1, 0] + images[:, 1, 1]) / 4
    np.testing.assert_allclose(out[:, 0, 0], corner, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out, bilinear(images, 3, 5), rtol=0, atol=1e-6)
