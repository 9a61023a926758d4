"""solojax.models.solo_head: the switches; the numbers are in tests/test_golden_solo_heads.py."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny import random_variables

from solojax.errors import InputError
from solojax.models.solo_head import DecoupledHead, SOLOHead
from solojax.ops.alignment import align_adaptive_max_pool, align_region_grid
from solojax.structures import DecoupledMasks, DirectMasks

NUM_GRIDS = (7, 4)
LEVELS = [np.random.default_rng(0).normal(size=(2, h, w, 5)).astype(np.float32) for h, w in
          ((8, 12), (4, 6))]  # fmt: skip


def make(kind=SOLOHead, **options):
    return kind(num_classes=3, num_grids=NUM_GRIDS, **({"num_convs": 3, "channels": 32} | options))


def shapes(head):
    outputs, variables = jax.eval_shape(head.init_with_output, jax.random.key(0), LEVELS)
    return outputs, variables["params"]


def test_solo_has_the_weights_of_a_channel_for_each_cell_and_no_channels():
    outputs, params = shapes(make())
    assert outputs.category_logits.shape == (2, 49 + 16, 3)
    for masks, side, level in zip(outputs.masks, NUM_GRIDS, LEVELS, strict=True):
        assert isinstance(masks, DirectMasks)
        assert masks.features.shape == (2, 2 * level.shape[1], 2 * level.shape[2], 32)
        assert (masks.kernel.shape, masks.bias.shape) == ((32, side * side), (side * side,))
    assert params["mask_pred_0"]["kernel"].shape == (1, 1, 32, 49)
    largest = max(leaf.size for leaf in jax.tree.leaves(outputs))
    assert largest < 2 * 16 * 24 * 49  # the maps of all cells


@pytest.mark.parametrize("shared", [False, True])
def test_decoupled_has_a_map_for_each_row_and_column(shared):
    outputs, params = shapes(make(DecoupledHead, shared_tower=shared))
    for masks, side, level in zip(outputs.masks, NUM_GRIDS, LEVELS, strict=True):
        assert isinstance(masks, DecoupledMasks)
        assert masks.x.shape == (2, 2 * level.shape[1], 2 * level.shape[2], side)
        assert masks.y.shape == masks.x.shape
    towers = {name.rpartition("_")[0] for name in params if "tower" in name}
    expected = {"mask_tower"} if shared else {"x_tower", "y_tower"}
    assert towers == expected | {"category_tower"}
    inputs = {name: params[f"{name}_0"]["conv"]["kernel"].shape[2] for name in expected}
    assert inputs == dict.fromkeys(expected, 7 if shared else 6)


@pytest.mark.parametrize("number", range(4))
def test_the_first_so_many_blocks_get_coordinates(number):
    _, params = shapes(make(num_coordinate_convs=number))
    inputs = [params[f"mask_tower_{i}"]["conv"]["kernel"].shape[2] for i in range(3)]
    assert inputs == [width + 2 * (i < number) for i, width in enumerate((5, 32, 32))]
    assert params["category_tower_0"]["conv"]["kernel"].shape[2] == 5


def test_masks_of_decoupled_solo_tell_their_axis_apart():
    """Mirrored left and right, features without content change x maps but for the padding."""
    head = make(DecoupledHead, num_convs=1)
    levels = [np.zeros_like(level) for level in LEVELS]
    outputs = head.apply(random_variables(head, levels), levels)
    x, y = (np.asarray(getattr(outputs.masks[0], axis)) for axis in "xy")
    inner = np.s_[:, 6:-6, 6:-6]
    assert np.ptp(x[inner], axis=2).max() > 10 * np.ptp(x[inner], axis=1).max()
    assert np.ptp(y[inner], axis=1).max() > 10 * np.ptp(y[inner], axis=2).max()


def test_the_way_and_the_place_of_the_alignment_change_the_categories_alone():
    variables = random_variables(make(), LEVELS)
    plain = make().apply(variables, LEVELS)
    for options in (
        {"align": align_adaptive_max_pool},
        {"align": align_region_grid},
        {"align_at": 1},
    ):
        other = make(**options).apply(variables, LEVELS)
        assert np.abs(other.category_logits - plain.category_logits).max() > 1e-3
        jax.tree.map(np.testing.assert_array_equal, other.masks, plain.masks)


def test_alignment_after_the_last_block_is_an_error():
    with pytest.raises(InputError, match="3 blocks .* after 3"):
        shapes(make(align_at=3))


@pytest.mark.parametrize("kind", [SOLOHead, DecoupledHead])
def test_deformable_towers_end_in_one_deformable_convolution(kind):
    _, params = shapes(make(kind, deformable="v1"))
    deformable = {name for name, block in params.items() if "offset" in block.get("conv", {})}
    assert deformable == {name for name in params if name.endswith("tower_2")}


@pytest.mark.parametrize("kind", [SOLOHead, DecoupledHead])
def test_a_fresh_head_gives_every_cell_and_pixel_the_prior(kind):
    head = make(kind, num_convs=1, num_coordinate_convs=0)
    levels = [np.zeros_like(level) for level in LEVELS]
    outputs, variables = head.init_with_output(jax.random.key(0), levels)
    np.testing.assert_allclose(jax.nn.sigmoid(outputs.category_logits), 0.01, rtol=1e-5)
    name = "mask_pred_1" if kind is SOLOHead else "x_pred_1"
    np.testing.assert_allclose(variables["params"][name]["bias"], -np.log(99), rtol=1e-6)


def test_outputs_are_float32_under_bfloat16():
    levels = [jnp.asarray(level, jnp.bfloat16) for level in LEVELS]
    head = make(DecoupledHead, dtype=jnp.bfloat16)
    outputs, _ = jax.eval_shape(head.init_with_output, jax.random.key(0), levels)
    assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {jnp.dtype("float32")}
