"""solojax.ops.dynamic_conv against a loop over taps and pixels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny import quick_jit

from solojax.ops.dynamic_conv import _convolve_one_by_one, _convolve_together, dynamic_conv_3x3
from solojax.ops.mask_decoding import decode_dynamic

RNG = np.random.default_rng(0)
KERNELS = RNG.normal(size=(2, 3, 9 * 5)).astype(np.float32)
FEATURES = RNG.normal(size=(2, 4, 6, 5)).astype(np.float32)


def plain_dynamic_conv(kernels, features):
    """Every output pixel: nine taps, row by row, E numbers each; zeros outside."""
    batch, height, width, channels = features.shape
    out = np.zeros((batch, kernels.shape[1], height, width))
    for b, p, y, x in np.ndindex(out.shape):
        for tap in range(9):
            row, column = y + tap // 3 - 1, x + tap % 3 - 1
            if 0 <= row < height and 0 <= column < width:
                weights = kernels[b, p, tap * channels : (tap + 1) * channels].astype(np.float64)
                out[b, p, y, x] += weights @ features[b, row, column].astype(np.float64)
    return out


def test_every_logit_is_the_loop_over_the_taps():
    out = quick_jit(dynamic_conv_3x3)(KERNELS, FEATURES)
    assert out.shape == (2, 3, 4, 6) and out.dtype == jnp.float32
    np.testing.assert_allclose(out, plain_dynamic_conv(KERNELS, FEATURES), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (5, 2)])
def test_maps_narrower_than_the_kernel(size):
    features = RNG.normal(size=(2, *size, 5)).astype(np.float32)
    out = quick_jit(dynamic_conv_3x3)(KERNELS, features)
    np.testing.assert_allclose(out, plain_dynamic_conv(KERNELS, features), rtol=0, atol=1e-5)


def test_the_centre_tap_alone_is_the_1x1_decoding():
    kernels = np.zeros((2, 3, 3, 3, 5), np.float32)
    kernels[:, :, 1, 1] = KERNELS[..., :5]
    out = quick_jit(dynamic_conv_3x3)(kernels.reshape(2, 3, 45), FEATURES)
    expected = decode_dynamic(KERNELS[..., :5], FEATURES)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-6)


def test_the_forms_for_cpus_and_accelerators_agree_with_their_gradients():
    taps = np.moveaxis(KERNELS.reshape(2, 3, 3, 3, 5), 1, -1)
    weights = RNG.normal(size=(2, 4, 6, 3)).astype(np.float32)

    def value_and_gradients(convolve):
        def total(features, taps):
            return jnp.sum(convolve(features, taps) * weights)

        return quick_jit(jax.value_and_grad(total, (0, 1)))(FEATURES, taps)

    ours = jax.tree.leaves(value_and_gradients(_convolve_one_by_one))
    other = jax.tree.leaves(value_and_gradients(_convolve_together))
    for a, b in zip(ours, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_gradients_are_the_transposed_map():
    """The result is bilinear: moving along a direction gives the product with the gradient."""
    with jax.enable_x64(True):
        kernels, features = KERNELS.astype(np.float64), FEATURES.astype(np.float64)
        weights = RNG.normal(size=(2, 3, 4, 6))

        def total(kernels, features):
            return jnp.sum(dynamic_conv_3x3(kernels, features) * weights)

        by_kernels, by_features = quick_jit(jax.grad(total, (0, 1)))(kernels, features)
        exact = np.sum(plain_dynamic_conv(kernels, features) * weights)
        np.testing.assert_allclose(np.sum(by_kernels * kernels), exact, rtol=1e-12)
        np.testing.assert_allclose(np.sum(by_features * features), exact, rtol=1e-12)
        other = RNG.normal(size=features.shape)
        moved = np.sum(plain_dynamic_conv(kernels, other) * weights)
        np.testing.assert_allclose(np.sum(by_features * other), moved, rtol=1e-12)


def test_bfloat16_is_computed_in_float32():
    # 256 + 1 is not a bfloat16 number, so a sum kept in bfloat16 would lose every 1.
    kernels = jnp.ones((1, 1, 9), jnp.bfloat16)
    features = jnp.ones((1, 3, 3, 1), jnp.bfloat16).at[0, 0, 0, 0].set(256)
    out = dynamic_conv_3x3(kernels, features)
    assert out.dtype == jnp.float32 and float(out[0, 0, 1, 1]) == 264.0


def test_memory_stays_far_below_nine_copies_of_the_features():
    kernels = jax.ShapeDtypeStruct((1, 4, 9 * 64), jnp.float32)
    features = jax.ShapeDtypeStruct((1, 32, 32, 64), jnp.float32)
    memory = jax.jit(dynamic_conv_3x3).lower(kernels, features).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 3 * 32 * 32 * 64 * 4


def test_it_lowers_for_accelerators():
    def gradients(kernels, features):
        return jax.grad(lambda *x: jnp.sum(dynamic_conv_3x3(*x) ** 2), (0, 1))(kernels, features)

    exported = jax.export.export(jax.jit(gradients), platforms=("tpu", "cuda"))(KERNELS, FEATURES)
    assert exported.platforms == ("tpu", "cuda")
