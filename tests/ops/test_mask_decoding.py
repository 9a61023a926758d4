"""solojax.ops.mask_decoding: one dot product per pixel."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.plain_layers import sigmoid

from solojax.errors import InputError
from solojax.ops.mask_decoding import (
    count_cells,
    decode_dynamic,
    map_size,
    mask_logits,
    mask_probabilities,
)
from solojax.ops.resize import bilinear_weights
from solojax.structures import DecoupledMasks, DirectMasks, DynamicMasks

RNG = np.random.default_rng(0)


def test_every_logit_is_the_dot_product_of_a_kernel_and_a_pixel():
    kernels = RNG.normal(size=(2, 3, 5)).astype(np.float32)
    features = RNG.normal(size=(2, 4, 6, 5)).astype(np.float32)
    out = np.asarray(decode_dynamic(kernels, features))
    assert out.shape == (2, 3, 4, 6) and out.dtype == np.float32
    for b in range(2):
        for p in range(3):
            for y in range(4):
                for x in range(6):
                    exact = sum(
                        float(k) * float(f)
                        for k, f in zip(kernels[b, p], features[b, y, x], strict=True)
                    )
                    assert abs(out[b, p, y, x] - exact) < 2e-6


def test_bfloat16_features_accumulate_in_float32():
    # 256 + 1 is not a bfloat16 number, so a sum kept in bfloat16 would lose every 1.
    kernels = jnp.ones((1, 1, 9), jnp.bfloat16)
    features = jnp.ones((1, 1, 1, 9), jnp.bfloat16).at[..., 0].set(256)
    out = decode_dynamic(kernels, features)
    assert out.dtype == jnp.float32
    assert float(out[0, 0, 0, 0]) == 264.0


SIDE, CELLS = 3, np.array([[4, 0, 8, 4], [7, 7, 2, 1]], np.int32)


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def resized(maps, height, width):
    """Bilinear resize of (..., h, w) as two matrix products, in float64."""
    rows = bilinear_weights(height, maps.shape[-2], np.float64)
    columns = bilinear_weights(width, maps.shape[-1], np.float64)
    return rows @ maps.astype(np.float64) @ columns.T


def test_direct_masks_are_channels_of_a_1x1_convolution():
    masks = DirectMasks(draw(2, 4, 6, 5), draw(5, SIDE * SIDE), draw(SIDE * SIDE))
    assert (count_cells(masks), map_size(masks)) == (9, (4, 6))
    channels = masks.features.astype(np.float64) @ masks.kernel + masks.bias
    logits = mask_logits(masks, CELLS)
    for b, p in np.ndindex(CELLS.shape):
        np.testing.assert_allclose(logits[b, p], channels[b, ..., CELLS[b, p]], atol=1e-5)
    found = mask_probabilities(masks, CELLS, (8, 7))
    expected = resized(sigmoid(np.asarray(logits, np.float64)), 8, 7)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_decoupled_masks_are_products_of_a_column_and_a_row_map():
    masks = DecoupledMasks(x=draw(2, 4, 6, SIDE), y=draw(2, 4, 6, SIDE))
    assert (count_cells(masks), map_size(masks)) == (9, (4, 6))
    for size in (None, (8, 12), (5, 6)):
        found = mask_probabilities(masks, CELLS, size)
        for b, p in np.ndindex(CELLS.shape):
            row, column = divmod(int(CELLS[b, p]), SIDE)
            x, y = sigmoid(masks.x[b, ..., column]), sigmoid(masks.y[b, ..., row])
            if size is not None:
                x, y = resized(x, *size), resized(y, *size)
            np.testing.assert_allclose(found[b, p], x * y, rtol=0, atol=1e-6)


def test_decoupled_masks_have_no_logits():
    masks = DecoupledMasks(x=draw(2, 4, 6, SIDE), y=draw(2, 4, 6, SIDE))
    with pytest.raises(InputError, match="dice"):
        mask_logits(masks, CELLS)


@pytest.mark.parametrize("taps", [1, 9])
def test_dynamic_masks_are_convolutions_with_their_cells_kernel(taps):
    masks = DynamicMasks(kernels=draw(2, 9, taps * 5), features=draw(2, 4, 6, 5))
    logits = np.asarray(mask_logits(masks, CELLS))
    side = 3 if taps == 9 else 1
    for b, p in np.ndindex(CELLS.shape):
        kernel = masks.kernels[b, CELLS[b, p]].reshape(side, side, 5, 1)
        expected = jax.lax.conv_general_dilated(
            masks.features[b : b + 1], kernel, (1, 1), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        np.testing.assert_allclose(logits[b, p], expected[0, ..., 0], rtol=0, atol=1e-5)


def test_gradients_reach_the_cells_that_were_asked_for_alone():
    masks = DirectMasks(draw(1, 4, 6, 5), draw(5, SIDE * SIDE), draw(SIDE * SIDE))
    asked = np.array([[1, 5]], np.int32)
    gradient = jax.grad(lambda m: jnp.sum(mask_probabilities(m, asked) ** 2))(masks)
    reached = np.abs(gradient.kernel).max(axis=0) > 0
    np.testing.assert_array_equal(np.nonzero(reached)[0], asked[0])
    np.testing.assert_array_equal(np.nonzero(np.asarray(gradient.bias))[0], asked[0])
