"""Colour operations against torchvision's recorded values and against loops over pixels."""

from __future__ import annotations

import colorsys
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.golden import load_arrays
from helpers.properties import reproducible
from hypothesis import given
from hypothesis import strategies as st

from solojax.ops.color import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    SATURATION,
    jitter_colors,
    rotate_hue,
    to_grayscale,
)

RECORDED = load_arrays("views/views.npz")
OPERATIONS = {"brightness": BRIGHTNESS, "contrast": CONTRAST, "saturation": SATURATION, "hue": HUE}
NEUTRAL = (1.0, 1.0, 1.0, 0.0)
CASES = sorted(
    key.removesuffix("/tensor_float")
    for key in RECORDED
    if key.endswith("/tensor_float") and not key.startswith("grayscale")
)


def planes(image_hwc):
    """(H, W, 3) to (1, 3, H, W) float32."""
    return jnp.asarray(np.moveaxis(image_hwc, -1, 0)[None], jnp.float32)


def recorded_image():
    return planes(RECORDED["image_rgb_hwc"]) / 255


def sampled(rgb):
    """Our (1, 3, H, W) at the recorded places."""
    return np.moveaxis(np.asarray(rgb[0]), 0, -1).reshape(-1)[RECORDED["sample_idx"]]


def adjusted(name, factor):
    """The recorded image after one operation, the other three leaving it as it is."""
    factors = jnp.float32(NEUTRAL).at[OPERATIONS[name]].set(factor)
    return jitter_colors(recorded_image(), factors[None], jnp.arange(4)[None])


def levels_apart(rgb, key):
    """Distance to the recorded 8-bit values, in grey levels."""
    return np.abs(np.rint(255 * sampled(rgb)) - RECORDED[f"{key}/pil_uint8"].astype(int))


def mixed(pixel, other, factor):
    return [
        min(max(factor * p + (1 - factor) * o, 0.0), 1.0) for p, o in zip(pixel, other, strict=True)
    ]


def luma(pixel):
    return 0.2989 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]


def turned(pixel, turn):
    hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
    return colorsys.hsv_to_rgb((hue + turn) % 1.0, saturation, value)


def plain_operation(image, operation, factor):
    """(H, W, 3) float64, pixel by pixel from the definitions."""
    height, width, _ = image.shape
    pixels = [image[y, x].tolist() for y in range(height) for x in range(width)]
    mean = sum(map(luma, pixels)) / len(pixels)
    result = {
        BRIGHTNESS: lambda p: mixed(p, [0] * 3, factor),
        CONTRAST: lambda p: mixed(p, [mean] * 3, factor),
        SATURATION: lambda p: mixed(p, [luma(p)] * 3, factor),
        HUE: lambda p: turned(p, factor),
    }[operation]
    return np.array([result(pixel) for pixel in pixels]).reshape(image.shape)


@pytest.mark.parametrize("case", CASES)
def test_recorded_float_values(case):
    name, factor = case.split("/")
    ours = adjusted(name, float(factor))
    np.testing.assert_allclose(sampled(ours), RECORDED[f"{case}/tensor_float"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_recorded_8_bit_values(case):
    """One grey level; in hue eleven, since Pillow's hue has 8 bits (torchvision's floats too)."""
    name, factor = case.split("/")
    apart = levels_apart(adjusted(name, float(factor)), case)
    assert apart.max() <= (11 if name == "hue" else 1)
    assert apart.mean() <= (1.2 if name == "hue" else 0.6)


def test_recorded_grayscale():
    ours = jnp.broadcast_to(to_grayscale(recorded_image()), recorded_image().shape)
    np.testing.assert_allclose(sampled(ours), RECORDED["grayscale/tensor_float"], rtol=0, atol=1e-5)
    assert levels_apart(ours, "grayscale").max() <= 1


def test_recorded_chain():
    factors = jnp.float32([[1.2, 1.3, 0.7, 0.05]])
    order = jnp.int32([[BRIGHTNESS, HUE, SATURATION, CONTRAST]])
    ours = jitter_colors(recorded_image(), factors, order)
    apart = levels_apart(ours, "chain/brightness1.2_hue.05_saturation.7_contrast1.3")
    assert apart.max() <= 15 and apart.mean() <= 2.1


def test_every_order_against_loops():
    """All 24 orders in one batch, each image with factors of its own."""
    rng = np.random.default_rng(0)
    orders = np.array(list(itertools.permutations(range(4))), np.int32)
    images = rng.random((24, 3, 4, 3))
    factors = rng.uniform([0.6, 0.6, 0.6, -0.1], [1.4, 1.4, 1.4, 0.1], (24, 4))
    ours = jax.jit(jitter_colors)(
        jnp.asarray(np.moveaxis(images, -1, 1), jnp.float32),
        jnp.asarray(factors, jnp.float32),
        jnp.asarray(orders),
    )
    for image, factor, order, result in zip(images, factors, orders, ours, strict=True):
        for operation in order:
            image = plain_operation(image, operation, factor[operation])
        np.testing.assert_allclose(np.moveaxis(result, 0, -1), image, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "pixel", [(0, 0, 0), (1, 1, 1), (0.5, 0.5, 0.5), (1, 0, 0), (0, 1, 1), (1, 1, 0), (0.2, 0, 0.2)]
)
@pytest.mark.parametrize("turn", [-0.5, -1 / 3, 0.0, 1 / 6, 0.5])
def test_hue_of_corner_colours(pixel, turn):
    ours = rotate_hue(jnp.float32(pixel).reshape(1, 3, 1, 1), jnp.float32([turn]))
    np.testing.assert_allclose(ours.reshape(3), turned(pixel, turn), rtol=0, atol=1e-6)


@reproducible
@given(st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3), st.floats(-0.5, 0.5, width=32))
def test_hue_keeps_value_and_chroma(pixel, turn):
    ours = rotate_hue(jnp.float32(pixel).reshape(1, 3, 1, 1), jnp.float32([turn])).reshape(3)
    assert float(ours.max()) == pytest.approx(max(pixel), abs=1e-6)
    assert float(ours.min()) == pytest.approx(min(pixel), abs=1e-6)
    np.testing.assert_allclose(ours, turned(pixel, turn), rtol=0, atol=2e-6)


def test_neutral_factors_change_nothing():
    unchanged = jitter_colors(recorded_image(), jnp.float32([NEUTRAL]), jnp.arange(4)[None])
    np.testing.assert_allclose(unchanged, recorded_image(), rtol=0, atol=1e-6)
