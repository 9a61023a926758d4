"""Packing against a bit by bit reading, and the round trip."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from solojax.data.packing import pack_masks, unpack_masks

masks = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=2, max_dims=3, max_side=21), elements=st.integers(0, 1)
)


def test_leftmost_pixel_is_the_highest_bit():
    mask = np.array([[1, 0, 0, 0, 0, 0, 0, 1, 0, 1]], np.uint8)
    np.testing.assert_array_equal(pack_masks(mask), [[0b10000001, 0b01000000]])


@given(masks)
def test_round_trip(mask):
    packed = pack_masks(mask)
    assert packed.dtype == np.uint8 and packed.shape == (*mask.shape[:-1], -(-mask.shape[-1] // 8))
    np.testing.assert_array_equal(unpack_masks(packed, mask.shape[-1]), mask)


@given(masks)
def test_every_bit_where_it_belongs(mask):
    packed = pack_masks(mask.astype(bool))
    for index in np.ndindex(mask.shape):
        byte = int(packed[index[:-1] + (index[-1] // 8,)])
        assert (byte >> (7 - index[-1] % 8)) & 1 == mask[index]


def test_wrong_width_is_refused():
    with pytest.raises(ValueError, match="2 bytes"):
        unpack_masks(np.zeros((4, 2), np.uint8), 17)
