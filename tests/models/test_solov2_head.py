"""solojax.models.solov2_head against a float64 recomputation."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import plain_network
from helpers.outputs import kernels_of
from helpers.tiny import quick_jit, random_variables

from solojax.errors import InputError
from solojax.models.solov2_head import SOLOv2Head
from solojax.models.towers import head_levels

RNG = np.random.default_rng(0)
NUM_GRIDS = (7, 4, 3)
LEVELS = [RNG.normal(size=(2, h, w, 5)) for h, w in ((8, 12), (3, 5), (3, 5))]

FEATURES = (RNG.normal(size=(2, 16, 24, 6)),)


def make_head(**options):
    options = {"num_convs": 2, "channels": 32, "kernel_channels": 6} | options
    return SOLOv2Head(num_classes=3, **({"num_grids": NUM_GRIDS} | options))


def test_levels_are_halved_and_resized():
    pyramid = [RNG.normal(size=(2, h, w, 3)) for h, w in ((16, 24), (8, 12), (4, 6), (2, 3))]
    pyramid.append(pyramid[-1][:, ::2, ::2])
    levels = quick_jit(head_levels)([x.astype(np.float32) for x in pyramid])
    expected = plain_network.head_levels(pyramid)
    assert [x.shape[1:3] for x in levels] == [(8, 12), (8, 12), (4, 6), (2, 3), (2, 3)]
    for ours, plain in zip(levels, expected, strict=True):
        np.testing.assert_allclose(ours, plain, rtol=0, atol=2e-6)


@functools.cache
def outputs_and_expected(semantics):
    with jax.enable_x64(True):
        head = make_head(semantics=semantics)
        variables = random_variables(head, LEVELS, FEATURES, dtype=np.float64)
        outputs = quick_jit(head.apply)(variables, LEVELS, FEATURES)
        expected = plain_network.solov2_head(
            variables, LEVELS, NUM_GRIDS, 2, coordinates_first=semantics == "release"
        )
        return [np.asarray(outputs.category_logits), np.asarray(kernels_of(outputs))], expected


@pytest.mark.parametrize("semantics", ["release", "thesis"])
def test_every_cell_in_float64(semantics):
    for ours, plain in zip(*outputs_and_expected(semantics), strict=True):
        assert ours.shape == plain.shape == (2, 49 + 16 + 9, plain.shape[-1])
        np.testing.assert_allclose(ours, plain, rtol=0, atol=1e-10 * np.abs(plain).max())


def test_the_semantics_differ_in_the_kernels_alone():
    (release_category, release_kernels), _ = outputs_and_expected("release")
    (thesis_category, thesis_kernels), _ = outputs_and_expected("thesis")
    np.testing.assert_allclose(release_category, thesis_category, rtol=1e-12)
    assert np.abs(release_kernels - thesis_kernels).max() > 1e-3


def test_a_fresh_head_gives_every_class_the_prior():
    head = make_head(num_convs=1, num_grids=NUM_GRIDS[2:])
    zeros = [np.zeros(x.shape, np.float32) for x in LEVELS[2:]]
    variables = quick_jit(head.init)(jax.random.key(0), zeros, FEATURES)
    params = variables["params"]
    prior = 1 / (1 + np.exp(-np.asarray(params["category_pred"]["bias"], np.float64)))
    np.testing.assert_allclose(prior, 0.01, rtol=1e-6)
    np.testing.assert_allclose(params["category_pred"]["bias"], -math.log(99), rtol=1e-6)
    np.testing.assert_array_equal(params["kernel_pred"]["bias"], np.zeros(6))
    # One set of towers serves all levels; the kernel tower reads two coordinates more.
    assert set(params) == {
        "category_tower_0", "kernel_tower_0", "category_pred", "kernel_pred",
    }  # fmt: skip
    assert params["category_tower_0"]["conv"]["kernel"].shape == (3, 3, 5, 32)
    assert params["kernel_tower_0"]["conv"]["kernel"].shape == (3, 3, 7, 32)
    # Zero features leave GroupNorm at zero, so the bias alone speaks.
    outputs = quick_jit(head.apply)(variables, zeros, FEATURES)
    np.testing.assert_allclose(jax.nn.sigmoid(outputs.category_logits), 0.01, rtol=1e-5)


def test_logits_and_kernels_come_out_in_float32_under_bfloat16():
    levels = [jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) for x in LEVELS]
    head = make_head(dtype=jnp.bfloat16)
    outputs, _ = jax.eval_shape(head.init_with_output, jax.random.key(0), levels, FEATURES)
    assert outputs.category_logits.dtype == kernels_of(outputs).dtype == jnp.float32


def test_another_number_of_levels_than_grids_is_an_error():
    with pytest.raises(ValueError, match="zip"):
        jax.eval_shape(make_head().init, jax.random.key(0), LEVELS[:2], FEATURES)


def test_unknown_semantics_are_an_error():
    with pytest.raises(InputError, match="'paper'.*release"):
        jax.eval_shape(make_head(semantics="paper").init, jax.random.key(0), LEVELS, FEATURES)


def test_embeddings_stand_beside_the_category_logits():
    """Another convolution of the same features: with the same weights it says the same."""
    head = make_head(embedding_width=3)
    variables = random_variables(head, LEVELS, FEATURES)
    params = variables["params"]
    assert params["embedding_pred"]["kernel"].shape == (3, 3, 32, 3)
    apply = quick_jit(head.apply)
    outputs = apply(variables, LEVELS, FEATURES)
    assert outputs.embeddings.shape == (2, 49 + 16 + 9, 3)
    assert np.abs(outputs.embeddings - outputs.category_logits).max() > 1e-2
    same = apply({"params": params | {"embedding_pred": params["category_pred"]}}, LEVELS, FEATURES)
    np.testing.assert_allclose(same.embeddings, outputs.category_logits, rtol=0, atol=1e-5)

    plain = make_head()
    without = quick_jit(plain.apply)(
        {"params": {k: v for k, v in params.items() if k != "embedding_pred"}}, LEVELS, FEATURES
    )
    assert without.embeddings is None
    np.testing.assert_allclose(without.category_logits, outputs.category_logits, rtol=0, atol=1e-5)
