"""solojax.train.state: splitting parameters, and what a fresh state holds."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.tiny import assert_same_bits

from solojax.train.state import (
    create_state,
    inference_variables,
    merge_params,
    split_params,
)

PARAMS = {
    "backbone": {"conv1": {"kernel": np.ones(2)}, "bn1": {"scale": np.ones(3)}},
    "head": {"kernel": np.zeros(4)},
}


@dataclasses.dataclass(frozen=True)
class Task:
    """Two parameters, one of them frozen; `extra` and `batch_stats` where asked for."""

    collections: tuple[str, ...] = ()

    def init(self, rng, batch):
        variables = {"params": {"free": jax.random.normal(rng, (3,)), "fixed": jnp.ones(2)}}
        return variables | {name: {"value": jnp.full((1,), 7.0)} for name in self.collections}

    def is_trainable(self, path):
        return path == ("free",)


@pytest.mark.parametrize(
    "is_trainable",
    [
        lambda path: path[0] == "head",
        lambda path: path[-1] == "kernel",
        lambda path: True,
        lambda path: False,
    ],
)
def test_splitting_parts_and_merging_restores(is_trainable):
    trainable, frozen = split_params(PARAMS, is_trainable)
    paths = [
        {tuple(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (trainable, frozen, PARAMS)
    ]
    assert paths[0] == {path for path in paths[2] if is_trainable(path)}
    assert paths[1] == paths[2] - paths[0]
    assert_same_bits(merge_params(trainable, frozen), PARAMS)


def test_empty_branches_are_left_out():
    trainable, frozen = split_params(PARAMS, lambda path: path[0] == "head")
    assert set(trainable) == {"head"} and set(frozen) == {"backbone"}


def test_a_fresh_state():
    optimizer = optax.trace(decay=0.9)
    state = create_state(Task(), optimizer, jax.random.key(3), batch=None)
    assert state.step.dtype == jnp.int32 and int(state.step) == 0
    assert_same_bits(state.params["free"], jax.random.normal(jax.random.key(3), (3,)))
    assert state.batch_stats == {} and state.extra == {} and state.ema_params is None
    # The optimizer's state knows the trainable parameter alone.
    assert_same_bits(state.opt_state.trace, {"free": np.zeros(3, np.float32)})
    assert inference_variables(state) == {"params": state.params, "batch_stats": {}}


def test_a_state_with_all_collections_and_a_moving_average():
    task = Task(collections=("batch_stats", "extra"))
    state = create_state(task, optax.sgd(0.1), jax.random.key(0), batch=None, ema=True)
    for collection in (state.batch_stats, state.extra):
        np.testing.assert_array_equal(collection["value"], [7.0])
    assert_same_bits(state.ema_params, state.params)
    for average, value in zip(*map(jax.tree.leaves, (state.ema_params, state.params)), strict=True):
        # A buffer may be donated only once.
        assert average.unsafe_buffer_pointer() != value.unsafe_buffer_pointer()
    moved = state.replace(params=jax.tree.map(lambda x: x + 1, state.params))
    assert inference_variables(moved)["params"] is moved.ema_params
