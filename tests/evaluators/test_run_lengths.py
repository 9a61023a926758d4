"""solojax.evaluators.run_lengths on pycocotools' own masks and on strings it would never write."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from solojax.evaluators.run_lengths import pixel_totals


def encode_runs(runs):
    """Compressed run lengths by the definition, negative differences and runs included."""
    text = ""
    for i, run in enumerate(runs):
        value = run - (runs[i - 2] if i > 2 else 0)
        while True:
            bits = value & 31
            value >>= 5
            more = value != -1 if bits & 16 else value != 0
            text += chr(48 + bits + 32 * more)
            if not more:
                break
    return text


def test_totals_of_encoded_masks():
    rng = np.random.default_rng(0)
    counts, pixels = [], []
    for density in (0.0, 0.01, 0.3, 0.9, 1.0):
        for _ in range(20):
            height, width = rng.integers(1, 200, 2)
            mask = rng.random((height, width)) < density
            counts.append(coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"])
            pixels.append(height * width)
    texts = [c.decode() if i % 2 else c for i, c in enumerate(counts)]
    np.testing.assert_array_equal(pixel_totals(texts), pixels)


def test_more_strings_than_are_decoded_together():
    runs = np.random.default_rng(1).integers(0, 3000, (10_000, 5))
    counts = [encode_runs(row.tolist()) for row in runs]
    np.testing.assert_array_equal(pixel_totals(counts), runs.sum(axis=1))


def test_large_runs():
    assert pixel_totals([encode_runs([2**31, 5, 2**32, 7, 1])]) == [2**31 + 5 + 2**32 + 7 + 1]


@pytest.mark.parametrize(
    "counts",
    [
        "",
        encode_runs([10, 4, 6])[:-1] + chr(48 + 32),  # the last number goes on after the end
        "5 5",
        "5é",
        "~~",
        encode_runs([10, -4, 14]),
        encode_runs([3, 8, 8, 2, -1]),
        "o" * 7 + "0",  # a number of 8 characters
    ],
)
def test_malformed_strings_are_found_among_good_ones(counts):
    good = encode_runs([10, 4, 6])
    np.testing.assert_array_equal(pixel_totals([good, counts, good]), [20, -1, 20])
    np.testing.assert_array_equal(pixel_totals([counts]), [-1])


def test_no_strings():
    assert pixel_totals([]).shape == (0,)
