"""Soft masks to annotations: where they come to lie, and which are kept."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from solojax.errors import InputError
from solojax.postprocess.free_mask_labels import (
    FreeMaskFilters,
    cells_of,
    center_and_width,
    extent_of,
    free_mask_annotations,
    upsample_mask,
)

ALL = FreeMaskFilters(None, None, None)


def annotate(masks, filters=ALL, image_size=(96, 160), original_size=(48, 80), **options):
    """Annotations of masks whose scores fall from 0.9."""
    masks = np.asarray(masks, np.float32)
    scores = np.float32(0.9) - np.arange(len(masks), dtype=np.float32) / 10
    return free_mask_annotations(
        scores,
        masks,
        np.tile(np.arange(3.0, dtype=np.float32), (len(masks), 1)),
        image_size=image_size,
        original_size=original_size,
        filters=filters,
        **options,
    )


def block(rows, columns, size=(3, 5)):
    mask = np.zeros(size)
    mask[rows, columns] = 1
    return mask


def test_cells_and_extents():
    np.testing.assert_array_equal(cells_of(np.array([[800, 1000], [0, 33]])), [[25, 32], [0, 2]])
    assert extent_of((800, 1000), "thesis") == (25, 31.25)
    assert extent_of((800, 1000), "release") == (25, 32)
    with pytest.raises(InputError, match="semantics"):
        extent_of((800, 1000), "else")


@pytest.mark.parametrize("extent", [(3.0, 5.0), (2.5, 4.25)])
def test_upsampling_pixel_by_pixel(extent):
    mask = np.random.default_rng(0).random((3, 5)).astype("f4")
    result = upsample_mask(mask, extent, (11, 13))
    for i in range(11):
        for j in range(13):
            y = np.clip((i + 0.5) * extent[0] / 11 - 0.5, 0, 2)
            x = np.clip((j + 0.5) * extent[1] / 13 - 0.5, 0, 4)
            row = [np.interp(x, range(5), mask[k]) for k in range(3)]
            assert result[i, j] == pytest.approx(np.interp(y, range(3), row), abs=1e-5)


def test_masks_lie_where_the_cells_do():
    """An image of 96 x 130 pixels on five columns of 32: the last column holds two pixels."""
    right = block(slice(None), slice(2, None))
    ours = annotate([right], image_size=(96, 130), original_size=(96, 130))[0]
    theirs = annotate([right], image_size=(96, 130), original_size=(96, 130), semantics="release")[
        0
    ]
    assert ours["bbox"] == [64, 0, 66, 96]
    # Half of 160 pixels of padding and image are taken for the image's: the edge moves left.
    assert theirs["bbox"][0] == 52


def test_what_an_annotation_holds():
    first, second = annotate([block(slice(1, 3), slice(0, 2)), block(0, slice(None))])
    decoded = coco_mask.decode(first["segmentation"])
    assert decoded.shape == (48, 80) and isinstance(first["segmentation"]["counts"], str)
    assert first["bbox"] == [0, 16, 32, 32]
    assert first["area"] == decoded.sum()
    assert 32 * 32 * 0.95 < first["area"] < 32 * 32  # the free corner is rounded
    assert first["score"] == pytest.approx(0.9) and second["score"] == pytest.approx(0.8)
    np.testing.assert_array_equal(first["emb"], [0, 1, 2])


def test_the_canvas_beyond_the_image_is_cut_off():
    wide = np.concatenate([block(1, 1), np.ones((3, 2))], axis=1)
    tall = np.concatenate([wide, np.ones((2, 7))])
    assert annotate([tall])[0]["segmentation"] == annotate([block(1, 1)])[0]["segmentation"]


def test_each_filter_by_itself():
    masks = [
        block(slice(1, 3), slice(0, 2)),
        block(0, 1),  # its middle is 7.5 of 48 rows down
        block(slice(1, 3), slice(None)),  # as wide as the image
        block(2, 4),
    ]

    def kept(filters):
        return [round(each["score"], 1) for each in annotate(masks, filters)]

    assert kept(ALL) == [0.9, 0.8, 0.7, 0.6]
    assert kept(FreeMaskFilters(0.7, None, None)) == [0.9, 0.8, 0.7]
    assert kept(FreeMaskFilters(None, 0.2, None)) == [0.9, 0.7, 0.6]
    assert kept(FreeMaskFilters(None, None, 0.95)) == [0.9, 0.8, 0.6]
    assert kept(FreeMaskFilters()) == [0.9]


def test_masks_with_gaps():
    mask = np.zeros((10, 8), bool)
    mask[0, 1] = mask[1, 2] = mask[9, 5] = True
    assert center_and_width(mask, "thesis") == (4.5, 5)
    assert center_and_width(mask, "release") == (pytest.approx(10 / 3), 3)


def test_a_mask_without_a_pixel_is_left_out():
    assert len(annotate([np.zeros((3, 5)), block(1, 1)])) == 1
