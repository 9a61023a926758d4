"""solojax.ops.masks against np.packbits, loops over pixels and worked examples."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from helpers.plain_nms import mask_iou as iou_by_loop
from helpers.properties import reproducible
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from solojax.ops.masks import (
    center_of_mass,
    iou_from_intersection,
    mask_area,
    mask_intersection,
    mask_iou,
    maskness,
    pack_masks,
    unpack_masks,
)

pack, unpack = jax.jit(pack_masks), jax.jit(unpack_masks, static_argnums=1)
pairwise_iou = jax.jit(mask_iou)


def test_the_leftmost_pixel_is_the_highest_bit():
    mask = np.array([[1, 0, 0, 0, 0, 0, 0, 1, 1, 1]], bool)
    np.testing.assert_array_equal(pack_masks(mask), [[0b10000001, 0b11000000]])


@pytest.mark.parametrize("width", [1, 8, 13, 24])
def test_packing_round_trips_and_is_that_of_numpy(width):
    @reproducible
    @given(hnp.arrays(bool, (2, 3, width)))
    def check(masks):
        packed = np.asarray(pack(masks))
        assert packed.dtype == np.uint8
        np.testing.assert_array_equal(packed, np.packbits(masks, axis=-1))
        unpacked = np.asarray(unpack(packed, width))
        assert unpacked.dtype == bool
        np.testing.assert_array_equal(unpacked, masks)

    check()


def test_unpacking_without_a_width_keeps_every_bit():
    packed = np.array([[0b10100000, 0b00000001]], np.uint8)
    expected = [[1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]]
    np.testing.assert_array_equal(unpack_masks(packed), expected)


@reproducible
@given(
    hnp.arrays(bool, (3, 4, 5)),
    hnp.arrays(bool, (2, 4, 5)),
    hnp.arrays(bool, (2,), elements=st.booleans()),
)
def test_pairwise_iou_is_that_of_the_pixels(masks_a, masks_b, empty):
    masks_b = masks_b & ~empty[:, None, None]
    iou = np.asarray(pairwise_iou(masks_a, masks_b))
    expected = [[iou_by_loop(a, b) for b in masks_b] for a in masks_a]
    np.testing.assert_allclose(iou, expected, rtol=1e-6)
    np.testing.assert_array_equal(np.diag(pairwise_iou(masks_a, masks_a)), masks_a.any((1, 2)))


def test_iou_of_worked_examples_and_of_empty_masks():
    intersection = np.array([[2.0, 0.0], [0.0, 0.0]], np.float32)
    area_a, area_b = np.array([4.0, 0.0], np.float32), np.array([6.0, 0.0], np.float32)
    np.testing.assert_array_equal(
        iou_from_intersection(intersection, area_a, area_b), [[0.25, 0.0], [0.0, 0.0]]
    )


def test_counts_are_exact_beyond_what_half_precision_holds():
    masks = np.ones((1, 300, 301), bool)
    masks[0, 0, 0] = False
    assert float(mask_area(masks)[0]) == 300 * 301 - 1
    assert float(mask_intersection(masks, np.ones((1, 300, 301), bool))[0, 0]) == 300 * 301 - 1


def test_center_of_mass_is_the_weighted_mean_of_pixel_indices():
    soft = np.random.default_rng(0).random((2, 5, 7)).astype(np.float32)
    expected = np.zeros((2, 2))
    for n in range(2):
        for y in range(5):
            for x in range(7):
                expected[n] += soft[n, y, x] * np.array([x, y]) / soft[n].sum(dtype=np.float64)
    np.testing.assert_allclose(center_of_mass(soft), expected, rtol=1e-5)


def test_center_of_mass_has_no_half_pixel_and_is_zero_for_nothing():
    masks = np.zeros((2, 4, 6), bool)
    masks[0, 1, 2] = masks[0, 1, 5] = True
    np.testing.assert_array_equal(center_of_mass(masks), [[3.5, 1.0], [0.0, 0.0]])


def test_maskness_is_the_mean_probability_of_the_foreground():
    probabilities = np.random.default_rng(1).random((4, 6, 5)).astype(np.float32)
    probabilities[3] = 0.2
    binary = probabilities > 0.5
    expected = []
    for p in probabilities:
        foreground = [value for value in p.ravel().tolist() if value > 0.5]
        expected.append(sum(foreground) / len(foreground) if foreground else 0.0)
    np.testing.assert_allclose(maskness(probabilities, binary), expected, rtol=1e-6)
    assert expected[3] == 0.0
