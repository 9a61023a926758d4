"""Soft masks to annotations: where they come to lie, and which are kept."""

from __future__ import annotations

import dataclasses
import tracemalloc

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from solojax.errors import InputError
from solojax.ops.nms import hard_nms
from solojax.postprocess.free_mask_labels import (
    FreeMaskFilters,
    best_pieces,
    cells_of,
    center_and_width,
    connected_pieces,
    extent_of,
    free_mask_annotations,
    upsample_mask,
)
from solojax.postprocess.rescale import encode_rle

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
    np.testing.assert_array_equal(cells_of(np.array([800, 1001]), 8), [100, 126])
    assert extent_of((800, 1001), "thesis", 8) == (100, 125.125)
    assert extent_of((800, 1001), "release", 8) == (100, 126)
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


def test_cells_of_another_size_are_those_of_a_smaller_image():
    mask = np.random.default_rng(0).random((3, 5))
    (finer,) = annotate([mask], image_size=(48, 80), stride=16)
    (usual,) = annotate([mask], image_size=(96, 160))
    assert finer["segmentation"] == usual["segmentation"]


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
    # A window of a larger image.
    assert center_and_width(mask, "thesis", top=100) == (104.5, 5)
    assert center_and_width(mask, "release", top=100) == (pytest.approx(100 + 10 / 3), 3)


def test_a_mask_without_a_pixel_is_left_out():
    assert len(annotate([np.zeros((3, 5)), block(1, 1)])) == 1


# A square, a hook that hangs together by a corner, and a speck.
TWO = np.array(
    [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [1, 0, 0, 0, 0, 0],
    ],
    bool,
)


def test_pieces_touch_by_sides_or_corners():
    pieces = {int(piece.mask.sum()): piece for piece in connected_pieces(TWO, 0)}
    assert sorted(pieces) == [1, 3, 4]
    hook = pieces[3]
    assert (hook.top, hook.left) == (1, 3)
    np.testing.assert_array_equal(hook.mask, [[0, 1], [1, 0], [1, 0]])
    together = np.zeros_like(TWO)
    for piece in pieces.values():
        together[piece.box] |= piece.mask
    np.testing.assert_array_equal(together, TWO)
    assert sorted(int(piece.mask.sum()) for piece in connected_pieces(TWO, 3)) == [3, 4]
    assert not list(connected_pieces(np.zeros((3, 4), bool), 0))


def pixels(rows, columns):
    """A block in 20 x 20 pixels."""
    mask = np.zeros((20, 20), bool)
    mask[rows, columns] = True
    return mask


def scored(mask, score):
    return {"score": score, "area": float(mask.sum()), "segmentation": encode_rle(mask)}


def test_of_two_pieces_that_overlap_the_better_stays():
    whole, half = pixels(slice(0, 8), slice(0, 8)), pixels(slice(0, 4), slice(0, 8))
    more, apart = pixels(slice(0, 5), slice(0, 8)), pixels(slice(10, 12), slice(0, 2))
    # An IoU of just 0.5 is none too many, and the larger of equal scores goes first.
    assert best_pieces([scored(half, 0.5), scored(whole, 0.5)], 9) == [
        scored(whole, 0.5), scored(half, 0.5),
    ]  # fmt: skip
    found = [scored(apart, 0.2), scored(more, 0.5), scored(whole, 0.6)]
    assert best_pieces(found, 9) == [scored(whole, 0.6), scored(apart, 0.2)]
    # What is removed removes nothing itself: `half` is a part of `more`, which `whole` removes.
    chain = [scored(whole, 0.9), scored(more, 0.8), scored(half, 0.7)]
    assert best_pieces(chain, 9) == [scored(whole, 0.9), scored(half, 0.7)]
    assert best_pieces(chain, 1) == [scored(whole, 0.9)]
    assert best_pieces([], 1) == []


def test_the_greedy_rule_is_that_of_hard_nms():
    rng = np.random.default_rng(0)
    blocks = []
    for _ in range(40):
        top, left, height, width = (*rng.integers(0, 10, 2), *rng.integers(3, 9, 2))
        block_rows, block_columns = slice(top, top + height), slice(left, left + width)
        blocks.append(scored(pixels(block_rows, block_columns), round(float(rng.random()), 2)))
    ranked = sorted(blocks, key=lambda a: (-a["score"], -a["area"]))
    masks = [each["segmentation"] for each in ranked]
    iou = coco_mask.iou(masks, masks, [0] * len(masks))
    valid = np.ones(len(ranked), bool)
    kept = hard_nms(iou, np.zeros(len(ranked), int), np.ones(len(ranked)), valid)
    expected = [each for each, k in zip(ranked, np.asarray(kept), strict=True) if k]
    assert best_pieces(blocks, 99) == expected and 3 < len(expected) < 40


def test_a_mask_of_two_objects_is_taken_apart():
    """Each filter then looks at the pieces, which have the mask's embedding."""
    left, right = block(slice(1, 3), 0), block(2, 4)
    masks = [left + right, block(slice(1, 3), slice(0, 1)), block(0, slice(None))]
    whole = annotate(masks, FreeMaskFilters(None, 0.2, 0.95))
    # The first is as wide as the image, the last too high up.
    assert [round(each["score"], 1) for each in whole] == [0.8]
    pieces = FreeMaskFilters(None, 0.2, 0.95, components=True)
    found = annotate(masks, pieces)
    # The second mask is the left piece again, with a lower score.
    assert [each["bbox"] for each in found] == [[0, 16, 16, 32], [64, 32, 16, 16]]
    assert found[0]["segmentation"] == annotate([left])[0]["segmentation"]
    np.testing.assert_array_equal(found[1]["emb"], [0, 1, 2])
    assert len(annotate(masks, pieces, max_masks=1)) == 1
    area = found[1]["area"]
    large = dataclasses.replace(pieces, min_piece_area=int(area) + 1)
    assert [each["bbox"][0] for each in annotate(masks, large)] == [0]
    # The score is the mean of the soft mask over the piece, whatever the mask had: the first piece
    # has fewer pixels along its border.
    soft = upsample_mask(left + right, (3, 5), (48, 80))
    for each in found:
        own = np.mean([soft[y, x] for y, x in np.argwhere(coco_mask.decode(each["segmentation"]))])
        assert each["score"] == pytest.approx(own, rel=1e-6)
    better, worse = (each["score"] for each in found)
    between = dataclasses.replace(pieces, min_maskness=(better + worse) / 2)
    assert [each["score"] for each in annotate(masks, between)] == [better]
    # Without `components` neither the area nor the number counts.
    all_of_them = FreeMaskFilters(None, None, None, min_piece_area=10**6)
    assert len(annotate(masks, all_of_them, max_masks=1)) == 3


@pytest.mark.parametrize("semantics", ["thesis", "release"])
def test_pieces_are_what_masks_of_the_whole_image_say(semantics):
    """In the order, with the run lengths and by the filters of piece after piece at full size."""
    noise = np.random.default_rng(3).random((9, 12)).astype(np.float32)
    options = {"image_size": (288, 370), "original_size": (150, 190), "semantics": semantics}
    filters = FreeMaskFilters(0.68, 0.4, 0.2, components=True, min_piece_area=40)
    soft = upsample_mask(noise, extent_of((288, 370), semantics), (150, 190))
    count, labels = cv2.connectedComponents((soft >= 0.65).astype(np.uint8), connectivity=8)
    expected = []
    for label in range(1, count):
        whole = labels == label
        score = np.mean(soft[whole], dtype=np.float32)
        passes = filters.passes(score) and whole.sum() >= 40
        if passes and filters.keeps(*center_and_width(whole, semantics), 150, 190):
            expected.append(scored(whole, float(score)))
    found = annotate([noise], filters, mask_threshold=0.65, max_masks=99, **options)
    assert 3 < len(found) < count - 4
    keys = ("score", "area", "segmentation")
    assert [{key: each[key] for key in keys} for each in found] == best_pieces(expected, 99)
    assert all(each["bbox"] == coco_mask.toBbox(each["segmentation"]).tolist() for each in found)


def test_many_pieces_of_a_photo_take_no_more_memory_than_few():
    """Each at the size of the file, all of them would be a hundred times a mask."""
    noise = np.random.default_rng(0).random((25, 34)).astype(np.float32)
    height, width = 900, 1200
    tracemalloc.start()
    found = annotate(
        [noise], dataclasses.replace(ALL, components=True), image_size=(800, 1067),
        original_size=(height, width), mask_threshold=0.8, max_masks=999,
    )  # fmt: skip
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) > 80
    # The soft mask and the labels of its pieces, of four bytes a pixel each, and the binary one.
    assert peak < 20 * height * width
