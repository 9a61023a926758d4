"""solojax.ops.vectors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from solojax.ops.vectors import l2_normalize


def test_vectors_get_length_one_and_zero_stays():
    x = np.array([[3.0, 4.0], [0.0, 0.0], [0.0, -2.0]], np.float32)
    np.testing.assert_allclose(l2_normalize(x), [[0.6, 0.8], [0, 0], [0, -1]], rtol=1e-6)
    gradient = jax.grad(lambda x: jnp.sum(l2_normalize(x)))(x)
    assert np.all(np.isfinite(gradient))
    # Along a vector nothing changes.
    assert abs(gradient[0] @ x[0]) < 1e-6


def test_half_precision_is_normalised_in_float32():
    out = l2_normalize(jnp.full((1, 300), 200.0, jnp.float16))  # the squares overflow float16
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(jnp.sum(out**2), 1.0, rtol=1e-5)
