"""solojax.postprocess.rescale against a plain loop over pixels, OpenCV and worked examples."""

from __future__ import annotations

import json
import tracemalloc

import cv2
import numpy as np
import pytest

from solojax.errors import InputError
from solojax.ops.resize import bilinear_weights
from solojax.postprocess.rescale import (
    detections_to_coco_results,
    encode_rle,
    encode_window_rle,
    resize_masks,
    to_coco_results,
)
from solojax.structures import Detections


def bilinear_by_loop(image, out_height, out_width):
    """The definition: half-pixel centres, edges clamped, two neighbours a side, float64."""
    height, width = image.shape

    def neighbours(i, in_size, out_size):
        source = max((i + 0.5) * in_size / out_size - 0.5, 0.0)
        low = int(source)
        return low, min(low + 1, in_size - 1), source - low

    out = np.zeros((out_height, out_width))
    for y in range(out_height):
        y0, y1, dy = neighbours(y, height, out_height)
        for x in range(out_width):
            x0, x1, dx = neighbours(x, width, out_width)
            top = image[y0, x0] * (1 - dx) + image[y0, x1] * dx
            bottom = image[y1, x0] * (1 - dx) + image[y1, x1] * dx
            out[y, x] = top * (1 - dy) + bottom * dy
    return out


def published_order_by_loop(probabilities, image_size, original_size):
    height, width = probabilities.shape
    canvas = bilinear_by_loop(probabilities, 4 * height, 4 * width)
    return bilinear_by_loop(canvas[: image_size[0], : image_size[1]], *original_size)


def single_pixel(row, column):
    mask = np.zeros((6, 8), np.float32)
    mask[row, column] = 1
    return mask


PATTERNS = {
    "random": np.random.default_rng(0).random((6, 8), np.float32),
    "sparse": np.float32(0.83) * (np.random.default_rng(1).random((6, 8)) > 0.8).astype(np.float32),
    "top left": single_pixel(0, 0),
    "bottom right": single_pixel(5, 7),
    "inside": single_pixel(2, 5),
    "everywhere": np.full((6, 8), 0.75, np.float32),
}


@pytest.mark.parametrize("original_size", [(33, 47), (21, 30), (10, 13), (50, 9), (1, 1)])
@pytest.mark.parametrize("image_size", [(24, 32), (21, 30)])
@pytest.mark.parametrize("name", PATTERNS)
def test_equals_two_resizes_by_loop(name, image_size, original_size):
    probabilities = PATTERNS[name]
    expected = published_order_by_loop(probabilities, image_size, original_size)
    mask = resize_masks(probabilities[None], image_size, original_size)[0]
    # Pixels closer than this to the threshold are a matter of float32 rounding.
    decided = abs(expected - 0.5) > 1e-5
    assert decided.mean() > 0.98
    np.testing.assert_array_equal(mask[decided], (expected > 0.5)[decided])
    assert mask.shape == original_size and mask.dtype == np.uint8


def test_equals_opencv_at_real_sizes():
    rng = np.random.default_rng(2)
    coarse = rng.random((3, 8, 12)).astype(np.float32)
    probabilities = np.stack([cv2.resize(m, (152, 100), interpolation=2) for m in coarse])
    masks = resize_masks(probabilities, (400, 599), (240, 320))
    for ours, source in zip(masks, probabilities, strict=True):
        canvas = cv2.resize(source, (608, 400), interpolation=cv2.INTER_LINEAR)
        crop = np.ascontiguousarray(canvas[:400, :599])
        value = cv2.resize(crop, (320, 240), interpolation=cv2.INTER_LINEAR)
        decided = abs(value - 0.5) > 1e-4
        assert decided.mean() > 0.99 and 0.2 < ours.mean() < 0.8
        np.testing.assert_array_equal(ours[decided], (value > 0.5)[decided])


def test_tent_of_one_pixel_by_hand():
    # x4 spreads one pixel with weights .125 .375 .625 .875 .875 .625 .375 .125 along each axis;
    # a product exceeds 0.5 for .875 * .875 and .875 * .625 and not for .625 * .625.
    mask = resize_masks(single_pixel(2, 3)[None], (24, 32), (24, 32))[0]
    expected = np.zeros((24, 32), np.uint8)
    expected[8:12, 12:16] = [[0, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]]
    np.testing.assert_array_equal(mask, expected)


def test_edges_are_clamped_by_hand():
    # In the corner the weights are 1 1 .875 .625 .375 .125: only .625 * .625 stays below 0.5.
    mask = resize_masks(single_pixel(0, 0)[None], (24, 32), (24, 32))[0]
    expected = np.zeros((24, 32), np.uint8)
    expected[:4, :4] = 1
    expected[3, 3] = 0
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("original_size", [(480, 641), (37, 53), (427, 640), (101, 1009)])
def test_plateau_at_the_threshold_stays_background(original_size):
    probabilities = np.full((1, 50, 76), 0.5, np.float32)
    probabilities[0, 3, 4] = 0.75  # a foreground pixel, so that the region is computed at all
    probabilities[0, 45, 70] = 0.75
    mask = resize_masks(probabilities, (199, 301), original_size)[0]
    far_from_both = mask[original_size[0] // 5 : -original_size[0] // 5]
    assert mask.any() and not far_from_both.any()


def test_foreground_in_the_padding_is_cropped_away():
    probabilities = np.zeros((1, 6, 8), np.float32)
    probabilities[0, 5, :] = 1
    assert not resize_masks(probabilities, (12, 32), (40, 50)).any()
    assert resize_masks(probabilities, (24, 32), (40, 50)).any()


def test_no_masks():
    assert resize_masks(np.zeros((0, 6, 8), np.float32), (24, 32), (40, 50)).shape == (0, 40, 50)


@pytest.mark.parametrize("image_size", [(25, 32), (24, 33), (0, 32)])
def test_image_beyond_the_canvas_is_an_error(image_size):
    with pytest.raises(InputError, match="canvas"):
        resize_masks(np.zeros((1, 6, 8), np.float32), image_size, (24, 32))


def decode_counts(counts):
    """COCO's compressed counts, decoded by the definition: 5 bits a character, lowest first."""
    runs, value, shift = [], 0, 0
    for character in counts:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, shift = 0, 0
    return runs


def test_rle_counts_runs_column_by_column():
    mask = np.random.default_rng(3).random((45, 70)) > 0.5
    mask[:, 20:60] = False
    rle = encode_rle(mask)
    runs = decode_counts(rle["counts"])
    values = np.repeat(np.arange(len(runs)) % 2, runs)
    np.testing.assert_array_equal(values.reshape(70, 45).T, mask)
    assert json.loads(json.dumps(rle)) == rle and rle["size"] == [45, 70]


@pytest.mark.parametrize(
    "window",
    [
        np.s_[2:5, 3:7],
        np.s_[0:3, 0:2],
        np.s_[4:6, 5:8],
        np.s_[0:6, 2:6],  # as high as the image: runs go on from column to column
        np.s_[0:6, 0:8],
    ],
)
def test_run_lengths_of_a_window_are_those_of_the_image(window):
    rng = np.random.default_rng(0)
    for share in (0.0, 0.3, 0.6, 0.9, 1.1):
        image = np.zeros((6, 8), bool)
        image[window] = rng.random(image[window].shape) < share
        place = (window[0].start, window[1].start)
        assert encode_window_rle(image[window], *place, (6, 8)) == encode_rle(image)


def three_masks():
    masks = np.zeros((3, 6, 8), np.float32)
    masks[0, 1:3, 2:5] = 0.9
    masks[1, 5, 7] = 0.9
    masks[2, 0:5, 0:7] = 0.9
    return masks


def test_results_of_one_image():
    masks, sizes = three_masks(), {"image_size": (20, 28), "original_size": (40, 60)}
    results = to_coco_results(
        np.array([0.9, 0.5, 0.25], np.float32),
        np.array([1, 0, 1], np.int32),
        masks,
        image_id=np.int64(17),
        category_ids=(7, 90),
        **sizes,
    )
    assert [r["score"] for r in results] == [float(np.float32(0.9)), 0.5, 0.25]
    assert [r["category_id"] for r in results] == [90, 7, 90]
    assert {r["image_id"] for r in results} == {17}
    assert json.loads(json.dumps(results)) == results
    for result, mask in zip(results, resize_masks(masks, *sizes.values()), strict=True):
        assert result["segmentation"] == encode_rle(mask)
        ys, xs = np.nonzero(mask)
        if ys.size:
            tight = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
        else:
            tight = [0, 0, 0, 0]
        assert result["bbox"] == tight
    # The middle one lies in the padding: it is kept, as published, unless the caller says so.
    assert results[1]["bbox"] == [0, 0, 0, 0]
    fewer = to_coco_results(
        np.ones(3),
        np.zeros(3, int),
        masks,
        image_id=17,
        category_ids=(7,),
        drop_empty=True,
        **sizes,
    )
    assert [r["bbox"] for r in fewer] == [results[0]["bbox"], results[2]["bbox"]]


def test_class_without_a_category_is_an_error():
    with pytest.raises(InputError, match="image 3 has class 2"):
        to_coco_results(
            np.ones(1),
            np.array([2]),
            np.zeros((1, 6, 8), np.float32),
            image_size=(24, 32),
            original_size=(24, 32),
            image_id=3,
            category_ids=(1, 2),
        )


def test_one_full_size_mask_at_a_time():
    masks = np.full((40, 6, 8), 0.9, np.float32)
    tracemalloc.start()
    to_coco_results(
        np.ones(40),
        np.zeros(40, int),
        masks,
        image_size=(24, 32),
        original_size=(500, 700),
        image_id=1,
        category_ids=(1,),
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * 500 * 700  # 40 masks would be 40 bytes a pixel; one takes about 15


def test_batch_skips_padding():
    masks = three_masks()
    detections = Detections(
        scores=np.array([[0.9, 0.8, 0.7]] * 3, np.float32),
        labels=np.array([[0, 1, 5]] * 3, np.int32),
        boxes=np.zeros((3, 3, 4), np.float32),
        masks=np.stack([masks, masks, masks]),
        valid=np.array([[True, True, False], [True] * 3, [False, True, False]]),
        overflow=np.zeros(3, np.int32),
    )
    results = detections_to_coco_results(
        detections,
        image_size=np.array([[24, 32], [0, 0], [12, 20]]),
        original_size=np.array([[48, 64], [0, 0], [30, 20]]),
        image_valid=np.array([True, False, True]),
        image_ids=[11, None, 13],
        category_ids=(7, 90),
    )
    assert [(r["image_id"], r["category_id"]) for r in results] == [(11, 7), (11, 90), (13, 90)]
    assert [r["segmentation"]["size"] for r in results] == [[48, 64], [48, 64], [30, 20]]
    expected = resize_masks(masks[:1], (24, 32), (48, 64))[0]
    assert results[0]["segmentation"] == encode_rle(expected)


def test_embeddings_stand_beside_the_masks_they_belong_to():
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(2, 3, 5)).astype(np.float32)
    detections = Detections(
        scores=np.full((2, 3), 0.9, np.float32),
        labels=np.zeros((2, 3), np.int32),
        boxes=np.zeros((2, 3, 4), np.float32),
        masks=np.stack([three_masks()] * 2),
        valid=np.array([[True, False, True], [False, True, False]]),
        overflow=np.zeros(2, np.int32),
        embeddings=embeddings,
    )
    sizes = np.array([[24, 32]] * 2)
    results = detections_to_coco_results(
        detections,
        image_size=sizes,
        original_size=sizes,
        image_valid=np.ones(2, bool),
        image_ids=[1, 2],
        category_ids=(1,),
    )
    found = json.loads(json.dumps([result["emb"] for result in results]))
    np.testing.assert_array_equal(np.float32(found), embeddings[[0, 0, 1], [0, 2, 1]])


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_the_threshold_decides_the_pixels(threshold):
    """At the canvas's own size of one image, beside a resize that is not cut short."""
    rng = np.random.default_rng(0)
    masks = rng.uniform(0, 1, (3, 6, 8)).astype(np.float32)
    found = resize_masks(masks, (24, 32), (24, 32), threshold)
    rows, columns = (bilinear_weights(4 * n, n, np.float64) for n in (6, 8))
    smooth = rows @ masks.astype(np.float64) @ columns.T
    clear = np.abs(smooth - threshold) > 1e-5
    np.testing.assert_array_equal(found[clear], (smooth > threshold)[clear])
    assert 0 < found.mean() < 1
