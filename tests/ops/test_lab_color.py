"""solojax.ops.lab_color against the float64 formula and colours from tables."""

from __future__ import annotations

import jax
import numpy as np
from helpers.plain_weak_losses import lab_of

from solojax.ops.lab_color import rgb_to_lab

convert = jax.jit(rgb_to_lab)


def test_colours_of_the_whole_cube():
    levels = np.unique(np.r_[np.arange(0, 256, 15), 1, 2, 9, 10, 11, 12, 254]).astype(np.uint8)
    rgb = np.stack(np.meshgrid(levels, levels, levels), axis=-1)
    found = convert(rgb)
    assert found.dtype == np.float32 and found.shape == rgb.shape
    np.testing.assert_allclose(found, lab_of(rgb), rtol=0, atol=5e-5)


def test_known_colours():
    """Of D65 sRGB, from tables: black, white, the primaries."""
    rgb = np.array([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    wanted = [[0, 0, 0], [100, 0, 0], [53.24, 80.09, 67.20], [87.74, -86.18, 83.18],
              [32.30, 79.19, -107.86]]  # fmt: skip
    np.testing.assert_allclose(convert(rgb), wanted, rtol=0, atol=0.02)


def test_greys_have_no_colour_to_speak_of():
    """The six digits of the matrix leave 3e-3; what float32 adds is less than 1e-5."""
    greys = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    found = np.asarray(convert(greys))
    np.testing.assert_allclose(found[:, 1:], lab_of(greys)[:, 1:], rtol=0, atol=1e-5)
    assert np.abs(found[:, 1:]).max() < 0.02
    assert np.all(np.diff(found[:, 0]) > 0)
