"""solojax.ops.neighbors against loops over pixels."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from helpers import plain_weak_losses as plain

from solojax.ops.neighbors import (
    color_similarity,
    colored_pixels,
    image_color_similarity,
    neighbor_offsets,
    shrink_colors,
    unfold_neighbors,
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("size", "dilation"), [(3, 1), (3, 2), (5, 1), (5, 3)])
def test_unfold(size, dilation):
    x = RNG.normal(size=(2, 7, 6)).astype(np.float32)
    found = np.asarray(unfold_neighbors(x, size=size, dilation=dilation))
    assert found.shape == (2, size * size - 1, 7, 6)
    steps = [dilation * (i - size // 2) for i in range(size)]
    places = [(a, b) for a in steps for b in steps if (a, b) != (0, 0)]
    assert neighbor_offsets(size, dilation) == tuple(places)
    for n, k, y, x_ in np.ndindex(found.shape):
        b, a = y + places[k][0], x_ + places[k][1]
        inside = 0 <= b < 7 and 0 <= a < 6
        assert found[n, k, y, x_] == (x[n, b, a] if inside else 0)


def test_color_similarity():
    lab = RNG.normal(0, 2, (6, 9, 3)).astype(np.float32)
    valid = RNG.random((6, 9)) < 0.8
    for dilation in (1, 2):
        found = color_similarity(lab, valid, dilation=dilation)
        wanted = plain.similarities(lab.astype(np.float64), valid, dilation)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
        assert 0 < (wanted > 0).mean() < 1


def test_colours_shrink_to_means_rounded_down():
    image = RNG.integers(0, 256, (2, 8, 12, 3), dtype=np.uint8)
    found = np.asarray(shrink_colors(image))
    assert found.dtype == np.uint8
    for row, y, x, c in np.ndindex(found.shape):
        block = image[row, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4, c]
        assert found[row, y, x, c] == int(block.astype(int).sum()) // 16


@pytest.mark.parametrize("bottom", [0, 10, 25])
def test_which_pixels_have_a_colour(bottom):
    sizes = np.array([[64, 96], [50, 33], [64, 7], [3, 96], [0, 0]], np.int32)
    files = np.array([[64, 96], [427, 282], [10, 9], [300, 9600], [0, 0]], np.int32)
    found = np.asarray(colored_pixels(64, 96, sizes, files, bottom))
    assert found.shape == (5, 16, 24)
    for row, ((height, width), (file_height, _)) in enumerate(zip(sizes, files, strict=True)):
        sheet = np.zeros((64, 96), bool)
        cut = int(float(bottom) * float(height) / float(file_height)) if file_height else 0
        sheet[: max(height - cut, 0), :width] = True
        np.testing.assert_array_equal(found[row], sheet[2::4, 2::4])


def test_images():
    """Smooth images, so that many neighbours are alike; one smaller than its canvas."""
    coarse = RNG.integers(0, 256, (2, 2, 2, 3)).repeat(16, axis=1).repeat(20, axis=2)
    image = np.clip(coarse + RNG.integers(-9, 10, coarse.shape), 0, 255).astype(np.uint8)
    size = np.array([[32, 40], [27, 30]], np.int32)
    image[1, 27:], image[1, :, 30:] = 0, 0
    files = np.array([[48, 60], [27, 30]], np.int32)
    found = jax.jit(functools.partial(image_color_similarity, dilation=2))(image, size, files)
    for row in range(2):
        wanted = plain.image_similarities(image[row], size[row], files[row])
        np.testing.assert_allclose(found[row], wanted, rtol=0, atol=1e-5)
        assert 0.05 < (wanted >= 0.3).mean() < 0.6
