"""Free Mask against the recorded run of the published code on two feature maps."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.golden import load_arrays, load_json, sampled
from pycocotools import mask as coco_mask

from solojax.ops.masks import mask_area
from solojax.postprocess.free_mask_labels import (
    FreeMaskFilters,
    center_and_width,
    free_mask_annotations,
    upsample_mask,
)
from solojax.postprocess.free_masks import (
    FreeMaskSettings,
    find_free_masks,
    pyramid_queries,
    query_masks,
)

MAPS = ("freemask_c256_13x17", "freemask_c512_10x14")
each_map = pytest.mark.parametrize("name", MAPS)


def recorded(name):
    return load_arrays(f"freesolo/{name}.npz")


def features_of(name):
    """(1, h, w, C) float32 and the cells of the image, which are all of them."""
    features = recorded(name)["res5_f16"].astype(np.float32).transpose(1, 2, 0)[None]
    return features, np.array([features.shape[1:3]], np.int32)


@functools.cache
def soft_masks(name):
    """(Q, h, w) of all queries, in their order."""
    features, cells = features_of(name)
    queries, valid = pyramid_queries(jnp.asarray(features), cells, FreeMaskSettings().scales)
    assert np.all(valid)
    inside = np.ones(features.shape[:3], bool)
    return np.asarray(query_masks(queries, jnp.asarray(features), inside)[0])


@functools.cache
def found_masks(name):
    found = jax.jit(lambda x, cells: find_free_masks(x, cells, FreeMaskSettings()))(
        *features_of(name)
    )
    return jax.tree.map(lambda x: np.asarray(x[0]), found)


@each_map
def test_similarities(name):
    arrays, soft = recorded(name), soft_masks(name)
    assert len(soft) == arrays["n_queries_per_scale"].sum()
    expected, ours = sampled(arrays, "attn", soft)
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    np.testing.assert_array_equal(mask_area(soft >= 0.5), arrays["attn_mask_area_all_queries"])


@each_map
def test_the_best_masks_and_their_scores(name):
    arrays = recorded(name)
    best = np.sort(arrays["nms_out"])[::-1][:20]
    np.testing.assert_allclose(found_masks(name).scores, best, atol=1e-5)
    assert found_masks(name).valid.all()


@each_map
def test_masks_at_the_size_of_the_image(name):
    arrays, found = recorded(name), found_masks(name)
    size = arrays["image_hw"]
    masks = [upsample_mask(mask, mask.shape, size) >= 0.5 for mask in found.masks]
    areas = [mask.sum() for mask in masks]
    np.testing.assert_allclose(areas, arrays["top20_sum_masks_fullres"], atol=2)
    measured = [center_and_width(mask, "release") for mask in masks]
    np.testing.assert_allclose([c for c, _ in measured], arrays["top20_center_h"], atol=1e-2)
    np.testing.assert_array_equal([w for _, w in measured], arrays["top20_box_wh"][:, 0])
    by_width = [FreeMaskFilters(None, None, 0.95).keeps(*each, *size) for each in measured]
    by_both = [FreeMaskFilters().keeps(*each, *size) for each in measured]
    by_score = found.scores >= 0.7
    np.testing.assert_array_equal(by_width, arrays["top20_keep_width"])
    np.testing.assert_array_equal(by_score, arrays["top20_keep_score"])
    np.testing.assert_array_equal(by_both & by_score, arrays["top20_keep_all"])


@each_map
def test_the_masks_that_are_kept(name):
    arrays, found, expected = recorded(name), found_masks(name), load_json(f"freesolo/{name}.json")
    height, width = found.masks.shape[1:]
    annotations = free_mask_annotations(
        found.scores,
        found.masks,
        found.embeddings,
        image_size=(32 * height, 32 * width),
        original_size=arrays["image_hw"],
        filters=FreeMaskFilters(),
        semantics="release",
    )
    assert len(annotations) == len(expected)
    for ours, theirs, embedding in zip(annotations, expected, arrays["kept_embs"], strict=True):
        pair = [ours["segmentation"]], [theirs["segmentation"]]
        assert coco_mask.iou(*pair, [0])[0, 0] >= 0.995
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-4)
        np.testing.assert_allclose(ours["emb"], embedding, atol=1e-5)
        # The published boxes are other numbers (corners, of projections): ours are tight.
        assert ours["bbox"] == coco_mask.toBbox(theirs["segmentation"]).tolist()
