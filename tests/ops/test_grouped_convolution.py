"""Grouped convolution against one plain convolution per group; both ways of computing it."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from helpers import plain_layers
from helpers.tiny import quick_jit

from solojax.ops import grouped_convolution
from solojax.ops.grouped_convolution import convolve_grouped, merge_groups

RNG = np.random.default_rng(0)


def plain_groups(x, kernel, groups, stride):
    inputs, kernels = np.split(x, groups, axis=-1), np.split(kernel, groups, axis=-1)
    outputs = [plain_layers.conv2d(x, k, stride) for x, k in zip(inputs, kernels, strict=True)]
    return np.concatenate(outputs, axis=-1)


@pytest.fixture(params=["blocks", "groups"])
def either_way(request, monkeypatch):
    """On a CPU: by dense blocks (as shipped), and as other platforms do it."""
    if request.param == "groups":
        monkeypatch.setattr(
            grouped_convolution, "_convolve_blocks", grouped_convolution._convolve_groups
        )


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize(
    ("channels", "out_channels", "groups", "side", "stride"),
    [(8, 12, 4, 3, 1), (8, 12, 4, 3, 2), (128, 64, 64, 3, 1), (48, 6, 3, 1, 2), (96, 96, 2, 3, 1)],
)
def test_every_group_is_a_convolution_of_its_own(channels, out_channels, groups, side, stride):
    x = RNG.standard_normal((2, 5, 6, channels)).astype(np.float32)
    kernel = RNG.standard_normal((side, side, channels // groups, out_channels)).astype(np.float32)

    # A lambda of its own, because a function traced before would not see the other way.
    out = quick_jit(lambda x, k: convolve_grouped(x, k, groups, stride))(x, kernel)
    expected = plain_groups(x, kernel, groups, stride)
    assert out.shape == expected.shape
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_are_those_of_the_groups(stride):
    """<f(x, k), g> is linear in x and in k, so that each gradient is its value at unit vectors."""
    x = RNG.standard_normal((1, 4, 3, 8)).astype(np.float32)
    kernel = RNG.standard_normal((3, 3, 2, 4)).astype(np.float32)
    out_shape = plain_groups(x, kernel, 4, stride).shape
    cotangent = RNG.standard_normal(out_shape).astype(np.float32)

    def pull(x, kernel):
        return jax.vjp(lambda x, k: convolve_grouped(x, k, 4, stride), x, kernel)[1](cotangent)

    def slope(change):
        values = {"x": x, "kernel": kernel} | change
        return np.sum(plain_groups(values["x"], values["kernel"], 4, stride) * cotangent)

    for name, value, gradient in zip(
        ("x", "kernel"), (x, kernel), quick_jit(pull)(x, kernel), strict=True
    ):
        units = np.eye(value.size).reshape(-1, *value.shape)
        expected = np.reshape([slope({name: unit}) for unit in units], value.shape)
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("groups", "channels", "merged"),
    # 4 channels a group: as many divisors of the groups as fit.
    [(6, 4, 6), (6, 8, 3), (6, 16, 2), (6, 100, 1), (6, 1, 6), (1, 32, 1)],
)
def test_merged_groups_mean_the_same(groups, channels, merged):
    kernel = RNG.standard_normal((3, 3, 4, 6 * 5)).astype(np.float32)
    x = RNG.standard_normal((1, 4, 5, 4 * groups)).astype(np.float32)
    dense, count = quick_jit(functools.partial(merge_groups, groups=groups, channels=channels))(
        kernel
    )
    assert count == merged and dense.shape == (3, 3, 4 * groups // merged, 30)
    ours = plain_groups(x, np.asarray(dense), count, 1)
    np.testing.assert_allclose(ours, plain_groups(x, kernel, groups, 1), rtol=0, atol=1e-12)
