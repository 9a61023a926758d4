"""solojax.models.deform_conv: offsets and masks come from the input, in the published order."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import plain_layers
from helpers.tiny import quick_jit, random_variables

from solojax.errors import InputError
from solojax.models.convolution import Conv
from solojax.models.deform_conv import DeformConv, conv_class
from solojax.models.layers import ConvNormRelu

X = np.random.default_rng(0).normal(size=(2, 7, 6, 4)).astype(np.float32)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("modulated", "factor"), [(False, 1.0), (True, 0.5)])
def test_it_starts_as_an_ordinary_convolution_or_half_of_it(modulated, factor, stride):
    layer = DeformConv(5, 3, stride, use_bias=False, modulated=modulated)
    variables = quick_jit(layer.init)(jax.random.key(0), X)
    out = quick_jit(layer.apply)(variables, X)
    kernel = np.asarray(variables["params"]["kernel"])
    expected = factor * plain_layers.conv2d(X, kernel, stride)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_parameters_of_both_versions():
    for modulated, channels in ((False, 18), (True, 27)):
        params = random_variables(DeformConv(6, modulated=modulated, groups=2), X)["params"]
        assert jax.tree.map(np.shape, params) == {
            "kernel": (3, 3, 2, 6),
            "bias": (6,),
            "offset": {"kernel": (3, 3, 4, channels), "bias": (channels,)},
        }


def test_offsets_come_as_y_and_x_of_every_tap_and_then_the_masks():
    """The offset layer's bias moves one tap by (1, 2) pixels and closes all others."""
    layer = DeformConv(5, use_bias=False, modulated=True)
    variables = random_variables(layer, X)
    params = variables["params"]
    row, column = 2, 0
    tap = 3 * row + column
    bias = np.zeros(27, np.float32)
    bias[2 * tap : 2 * tap + 2] = 1, 2
    bias[18:] = -100
    bias[18 + tap] = 0.3
    params["offset"] = {"kernel": np.zeros((3, 3, 4, 27), np.float32), "bias": bias}
    out = quick_jit(layer.apply)(variables, X)
    # The tap at (1, -1) from the centre reads at (2, 1) from it.
    moved = np.zeros_like(X)
    moved[:, :-2, :-1] = X[:, 2:, 1:]
    expected = moved @ params["kernel"][row, column] * plain_layers.sigmoid(0.3)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("modulated", [False, True])
def test_offsets_follow_the_input_and_learn(modulated):
    layer = DeformConv(5, modulated=modulated)
    variables = quick_jit(layer.init)(jax.random.key(0), X)

    @quick_jit
    def gradient(params):
        return jax.grad(lambda p: jnp.sum(jnp.sin(layer.apply({"params": p}, X))))(params)

    gradients = gradient(variables["params"])
    for leaf in jax.tree.leaves(gradients["offset"]):
        every_channel = np.abs(leaf).reshape(-1, leaf.shape[-1]).max(axis=0)
        assert np.all(np.isfinite(every_channel)) and np.all(every_channel > 0)


def test_compute_type():
    layer = DeformConv(8, modulated=True, dtype=jnp.bfloat16)
    shape = jax.ShapeDtypeStruct(X.shape, jnp.float32)
    out, variables = jax.eval_shape(layer.init_with_output, jax.random.key(0), shape)
    assert out.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_the_word_of_a_config_chooses_the_layer():
    assert conv_class("none") is Conv
    assert [conv_class(word)(4).modulated for word in ("v1", "v2")] == [False, True]
    with pytest.raises(InputError, match="'dcn'.*none, v1, v2"):
        conv_class("dcn")


@pytest.mark.parametrize(("deformable", "factor"), [("v1", 1), ("v2", 0.5)])
def test_the_heads_block_takes_a_deformable_convolution(deformable, factor):
    block = ConvNormRelu(32, deformable=deformable)
    variables = random_variables(block, X)
    params = variables["params"]
    assert set(params) == {"conv", "norm"} and set(params["conv"]) == {"kernel", "offset"}
    params["conv"]["offset"] = jax.tree.map(np.zeros_like, params["conv"]["offset"])
    y = factor * plain_layers.conv2d(X, params["conv"]["kernel"])
    expected = plain_layers.relu(plain_layers.group_norm(y, **params["norm"], num_groups=32))
    np.testing.assert_allclose(quick_jit(block.apply)(variables, X), expected, rtol=0, atol=1e-4)
