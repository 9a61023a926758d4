"""solojax.models.mask_feature_head against a float64 recomputation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from helpers import plain_network
from helpers.tiny import quick_jit, random_variables

from solojax.models.mask_feature_head import MaskFeatureHead

RNG = np.random.default_rng(0)
PYRAMID = [RNG.normal(size=(2, 16 >> i, 24 >> i, 5)) for i in range(4)]


def test_the_pyramid_merges_at_the_first_levels_size_in_float64():
    with jax.enable_x64(True):
        head = MaskFeatureHead(channels=32, out_channels=64)
        variables = random_variables(head, PYRAMID, dtype=np.float64)
        (out,) = quick_jit(head.apply)(variables, PYRAMID)
        expected = plain_network.mask_features(variables, PYRAMID)
        assert out.shape == expected.shape == (2, 16, 24, 64)
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-10 * expected.max())


def test_blocks_per_level_and_coordinates_at_the_coarsest_alone():
    pyramid = [jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) for x in PYRAMID]
    head = MaskFeatureHead(channels=32, out_channels=64, dtype=jnp.bfloat16)
    (out,), variables = jax.eval_shape(head.init_with_output, jax.random.key(0), pyramid)
    assert out.dtype == jnp.bfloat16
    inputs = {name: p["conv"]["kernel"].shape[2] for name, p in variables["params"].items()}
    assert inputs == {
        "level0_conv0": 5,
        "level1_conv0": 5,
        "level2_conv0": 5,
        "level2_conv1": 32,
        "level3_conv0": 5 + 2,
        "level3_conv1": 32,
        "level3_conv2": 32,
        "pred": 32,
    }
