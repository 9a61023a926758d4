"""Targets, Dice terms and losses of the recorded batch, exactly and to 1e-5."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small_solov2 as small
from helpers.golden import load_arrays, unpack_bits
from helpers.outputs import kernels_of, mask_features_of

from solojax.losses.dice import dice_loss
from solojax.losses.focal import category_focal_loss
from solojax.ops.mask_decoding import decode_dynamic
from solojax.ops.masks import unpack_masks
from solojax.ops.picking import pick_rows

RANGES = ("default", "scaled")
LOSS_TOLERANCE = 1e-5


@functools.cache
def targets(ranges):
    return jax.tree.map(np.asarray, small.build_task(ranges).targets(small.training_batch()))


def recorded(ranges):
    return load_arrays(f"solov2_targets_loss/{ranges}_ranges.npz")


def level_pairs(ranges, image, level):
    """Indices of one level's pairs on the padded pair axis, and where its cells begin."""
    start, count = small.GRID.level_offsets[level], small.GRID.cells_per_level[level]
    cells = targets(ranges).cells[image]
    inside = (cells >= start) & (cells < start + count) & targets(ranges).valid[image]
    return np.flatnonzero(inside), start


each_level = pytest.mark.parametrize(
    ("ranges", "image", "level"),
    [(ranges, image, level) for ranges in RANGES for image in range(2) for level in range(5)],
)


def test_centres_of_the_objects():
    truth = load_arrays("solov2_targets_loss/inputs.npz")
    instances = small.training_batch().instances
    for image in range(2):
        masks = unpack_bits(truth, f"gt{image}_masks_packed", f"gt{image}_masks_shape")
        kept = truth[f"gt{image}_center_xy"][masks.any(axis=(1, 2))]
        ours = instances.centers[image][instances.valid[image]]
        np.testing.assert_array_equal(ours, kept)


@each_level
def test_categories(ranges, image, level):
    start, side = small.GRID.level_offsets[level], small.GRID.num_grids[level]
    wanted = recorded(ranges)[f"img{image}/L{level}/cate_label"]
    ours = targets(ranges).category[image, start : start + side * side]
    np.testing.assert_array_equal(ours.reshape(side, side), wanted)


@each_level
def test_positive_cells_and_their_order(ranges, image, level):
    arrays, key = recorded(ranges), f"img{image}/L{level}"
    pairs, start = level_pairs(ranges, image, level)
    np.testing.assert_array_equal(
        targets(ranges).cells[image, pairs] - start, arrays[f"{key}/grid_order"]
    )
    count = small.GRID.cells_per_level[level]
    owned = np.flatnonzero(targets(ranges).owner[image, start : start + count] >= 0)
    np.testing.assert_array_equal(owned, arrays[f"{key}/ins_ind_label"])


@each_level
def test_target_masks(ranges, image, level):
    arrays, key = recorded(ranges), f"img{image}/L{level}"
    wanted = unpack_bits(arrays, f"{key}/ins_label_packed", f"{key}/ins_label_shape")
    pairs, _ = level_pairs(ranges, image, level)
    packed = small.training_batch().instances.masks[image]
    ours = np.unpackbits(packed[targets(ranges).instances[image, pairs]], axis=-1).astype(bool)
    np.testing.assert_array_equal(ours, wanted)


@pytest.mark.parametrize("ranges", RANGES)
def test_no_pair_is_left_out(ranges):
    assert targets(ranges).overflow.tolist() == [0, 0]
    assert targets(ranges).valid.sum() == recorded(ranges)["positives_per_level"].sum()


def level_major(ranges, values):
    """(B, P) values of the valid pairs in the recorded order: level, then image, then pair."""
    return np.concatenate(
        [
            values[image, level_pairs(ranges, image, level)[0]]
            for level in range(5)
            for image in range(2)
        ]
    )


@pytest.mark.parametrize("ranges", RANGES)
def test_dice_of_every_pair_from_the_recorded_heads(ranges):
    heads, found = small.recorded_heads(), targets(ranges)
    logits = decode_dynamic(pick_rows(kernels_of(heads), found.cells), mask_features_of(heads))
    masks = unpack_masks(small.training_batch().instances.masks)
    wanted = jnp.take_along_axis(masks, found.instances[:, :, None, None], axis=1)
    dice = np.asarray(dice_loss(jax.nn.sigmoid(logits), wanted))
    np.testing.assert_allclose(
        level_major(ranges, dice),
        recorded(ranges)["dice_per_positive_levelmajor"],
        rtol=LOSS_TOLERANCE,
    )
    # Sums of 48 * 64 logits, recorded in float64; the logits' own rounding is what is left.
    sums = level_major(ranges, np.asarray(logits, np.float64).sum(axis=(2, 3)))
    scale = np.abs(np.asarray(logits, np.float64)).sum(axis=(2, 3)).max()
    published = recorded(ranges)["ins_logits_sum_per_positive"]
    np.testing.assert_allclose(sums, published, rtol=0, atol=LOSS_TOLERANCE * scale)
    mask_loss = 3 * level_major(ranges, dice).mean()
    np.testing.assert_allclose(mask_loss, recorded(ranges)["loss_ins"], rtol=LOSS_TOLERANCE)


@pytest.mark.parametrize("ranges", RANGES)
def test_category_loss_from_the_recorded_heads(ranges):
    found = targets(ranges)
    focal = category_focal_loss(small.recorded_heads().category_logits, found.category)
    cells = int((found.owner >= 0).sum())
    assert cells == recorded(ranges)["num_ins_unique_cells"]
    loss = np.asarray(focal).sum(dtype=np.float64) / (cells + 1)
    np.testing.assert_allclose(loss, recorded(ranges)["loss_cate"], rtol=LOSS_TOLERANCE)
