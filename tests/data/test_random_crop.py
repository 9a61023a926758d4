"""Boxes of random resized crops: by hand, by their properties and by their distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers.properties import reproducible
from hypothesis import given
from hypothesis import strategies as st

from solojax.data.random_bits import philox
from solojax.data.random_crop import DRAWS, check_crop, random_crop_box
from solojax.errors import InputError

SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)


def words(*tries):
    """Raw words that give these even draws; further tries are all 1/2."""
    draws = np.full((DRAWS // 4, 4), 0.5)
    for index, draw in enumerate(tries):
        draws[index] = draw
    return (draws.reshape(-1) * 2.0**53).astype(np.uint64) << np.uint64(11)


def box(height, width, bits, scale=SCALE, ratio=RATIO):
    return random_crop_box(height, width, bits, scale=scale, ratio=ratio)


def test_by_hand():
    # Area 0.6 of 100 x 100 = 6000 at ratio 1: sides 77.46, hence 77; 24 places, the 12th of them.
    assert box(100, 100, words()) == (12, 12, 77, 77)
    # Area 2000 at ratio 4/3: width sqrt(2666.7) = 51.6, height sqrt(1500) = 38.7.
    assert box(100, 100, words((0, 1 - 2**-30, 0, 1 - 2**-30))) == (0, 48, 39, 52)
    # The whole image at ratio 1, then the last places of both axes.
    assert box(100, 100, words((1 - 2**-30, 0.5, 0.9, 0.9))) == (0, 0, 100, 100)


def test_a_box_that_does_not_fit_is_drawn_again():
    # Area 0.99 at ratio 4/3 is 115 wide.
    too_wide = (0.99, 1 - 2**-30, 0, 0)
    assert box(100, 100, words(too_wide, too_wide)) == (12, 12, 77, 77)


@pytest.mark.parametrize(
    "size,expected",
    [
        ((10, 1000), (0, 493, 10, 13)),  # 10 * 4/3 wide, in the middle
        ((1000, 10), (493, 0, 13, 10)),  # 10 / (3/4) high
        ((1, 1), (0, 0, 1, 1)),
        ((1, 400), (0, 199, 1, 1)),
    ],
)
def test_the_central_box_after_ten_tries(size, expected):
    assert box(*size, words(*[(0.99, 0.5, 0, 0)] * 10)) == expected


def test_an_allowed_ratio_falls_back_to_the_whole_image():
    assert box(100, 110, words(*[(1 - 2**-30, 0, 0, 0)] * 10)) == (0, 0, 100, 110)


@reproducible
@given(st.integers(1, 600), st.integers(1, 600), st.integers(0, 2**32 - 1))
def test_inside_the_image(height, width, seed):
    top, left, box_height, box_width = box(height, width, philox(seed).random_raw(DRAWS))
    assert 0 <= top and 1 <= box_height and top + box_height <= height
    assert 0 <= left and 1 <= box_width and left + box_width <= width
    # Within the ranges, but for the rounding of both sides.
    low = (box_width - 0.5) / (box_height + 0.5)
    high = (box_width + 0.5) / max(box_height - 0.5, 0.1)
    assert high >= RATIO[0] and low <= RATIO[1]


def test_distribution():
    """Beside boxes drawn by NumPy's generator after torchvision's description."""
    ours = np.array([box(300, 400, philox(seed).random_raw(DRAWS)) for seed in range(4000)])
    rng, theirs = np.random.default_rng(0), []
    while len(theirs) < 4000:
        area = rng.uniform(*SCALE) * 300 * 400
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if width <= 400 and height <= 300:
            top, left = rng.integers(300 - height + 1), rng.integers(400 - width + 1)
            theirs.append((top, left, height, width))
    theirs = np.array(theirs)
    for column in range(4):
        assert kolmogorov_smirnov(ours[:, column], theirs[:, column]) < 1.95 * math.sqrt(2 / 4000)


def kolmogorov_smirnov(first, second):
    places = np.unique(np.concatenate([first, second]))
    share = [np.searchsorted(np.sort(x), places, "right") / len(x) for x in (first, second)]
    return np.abs(share[0] - share[1]).max()


@pytest.mark.parametrize(
    "scale,ratio", [((0, 1), RATIO), ((0.5, 0.2), RATIO), ((0.5, 1.5), RATIO), (SCALE, (2, 1))]
)
def test_settings_out_of_range(scale, ratio):
    with pytest.raises(InputError, match="crop (scale|ratio)"):
        check_crop(scale, ratio)
