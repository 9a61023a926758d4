"""Rematerialisation keeps less for the backward pass and changes nothing else."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny import quick_jit, random_variables
from helpers.tiny_config import get_config

from solojax.builders.network import build_model
from solojax.errors import InputError
from solojax.models.layers import ConvNormRelu
from solojax.models.mask_feature_head import MaskFeatureHead
from solojax.models.rematerialisation import rematerialised

POLICIES = ("none", "blocks", "blocks_convs", "all", "all_convs")
IMAGE = np.zeros((1, 512, 768, 3), np.float32)  # no one computes with it


def scalar(outputs):
    return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(outputs))


def network(policy, head="solov2", features="unified"):
    config = get_config()
    config.train.remat = policy
    config.model.head.num_convs = 2
    config.model.head.kind, config.model.mask_features.kind = head, features
    return build_model(config, 3)


@functools.cache
def shapes(policy, head="solov2", features="unified"):
    """Of the variables."""
    model = network(policy, head, features)
    return jax.eval_shape(model.init, jax.random.key(0), IMAGE)


def kept_bytes(policy, *kinds):
    """What the forward pass of the whole network hands to the backward pass; nothing compiles."""
    model, variables = network(policy, *kinds), shapes("none", *kinds)

    def residuals(params, others):
        def loss(params):
            return scalar(model.apply({**others, "params": params}, IMAGE))

        return jax.vjp(loss, params)[1]

    others = {name: tree for name, tree in variables.items() if name != "params"}
    leaves = jax.tree.leaves(jax.eval_shape(residuals, variables["params"], others))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def test_what_is_kept_shrinks():
    kept = {policy: kept_bytes(policy) for policy in POLICIES}
    assert kept["blocks"] < 0.9 * kept["blocks_convs"] < 0.8 * kept["none"]
    assert kept["all"] < 0.9 * kept["all_convs"] < 0.8 * kept["none"]
    assert kept["all_convs"] < 0.95 * kept["blocks_convs"] and kept["all"] < 0.9 * kept["blocks"]


@pytest.mark.parametrize("kinds", [("decoupled",), ("solov2", "separate")])
def test_all_means_every_head(kinds):
    """More is saved beyond the backbone than the pyramid alone could be."""
    assert kept_bytes("all", *kinds) < 0.85 * kept_bytes("blocks", *kinds)


def test_parameters_are_the_same():
    expected, found = shapes("none"), shapes("all")
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert jax.tree.leaves(found) == jax.tree.leaves(expected)


@functools.cache
def gradient(remat):
    """Of mask features over three levels in float64: (gradient, program text)."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        pyramid = [rng.normal(size=(2, side, side, 8)) for side in (16, 8, 4)]
        model = MaskFeatureHead(32, 32, num_levels=3, remat=remat, dtype=jnp.float64)
        variables = random_variables(model, pyramid, dtype=np.float64)
        program = quick_jit(jax.grad(lambda v: scalar(model.apply(v, pyramid)))).lower(variables)
        return jax.device_get(program.compile()(variables)), program.as_text()


@pytest.mark.parametrize("remat", ["whole", "convs"])
def test_gradients_are_the_same(remat):
    expected, plain = gradient("none")
    found, text = gradient(remat)
    # What is computed again hides behind barriers, or it would be merged with the first time.
    assert "optimization_barrier" in text and "optimization_barrier" not in plain
    counts = [each.count("stablehlo.convolution") for each in (text, plain)]
    assert (counts[0] > counts[1]) == (remat == "whole")
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12 * np.abs(b).max())


def test_other_policies_are_refused():
    assert rematerialised(ConvNormRelu, "none") is ConvNormRelu
    with pytest.raises(InputError, match="remat 'some' is unknown; use one of none, whole, convs"):
        rematerialised(ConvNormRelu, "some")
