"""The published shrinking and the centre of mass.

`golden/solov2_targets_loss/imrescale.npz` and `golden/matrix_nms/centers.npz` hold inputs and
outputs of the published PyTorch code.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from solojax.data.segmentation import center_of_mass, shrink_mask

GOLDEN = Path(__file__).parents[1] / "golden"

masks = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=70), elements=st.integers(0, 1)
)


def shrink_by_the_rule(mask: np.ndarray, factor: int) -> np.ndarray:
    """OpenCV's fixed-point bilinear resize, axis by axis, in plain NumPy integers."""

    def taps(source: int):
        target = max(1, int(source / factor + 0.5))
        position = (np.arange(target) + 0.5) * (source / target) - 0.5
        position = position.astype(np.float32)
        first = np.floor(position).astype(np.int64)
        fraction = position - first.astype(np.float32)
        fraction[(first < 0) | (first >= source - 1)] = 0
        first = np.clip(first, 0, source - 1)
        weights = [np.rint(w * np.float32(2048)).astype(np.int64) for w in (1 - fraction, fraction)]
        return first, np.minimum(first + 1, source - 1), *weights

    y0, y1, b0, b1 = taps(mask.shape[0])
    x0, x1, w0, w1 = taps(mask.shape[1])
    pixels = mask.astype(np.int64)
    rows = w0 * pixels[:, x0] + w1 * pixels[:, x1]
    upper = (b0[:, None] * (rows[y0] >> 4)) >> 16
    lower = (b1[:, None] * (rows[y1] >> 4)) >> 16
    return ((upper + lower + 2) >> 2).astype(np.uint8)


def golden_sizes():
    with np.load(GOLDEN / "solov2_targets_loss" / "imrescale.npz") as arrays:
        return sorted({key.split("/")[0] for key in arrays})


@pytest.mark.parametrize("size", golden_sizes())
@pytest.mark.parametrize("factor", [4, 8, 16])
def test_shrinking_equals_the_recorded_masks(size, factor):
    height, width = map(int, size.split("x"))
    with np.load(GOLDEN / "solov2_targets_loss" / "imrescale.npz") as arrays:
        packed, expected = arrays[f"{size}/in_packed"], arrays[f"{size}/out_1_{factor}"]
    pair = np.unpackbits(packed, count=height * width * 2).reshape(height, width, 2)
    for index in range(2):
        mask = np.ascontiguousarray(pair[..., index])
        np.testing.assert_array_equal(shrink_mask(mask, factor), expected[..., index])
        np.testing.assert_array_equal(shrink_by_the_rule(mask, factor), expected[..., index])


@settings(max_examples=300)
@given(masks, st.sampled_from([2, 4, 8]))
def test_shrinking_follows_the_rule(mask, factor):
    """On the OpenCV that is installed, whichever it is."""
    np.testing.assert_array_equal(shrink_mask(mask, factor), shrink_by_the_rule(mask, factor))


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31))
def test_two_of_the_four_centre_pixels(rows, columns, seed):
    mask = np.random.default_rng(seed).integers(0, 2, (4 * rows, 4 * columns), dtype=np.uint8)
    cells = mask.reshape(rows, 4, columns, 4)[:, 1:3, :, 1:3].sum(axis=(1, 3))
    np.testing.assert_array_equal(shrink_mask(mask), cells >= 2)


def test_centres_equal_the_recorded_ones():
    with np.load(GOLDEN / "matrix_nms" / "centers.npz") as arrays:
        packed, shape = arrays["com/masks_packed"], arrays["com/masks_shape"]
        expected = arrays["com/uint8_xy"]
    recorded = np.unpackbits(packed, axis=-1, count=shape[-1])
    centers = np.stack([center_of_mass(mask) for mask in recorded])
    assert centers.dtype == np.float32
    np.testing.assert_array_equal(centers[-1], [0, 0])  # an empty mask
    np.testing.assert_allclose(centers, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@given(masks.filter(np.any))
def test_centre_is_the_mean_of_the_pixel_indices(mask):
    y, x = np.nonzero(mask)
    np.testing.assert_array_equal(center_of_mass(mask), np.float32([x.mean(), y.mean()]))


def test_centre_of_a_large_mask_is_exact():
    """The sums pass 2^31 here, and float32 alone would lose them from 2^24 on."""
    np.testing.assert_array_equal(center_of_mass(np.ones((2001, 3001), np.uint8)), [1500, 1000])


def test_centre_of_a_flipped_mask_is_mirrored():
    mask = np.zeros((16, 20), np.uint8)
    mask[3:9, 1:6] = 1
    x, y = center_of_mass(mask)
    assert center_of_mass(cv2.flip(mask, 1)).tolist() == [19 - x, y]
