"""solojax.ops.shuffle: it mixes the groups evenly, comes back exactly, and stays cheap."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny import assert_same_bits

from solojax.errors import InputError
from solojax.ops.shuffle import (
    FixedShuffle,
    GroupShuffle,
    permute_rows,
    shuffle_rows,
    unshuffle_rows,
)
from solojax.train.collectives import collective_instructions
from solojax.train.sharding import batch_sharding, make_mesh

KEY = jax.random.key(3)
SIZES = [(32, 8), (12, 4), (24, 3), (15, 5), (16, 2), (8, 8), (6, 1)]
needs_four = pytest.mark.skipif(jax.device_count() < 4, reason="fewer than 4 devices")


@pytest.mark.parametrize(("rows", "group"), SIZES)
def test_every_new_group_has_as_many_rows_of_every_old_one(rows, group):
    order = np.asarray(shuffle_rows(jnp.arange(rows), KEY, group))
    assert sorted(order) == list(range(rows))
    groups = rows // group
    for new in order.reshape(groups, group):
        counts = np.bincount(new // group, minlength=groups)
        assert set(counts) <= {group // groups, -(-group // groups)}


@pytest.mark.parametrize(("rows", "group"), SIZES)
def test_the_inverse_is_exact(rows, group):
    x = np.random.default_rng(0).normal(size=(rows, 3, 2)).astype(np.float32)
    back = unshuffle_rows(shuffle_rows(jnp.asarray(x), KEY, group), KEY, group)
    np.testing.assert_array_equal(back, x)


def test_any_row_may_come_to_any_place_and_the_key_decides():
    shuffled = jax.vmap(lambda key: shuffle_rows(jnp.arange(8), key, 4))
    orders = np.asarray(shuffled(jax.random.split(KEY, 2000)))
    for place in range(8):
        np.testing.assert_allclose(
            np.bincount(orders[:, place], minlength=8), 250, atol=5 * np.sqrt(250)
        )


def test_a_tree_moves_as_one():
    rows = {"a": jnp.arange(8), "b": jnp.arange(16.0).reshape(8, 2)}
    for shuffle in (GroupShuffle(4), FixedShuffle((2, 7, 4, 5, 6, 1, 0, 3))):
        moved = shuffle.shuffle(rows, KEY)
        np.testing.assert_array_equal(moved["b"], rows["b"][moved["a"]])
        assert_same_bits(shuffle.unshuffle(moved, KEY), rows)
    np.testing.assert_array_equal(moved["a"], (2, 7, 4, 5, 6, 1, 0, 3))


def test_rows_are_taken_in_the_given_order():
    np.testing.assert_array_equal(
        permute_rows(jnp.arange(3) * 10, np.array([2, 0, 1])), [20, 0, 10]
    )


def test_a_group_that_does_not_divide_the_batch_is_refused():
    with pytest.raises(InputError, match="groups of 8 .* batch of 12; .* such as 4"):
        shuffle_rows(jnp.arange(12), KEY, 8)


@needs_four
def test_spread_rows_come_to_the_same_places():
    x = np.arange(32.0).reshape(16, 2)
    sharding = batch_sharding(make_mesh(jax.devices()[:4]))
    spread = jax.device_put(x, sharding)
    for function in (shuffle_rows, unshuffle_rows):
        found = jax.jit(lambda x, function=function: function(x, KEY, 8, sharding))(spread)
        np.testing.assert_array_equal(found, function(jnp.asarray(x), KEY, 8))


@needs_four
@pytest.mark.parametrize(("rows", "group"), [(32, 8), (64, 8), (16, 8)])
def test_devices_exchange_their_own_rows_and_never_gather_the_batch(rows, group):
    """Two groups a device, one, and half of one."""
    mesh = make_mesh(jax.devices()[:4])
    sharding = batch_sharding(mesh)
    images = jax.ShapeDtypeStruct((rows, 6, 5, 3), jnp.float32)
    for function in (shuffle_rows, unshuffle_rows):
        jitted = jax.jit(
            lambda x, key, function=function: function(x, key, group, sharding),
            in_shardings=(sharding, None),
            out_shardings=sharding,
        )
        found = collective_instructions(jitted.lower(images, KEY).compile().as_text())
        kinds = {each.op for each in found}
        assert "all-to-all" in kinds
        most = max(group, rows // 4) * 6 * 5 * 3 * 4
        for each in found:
            assert each.op in ("all-to-all", "collective-permute", "all-gather")
            assert each.bytes <= most, each
        if group <= rows // 4:
            assert "all-gather" not in kinds
