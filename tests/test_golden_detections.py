"""Post-processing, and the network with it, against the recorded results."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small_solov2 as small
from helpers.golden import load_arrays, load_json
from helpers.outputs import kernels_of, mask_features_of
from pycocotools import mask as coco_mask

from solojax.ops.mask_decoding import decode_dynamic
from solojax.ops.masks import mask_area, mask_iou, maskness
from solojax.ops.nms import matrix_nms
from solojax.postprocess.detections import DetectionSettings, category_scores, detect
from solojax.postprocess.rescale import encode_rle, resize_masks

SETTINGS = {
    "default": DetectionSettings(),
    "linear": DetectionSettings(nms_kernel="linear"),
    "truncated": DetectionSettings(score_threshold=0.06, nms_pre=60, max_detections=15),
}
SCORE_TOLERANCE = 5e-4
AREA_TOLERANCE = 2
LEAST_IOU = 0.995

each_image = pytest.mark.parametrize(
    ("case", "image"), [(case, image) for case in SETTINGS for image in range(2)]
)


def recorded(case, image):
    """Recorded arrays of one image, and its masks as run lengths."""
    arrays = load_arrays("solov2_adet/small_results.npz")
    prefix = f"{case}/img{image}/"
    arrays = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    return arrays, load_json("solov2_adet/small_results.json")[case][image]["masks"]


@functools.cache
def detections_from_heads(case):
    run = jax.jit(lambda heads: detect(heads, small.GRID, SETTINGS[case]))
    return jax.tree.map(np.asarray, run(small.recorded_heads()))


def detections_from_images(images):
    heads = small.jitted_forward()(small.variables(), small.make_batch(images))
    run = jax.jit(lambda heads: detect(heads, small.GRID, DetectionSettings()))
    return jax.tree.map(np.asarray, run(heads))


def final_masks(found, row, image_size, original_size):
    """Run lengths of a row's valid masks at the original size."""
    masks = resize_masks(found.masks[row, found.valid[row]], image_size, original_size)
    return [encode_rle(mask) for mask in masks]


def pairwise_iou(ours, published):
    return coco_mask.iou(ours, published, [0] * len(published))


def assert_same_objects(found, row, arrays, iou=None):
    """Every recorded object is found once: its class, its score within 5e-4, its mask."""
    count = len(arrays["scores"])
    assert found.valid[row].sum() == count
    assert np.all(np.diff(found.scores[row, :count]) <= 0)
    left = set(range(count))
    for j in range(count):
        matches = [
            i
            for i in left
            if found.labels[row, i] == arrays["classes"][j]
            and abs(found.scores[row, i] - arrays["scores"][j]) <= SCORE_TOLERANCE
            and (iou is None or iou[i, j] >= LEAST_IOU)
        ]
        assert matches, f"recorded object {j} is missing"
        left.remove(min(matches, key=lambda i: abs(i - j)))


@each_image
def test_candidates(case, image):
    scores = np.asarray(category_scores(small.recorded_heads().category_logits, small.GRID))
    above = np.argwhere(scores[image] > SETTINGS[case].score_threshold)
    np.testing.assert_array_equal(above, recorded(case, image)[0]["cand_inds"])


def test_points_nms_keeps_the_recorded_number_of_cells():
    scores = np.asarray(category_scores(small.recorded_heads().category_logits, small.GRID))
    heads = load_arrays("solov2_adet/small_heads.npz")
    for level, (start, count) in enumerate(
        zip(small.GRID.level_offsets, small.GRID.cells_per_level, strict=True)
    ):
        kept = (scores[:, start : start + count] > 0).sum(axis=(1, 2))
        np.testing.assert_array_equal(kept, heads[f"point_nms_L{level}_nonzero_count"])


@each_image
def test_scores_and_areas_into_and_out_of_matrix_nms(case, image):
    arrays, _ = recorded(case, image)
    heads, settings = small.recorded_heads(), SETTINGS[case]
    cells, labels = arrays["cand_inds"].T
    scores = np.asarray(category_scores(heads.category_logits, small.GRID))[image, cells, labels]
    one = slice(image, image + 1)
    logits = decode_dynamic(kernels_of(heads)[one, cells], mask_features_of(heads)[one])
    probabilities = jax.nn.sigmoid(logits[0])
    binary = probabilities > settings.mask_threshold
    areas = np.asarray(mask_area(binary))
    scores = np.asarray(scores * maskness(probabilities, binary))
    large = areas > np.repeat(small.GRID.strides, small.GRID.cells_per_level)[cells]
    order = np.argsort(-np.where(large, scores, -1), kind="stable")
    order = order[: min(settings.nms_pre, int(large.sum()))]

    np.testing.assert_array_equal(labels[order], arrays["nms_labels"])
    np.testing.assert_allclose(areas[order], arrays["nms_sum_masks"], rtol=0, atol=AREA_TOLERANCE)
    np.testing.assert_allclose(scores[order], arrays["nms_scores_in"], rtol=0, atol=SCORE_TOLERANCE)
    decayed = matrix_nms(
        mask_iou(binary[order], binary[order]),
        jnp.asarray(labels[order]),
        jnp.asarray(scores[order]),
        jnp.ones(len(order), bool),
        kernel=settings.nms_kernel,
    )
    np.testing.assert_allclose(decayed, arrays["nms_scores_out"], rtol=0, atol=SCORE_TOLERANCE)
    surviving = int((np.asarray(decayed) >= settings.update_threshold).sum())
    counts = load_json("solov2_adet/small_results.json")[case][image]
    assert surviving == counts["n_above_update_thr"]
    assert len(cells) == counts["n_candidates"]


@each_image
def test_detections_from_recorded_heads(case, image):
    arrays, published = recorded(case, image)
    image_size = small.recorded_images()[image].shape[:2]
    found = detections_from_heads(case)
    ours = final_masks(found, image, image_size, small.original_size(image))
    assert_same_objects(found, image, arrays, pairwise_iou(ours, published))
    assert found.overflow[image] == 0


def test_nothing_above_the_threshold():
    settings = DetectionSettings(score_threshold=0.999)
    found = jax.jit(lambda heads: detect(heads, small.GRID, settings))(small.recorded_heads())
    assert not np.asarray(found.valid).any()
    assert not np.asarray(found.masks).any()
    assert recorded("nothing", 0)[1] == []


@pytest.mark.parametrize("image", range(2))
def test_detections_from_images(image):
    arrays, published = recorded("default", image)
    images = small.recorded_images()
    found = detections_from_images(images)
    ours = final_masks(found, image, images[image].shape[:2], small.original_size(image))
    assert_same_objects(found, image, arrays, pairwise_iou(ours, published))


def test_second_image_alone():
    """Its canvas is smaller than in the batch, so the results differ, as published."""
    arrays, published = recorded("img1_alone", 0)
    image = small.recorded_images()[1]
    found = detections_from_images([image])
    ours = final_masks(found, 0, image.shape[:2], small.original_size(1))
    assert_same_objects(found, 0, arrays, pairwise_iou(ours, published))


def test_a_short_image_in_a_tall_batch():
    """The published masks of the second image are cropped wrongly; all else agrees."""
    tall = small.recorded_images()[0]
    short = tall[:93]
    found = detections_from_images([tall, short])
    arrays, published = recorded("short_in_batch", 0)
    ours = final_masks(found, 0, tall.shape[:2], small.original_size(0))
    assert_same_objects(found, 0, arrays, pairwise_iou(ours, published))
    arrays, _ = recorded("short_in_batch", 1)
    assert_same_objects(found, 1, arrays)
