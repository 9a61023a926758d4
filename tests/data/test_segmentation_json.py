"""Segmentations of a json: accepted forms against pycocotools, refused ones one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as mask_utils

from solojax.data.segmentation_json import decode_runs, max_overshoot, parse_segmentation

HEIGHT, WIDTH = 20, 30
SQUARE = [2.0, 3.0, 8.0, 3.0, 8.0, 9.0, 2.0, 9.0]

masks = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(0, 1)
)


def runs_of(mask: np.ndarray) -> list[int]:
    """Column by column, zeros first: the COCO definition, pixel by pixel."""
    runs, value = [0], 0
    for pixel in mask.T.reshape(-1).tolist():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


def compressed(mask: np.ndarray) -> str:
    return mask_utils.encode(np.asfortranarray(mask))["counts"].decode("ascii")


@given(masks)
def test_run_lengths_of_both_forms(mask):
    size = list(mask.shape)
    for counts in (compressed(mask), compressed(mask).encode(), runs_of(mask)):
        parsed = parse_segmentation({"size": size, "counts": counts}, *size)
        assert isinstance(parsed["counts"], bytes)
        np.testing.assert_array_equal(mask_utils.decode(parsed), mask)


@given(masks)
def test_runs_of_a_string_are_those_of_the_mask(mask):
    for counts in (compressed(mask), compressed(mask).encode()):
        runs = decode_runs(counts)
        assert runs.dtype == np.int64
        assert runs.tolist() == runs_of(mask)


def test_long_runs():
    mask = np.zeros((3000, 4000), np.uint8)
    mask[5:2990, 1500:3999] = 1
    parsed = parse_segmentation({"size": [3000, 4000], "counts": compressed(mask)}, 3000, 4000)
    assert mask_utils.area(parsed) == mask.sum()


@given(masks)
def test_no_shortened_string_is_accepted(mask):
    counts = compressed(mask)
    for kept in range(len(counts)):
        with pytest.raises(ValueError):
            parse_segmentation({"size": list(mask.shape), "counts": counts[:kept]}, *mask.shape)


def test_polygons_become_float64_vectors():
    parsed = parse_segmentation([[1, 2, 3, 4, 5, 6], SQUARE], HEIGHT, WIDTH)
    assert isinstance(parsed, tuple) and [p.dtype for p in parsed] == [np.float64] * 2
    np.testing.assert_array_equal(parsed[0], [1, 2, 3, 4, 5, 6])
    np.testing.assert_array_equal(parsed[1], SQUARE)


def test_slight_overshoot_is_accepted():
    assert max_overshoot(30) == 2.0 and max_overshoot(1000) == 20.0
    parse_segmentation([[-2, -2, 32, -2, 32, 22]], HEIGHT, WIDTH)


NOT_NUMBERS = "flat list of numbers"
BAD = {
    "text": ("circle", "neither a list"),
    "null": (None, "neither a list"),
    "no polygon": ([], "empty"),
    "flat list": (SQUARE, NOT_NUMBERS),
    "empty polygon": ([[]], "polygon of 0 numbers"),
    "two points": ([[1, 1, 2, 2]], "polygon of 4 numbers"),
    "odd": ([[1, 1, 2, 2, 3, 3, 4]], "polygon of 7 numbers"),
    "second polygon bad": ([SQUARE, [1, 1]], "polygon of 2 numbers"),
    "strings": ([["1", "1", "2", "2", "3", "3"]], NOT_NUMBERS),
    "null coordinate": ([[1, 1, None, 2, 3, 3]], NOT_NUMBERS),
    "booleans": ([[True, False, True, True, False, False]], NOT_NUMBERS),
    "points in pairs": ([[[1, 1], [2, 2], [3, 3]]], NOT_NUMBERS),
    "ragged": ([[[1, 1], [2], 3]], NOT_NUMBERS),
    "huge integers": ([[10**400, 1, 2, 2, 3, 3]], NOT_NUMBERS),
    "nan": ([[1, 1, float("nan"), 2, 3, 3]], "NaN or infinite"),
    "infinite": ([[1, 1, 2, float("inf"), 3, 3]], "NaN or infinite"),
    "minus infinite": ([[1, float("-inf"), 2, 2, 3, 3]], "NaN or infinite"),
    "far left": ([[-2.1, 1, 5, 1, 5, 5]], r"leaves its 30x20 image"),
    "far right": ([[1, 1, 32.1, 1, 5, 5]], r"leaves its 30x20 image"),
    "far up": ([[1, -2.1, 5, 1, 5, 5]], r"leaves its 30x20 image"),
    "far down": ([[1, 1, 5, 1, 5, 22.1]], r"leaves its 30x20 image"),
    "no counts": ({"size": [20, 30]}, '"size" or "counts"'),
    "no size": ({"counts": [600]}, '"size" or "counts"'),
    "size swapped": ({"size": [30, 20], "counts": [600]}, "differs from its image"),
    "larger than image": ({"size": [40, 60], "counts": [2400]}, "differs from its image"),
    "size a number": ({"size": 600, "counts": [600]}, "differs from its image"),
    "runs too short": ({"size": [20, 30], "counts": [599]}, "do not add up"),
    "runs too long": ({"size": [20, 30], "counts": [300, 301]}, "do not add up"),
    "negative run": ({"size": [20, 30], "counts": [700, -100]}, "do not add up"),
    "no runs": ({"size": [20, 30], "counts": []}, "whole numbers"),
    "fractional run": ({"size": [20, 30], "counts": [300.5, 299.5]}, "whole numbers"),
    "nested runs": ({"size": [20, 30], "counts": [[300], [300]]}, "whole numbers"),
    "counts a number": ({"size": [20, 30], "counts": 600}, "neither a list"),
    "counts not ascii": ({"size": [20, 30], "counts": "é0"}, "neither a list"),
    "empty string": ({"size": [20, 30], "counts": ""}, "no complete"),
    "other characters": ({"size": [20, 30], "counts": "\x05!~"}, "no complete"),
    "open end": ({"size": [20, 30], "counts": "0P"}, "no complete"),
    "string too short": ({"size": [20, 30], "counts": "11"}, "do not add up"),
    "huge number": ({"size": [20, 30], "counts": "PPPPPPPP1"}, "more than 35 bits"),
    "huge second number": ({"size": [20, 30], "counts": "0PPPPPPP1"}, "more than 35 bits"),
}  # fmt: skip


@pytest.mark.parametrize("raw, problem", BAD.values(), ids=BAD.keys())
def test_refused(raw, problem):
    with pytest.raises(ValueError, match=problem) as error:
        parse_segmentation(raw, HEIGHT, WIDTH)
    assert "\n" not in str(error.value)
