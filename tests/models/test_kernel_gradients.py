"""What devices add up is float32 where the network computes in bfloat16."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny import quick_jit

from solojax.models.convolution import Conv, Linear
from solojax.models.deform_conv import DeformConv

RNG = np.random.default_rng(0)
LAYERS = {
    "3x3": Conv(8, dtype=jnp.bfloat16),
    "1x1": Conv(8, 1, dtype=jnp.bfloat16),
    "groups": Conv(8, groups=2, dtype=jnp.bfloat16),
    "deformable": DeformConv(8, dtype=jnp.bfloat16),
    "deformable groups": DeformConv(8, groups=2, modulated=True, dtype=jnp.bfloat16),
    "linear": Linear(8, dtype=jnp.bfloat16),
}


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_parameters_are_sums_in_float32(name):
    """Those of a float32 layer whose inputs, and whose output's gradient, are round numbers."""
    layer = LAYERS[name]
    shape = (64, 16) if name == "linear" else (2, 9, 11, 16)
    x = jnp.asarray(RNG.integers(-8, 9, shape), jnp.float32)
    variables = layer.init(jax.random.key(0), x)
    weight = RNG.integers(-8, 9, layer.apply(variables, x).shape).astype(np.float32)

    def gradient(layer, x):
        def loss(params):
            return jnp.sum(layer.apply({"params": params}, x).astype(jnp.float32) * weight)

        return quick_jit(jax.grad(loss))(variables["params"])

    ours = gradient(layer, x.astype(jnp.bfloat16))
    exact = gradient(layer.clone(dtype=jnp.float32), x)
    for part in ("kernel", "bias"):
        assert ours[part].dtype == jnp.float32
        np.testing.assert_array_equal(ours[part], exact[part])
    assert np.any(ours["kernel"] != ours["kernel"].astype(jnp.bfloat16))
