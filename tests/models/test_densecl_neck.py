"""solojax.models.densecl_neck and the encoder around it: shapes, initial weights, grids."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny import random_variables

from solojax.models.contrastive_encoder import ContrastiveEncoder
from solojax.models.densecl_neck import DenseCLNeck

X = np.random.default_rng(0).normal(size=(2, 4, 6, 5)).astype(np.float32)


class Strided(nn.Module):
    """A backbone of one layer: every other pixel, five channels."""

    @nn.compact
    def __call__(self, image, *, train, row_mask):
        return image, nn.Dense(5)(image[:, ::2, ::2])


def dense(params, x):
    return x @ params["kernel"].reshape(x.shape[-1], -1) + params["bias"]


@pytest.mark.parametrize("grid", [None, (4, 6), (2, 3)])
def test_both_heads_are_two_layers_with_a_relu_between(grid):
    neck = DenseCLNeck(hidden=7, out=3, grid=grid)
    variables = random_variables(neck, X)
    params = variables["params"]
    out = neck.apply(variables, X)
    mean = X.mean(axis=(1, 2))
    vector = dense(params["global_1"], np.maximum(dense(params["global_0"], mean), 0))
    np.testing.assert_allclose(out.vector, vector, rtol=1e-4, atol=1e-5)
    cells = X if grid != (2, 3) else X.reshape(2, 2, 2, 3, 2, 5).mean(axis=(2, 4))
    cells = cells.reshape(2, -1, 5)
    local = dense(params["dense_1"], np.maximum(dense(params["dense_0"], cells), 0))
    np.testing.assert_allclose(out.grid, local, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out.pooled, local.mean(axis=1), rtol=1e-4, atol=1e-5)


def test_without_a_dense_head_there_is_nothing_of_it():
    neck = DenseCLNeck(hidden=7, out=3, dense=False)
    out, variables = neck.init_with_output(jax.random.key(0), X)
    assert out.grid is None and out.pooled is None
    assert set(variables["params"]) == {"global_0", "global_1"}


def test_both_heads_start_as_kaiming_and_without_bias():
    params = DenseCLNeck(hidden=256, out=64).init(jax.random.key(0), X)["params"]
    for name, inputs in (("global_0", 5), ("global_1", 256), ("dense_0", 5), ("dense_1", 256)):
        np.testing.assert_allclose(
            np.std(params[name]["kernel"]), np.sqrt(2 / inputs), rtol=0.1, err_msg=name
        )
        assert not np.any(params[name]["bias"])


def test_bfloat16_embeddings_come_from_float32_means_and_parameters():
    neck = DenseCLNeck(hidden=8, out=4, dtype=jnp.bfloat16)
    out, variables = neck.init_with_output(jax.random.key(0), X.astype(jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(out)} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(("grid", "cells"), [(None, 24), ((4, 6), 24), ((2, 3), 6), ((5, 1), 5)])
def test_the_features_to_match_have_the_grid_of_the_dense_head(grid, cells):
    encoder = ContrastiveEncoder(Strided(), DenseCLNeck(7, 3, grid))
    image = np.repeat(np.repeat(X[..., :3], 2, axis=1), 2, axis=2)
    encoded, variables = encoder.init_with_output(jax.random.key(0), image)
    assert encoded.features.shape == (2, cells, 5)
    assert encoded.embeddings.grid.shape == (2, cells, 3)
    assert set(variables["params"]) == {"backbone", "neck"}
    if grid == (2, 3):
        features = dense(variables["params"]["backbone"]["Dense_0"], X[..., :3])
        pooled = features.reshape(2, 2, 2, 3, 2, 5).mean(axis=(2, 4)).reshape(2, 6, 5)
        np.testing.assert_allclose(encoded.features, pooled, rtol=1e-4, atol=1e-5)


def test_an_encoder_without_a_dense_head_has_no_features_to_match():
    encoder = ContrastiveEncoder(Strided(), DenseCLNeck(7, 3, dense=False))
    encoded, _ = encoder.init_with_output(jax.random.key(0), X[..., :3])
    assert encoded.features is None and encoded.embeddings.vector.shape == (2, 3)
