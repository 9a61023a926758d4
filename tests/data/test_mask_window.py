"""Windows against whole masks, which pycocotools decodes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from helpers.whole_masks import decode_segmentation
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as mask_utils

from solojax.data.mask_window import MaskWindow, decode_window, shrink_and_pack
from solojax.data.packing import pack_masks
from solojax.data.segmentation import center_of_mass, shrink_mask

masks = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(0, 1)
)
sides = st.integers(1, 90)
# Beyond the image on all sides, and on the edges of the fifths of a pixel that COCO rounds to.
coordinates = st.one_of(
    st.floats(-30, 90, width=32), st.integers(-60, 180).map(lambda tenths: tenths / 2 + 0.1)
)
polygons = st.lists(
    st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=9).map(np.concatenate),
    min_size=1,
    max_size=3,
)


def pasted(window: MaskWindow, height: int, width: int) -> np.ndarray:
    whole = np.zeros((height, width), np.uint8)
    window.paste(whole)
    return whole


def decoded(segmentation, height, width, out_height, out_width) -> np.ndarray:
    window = decode_window(segmentation, height, width, out_height, out_width)
    return pasted(window, out_height, out_width)


def rectangle(height, width, top, bottom, left, right):
    mask = np.zeros((height, width), np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def assert_is_window_of(window: MaskWindow, whole: np.ndarray):
    np.testing.assert_array_equal(pasted(window, *whole.shape), whole)
    x, y, width, height = cv2.boundingRect(whole)
    assert window.box_xyxy == (x, y, x + width, y + height)
    assert window.area == whole.sum()
    assert window.mask.dtype == np.uint8 and window.mask.flags.c_contiguous


def test_polygon_at_its_own_and_at_other_sizes():
    polygon = [[2.0, 1.0, 7.0, 1.0, 7.0, 5.0, 2.0, 5.0]]
    same = decoded(polygon, 10, 12, 10, 12)
    np.testing.assert_array_equal(same, rectangle(10, 12, 1, 5, 2, 7))
    doubled = decoded(polygon, 10, 12, 20, 24)
    np.testing.assert_array_equal(doubled, rectangle(20, 24, 2, 10, 4, 14))
    stretched = decoded(polygon, 10, 12, 10, 36)
    np.testing.assert_array_equal(stretched, rectangle(10, 36, 1, 5, 6, 21))


def test_polygons_are_joined_and_cut_at_the_border():
    polygons = (np.array([-2.0, 0, 3, 0, 3, 4, -2, 4]), np.array([8.0, 5, 14, 5, 14, 12, 8, 12]))
    expected = rectangle(10, 12, 0, 4, 0, 3) | rectangle(10, 12, 5, 10, 8, 12)
    np.testing.assert_array_equal(decoded(polygons, 10, 12, 10, 12), expected)


@settings(deadline=None)
@given(masks, sides, sides)
def test_run_lengths_take_the_pixel_under_the_centre(mask, height, width):
    rle = mask_utils.encode(np.asfortranarray(mask))
    rows = (2 * np.arange(height) + 1) * mask.shape[0] // (2 * height)
    columns = (2 * np.arange(width) + 1) * mask.shape[1] // (2 * width)
    np.testing.assert_array_equal(decoded(rle, *mask.shape, height, width), mask[rows][:, columns])


def test_uncompressed_run_lengths():
    rle = {"size": [3, 2], "counts": [1, 3, 2]}
    np.testing.assert_array_equal(decoded(rle, 3, 2, 3, 2), [[0, 1], [1, 0], [1, 0]])


@settings(max_examples=200, deadline=None)
@given(polygons, sides, sides, sides, sides)
@example([np.array([0.0, 0, 9, 0, 9, 9, 0, 9])], 9, 9, 9, 9)  # all of the image
@example([np.array([3.0, 0, 5, 0, 5, 9, 3, 9])], 9, 9, 20, 20)  # from top to bottom
@example([np.array([-9.0, -9, -2, -9, -2, -2, -9, -2])], 9, 9, 9, 9)  # beside it
def test_polygons(segmentation, height, width, out_height, out_width):
    arguments = (segmentation, height, width, out_height, out_width)
    assert_is_window_of(decode_window(*arguments), decode_segmentation(*arguments))


@settings(max_examples=200, deadline=None)
@given(masks, sides, sides, st.booleans())
@example(np.ones((7, 5), np.uint8), 7, 5, False)
@example(np.zeros((7, 5), np.uint8), 3, 9, True)
@example(np.eye(40, dtype=np.uint8), 3, 3, False)  # shrunk until rows and columns vanish
def test_run_lengths(mask, out_height, out_width, uncompressed):
    height, width = mask.shape
    rle = mask_utils.encode(np.asfortranarray(mask))
    if uncompressed:
        column_major = mask.T.reshape(-1)
        changes = np.flatnonzero(np.diff(column_major, prepend=0)).tolist()
        counts = np.diff([0, *changes, mask.size]).tolist()
        rle = {"size": [height, width], "counts": counts}
    arguments = (rle, height, width, out_height, out_width)
    assert_is_window_of(decode_window(*arguments), decode_segmentation(*arguments))


@pytest.mark.parametrize("kind", [bytes, str])
def test_long_runs_of_a_large_image(kind):
    """Runs of many characters, and differences of both signs."""
    mask = np.zeros((3000, 2000), np.uint8)
    mask[5:2995, 700:1500] = 1
    mask[100:200, 900:1000] = 0
    mask[::7, 1600] = 1
    rle = mask_utils.encode(np.asfortranarray(mask))
    if kind is str:
        rle = {**rle, "counts": rle["counts"].decode()}
    assert_is_window_of(decode_window(rle, 3000, 2000, 3000, 2000), mask)


@given(masks)
@settings(deadline=None)
def test_flipping_erasing_and_the_centre_of_mass(mask):
    height, width = mask.shape
    window = decode_window(mask_utils.encode(np.asfortranarray(mask)), *mask.shape, *mask.shape)
    mirrored = window.flipped(width)
    assert_is_window_of(mirrored, np.ascontiguousarray(mask[:, ::-1]))
    if mask.any():
        center = center_of_mass(window.mask, window.top, window.left)
        assert center.tobytes() == center_of_mass(mask).tobytes()
    whole = pasted(window, height, width)
    window.erase(whole)
    assert not whole.any()


@settings(max_examples=300, deadline=None)
@given(
    st.tuples(sides, sides),
    st.tuples(*[st.floats(0, 1)] * 4),
    st.sampled_from([4, 8, 16]),
    st.integers(0, 2**31),
)
def test_shrinking_and_packing_a_part(size, place, factor, seed):
    sheet = np.zeros(size, np.uint8)
    (top, bottom), (left, right) = (
        sorted(int(fraction * (side - 1)) for fraction in pair)
        for pair, side in zip((place[:2], place[2:]), size, strict=True)
    )
    part = sheet[top : bottom + 1, left : right + 1]
    part[:] = np.random.default_rng(seed).integers(0, 2, part.shape)
    part[0, 0] = 1
    window = decode_window(mask_utils.encode(np.asfortranarray(sheet)), *size, *size)
    expected = pack_masks(shrink_mask(sheet, factor))
    packed, rows, columns = shrink_and_pack(sheet, window, factor)
    found = np.zeros_like(expected)
    found[rows, columns] = packed
    np.testing.assert_array_equal(found, expected)
