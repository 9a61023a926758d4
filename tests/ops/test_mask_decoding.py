"""solojax.ops.mask_decoding: one dot product per pixel."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from solojax.ops.mask_decoding import decode_dynamic, gather_cells

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


def test_gathering_takes_each_images_own_cells_repeats_too():
    values = RNG.normal(size=(2, 10, 3)).astype(np.float32)
    cells = np.array([[9, 0, 9, 4], [1, 1, 1, 2]], np.int32)
    out = np.asarray(gather_cells(values, cells))
    for b in range(2):
        for p in range(4):
            np.testing.assert_array_equal(out[b, p], values[b, cells[b, p]])
