"""solojax.ops.boxes: tight boxes, pixel by pixel."""

from __future__ import annotations

import jax
import numpy as np
from helpers.properties import reproducible
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from solojax.ops.boxes import boxes_from_masks

tight_boxes = jax.jit(boxes_from_masks)


def tight_box_by_loop(mask):
    pixels = [(y, x) for y in range(len(mask)) for x in range(len(mask[0])) if mask[y][x]]
    if not pixels:
        return [0, 0, 0, 0]
    ys, xs = zip(*pixels, strict=True)
    return [min(xs), min(ys), max(xs) + 1, max(ys) + 1]


def test_a_single_pixel_has_a_box_of_size_one():
    mask = np.zeros((5, 6), bool)
    mask[3, 4] = True
    np.testing.assert_array_equal(boxes_from_masks(mask), [4, 3, 5, 4])


@reproducible
@given(
    hnp.arrays(bool, (2, 3, 5, 7)),
    hnp.arrays(bool, (2, 3), elements=st.booleans()),
)
def test_tight_boxes_are_those_of_the_pixels(masks, empty):
    masks = masks & ~empty[..., None, None]
    boxes = np.asarray(tight_boxes(masks))
    assert boxes.shape == (2, 3, 4) and boxes.dtype == np.float32
    for row in range(2):
        for n in range(3):
            assert boxes[row, n].tolist() == tight_box_by_loop(masks[row, n])
