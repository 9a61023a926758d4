"""Antialiased resizing against Pillow's recorded values and the triangle filter's definition."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.golden import load_arrays
from helpers.properties import reproducible
from hypothesis import given
from hypothesis import strategies as st

from solojax.data.antialias import resize_antialiased


def plain_axis(image, length):
    """(H, ...) to (length, ...) float64, one output pixel at a time."""
    scale = len(image) / length
    reach = max(scale, 1.0)
    rows = []
    for i in range(length):
        center = (i + 0.5) * scale
        weights = [max(0.0, 1 - abs(j + 0.5 - center) / reach) for j in range(len(image))]
        total = sum(w * row for w, row in zip(weights, image, strict=True))
        rows.append(total / sum(weights))
    return np.array(rows)


def plain_resize(image, height, width):
    resized = plain_axis(image.astype(np.float64), height)
    return plain_axis(resized.swapaxes(0, 1), width).swapaxes(0, 1)


@pytest.mark.parametrize("case", range(3))
def test_pillows_recorded_crops(case):
    arrays = load_arrays("views/views.npz")
    top, left, height, width = arrays[f"resized_crop/{case}/top_left_h_w"]
    crop = arrays["crop_source_rgb_hwc"][top : top + height, left : left + width]
    ours = resize_antialiased(crop, 64, 64)
    apart = np.abs(ours.astype(int) - arrays[f"resized_crop/{case}/pil_uint8_64"])
    assert ours.dtype == np.uint8 and apart.max() <= 1 and apart.mean() < 0.2


@reproducible
@given(st.tuples(*[st.integers(1, 20)] * 4), st.integers(0, 2**32 - 1))
def test_against_the_definition(sizes, seed):
    """Any two sizes, up and down; rounded once."""
    height, width, new_height, new_width = sizes
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    ours = resize_antialiased(image, new_height, new_width)
    assert ours.shape == (new_height, new_width, 3)
    exact = plain_resize(image, new_height, new_width)
    assert np.abs(ours - exact).max() <= 0.5 + 1e-3


def test_same_size_is_the_same_image():
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resize_antialiased(image, 7, 9), image)
    np.testing.assert_array_equal(resize_antialiased(image[:, ::-1], 7, 9), image[:, ::-1])
