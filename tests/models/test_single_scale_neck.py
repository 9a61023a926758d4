"""solojax.models.single_scale_neck against a float64 recomputation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.plain_layers import bilinear, conv2d
from helpers.tiny import quick_jit, random_variables

from solojax.models.single_scale_neck import SingleScaleNeck

RNG = np.random.default_rng(0)
SIZES = ((16, 24, 3), (8, 12, 5), (4, 6, 7), (2, 3, 9))
FEATURES = [RNG.normal(size=(2, *size)) for size in SIZES]


def plain_neck(params, features):
    """Laterals, resized and summed, then 3x3."""

    def conv(name, x):
        return conv2d(x, params[name]["kernel"], bias=params[name]["bias"])

    height, width = features[1].shape[1:3]
    merged = conv("lateral_0", features[1])
    for i in (1, 2):
        merged = merged + bilinear(conv(f"lateral_{i}", features[i + 1]), height, width)
    return conv("output", merged)


def test_it_is_laterals_resized_summed_and_convolved():
    with jax.enable_x64(True):
        neck = SingleScaleNeck(channels=6)
        variables = random_variables(neck, FEATURES, dtype=np.float64)
        outputs = quick_jit(neck.apply)(variables, FEATURES)
        assert isinstance(outputs, tuple) and len(outputs) == 1
        expected = plain_neck(variables["params"], FEATURES)
        assert expected.shape == (2, 8, 12, 6)
        np.testing.assert_allclose(
            outputs[0], expected, rtol=0, atol=1e-12 * np.abs(expected).max()
        )


@pytest.mark.parametrize("level", range(4))
def test_c3_to_c5_reach_the_output_and_c2_does_not(level):
    with jax.enable_x64(True):
        neck = SingleScaleNeck(channels=4)
        variables = random_variables(neck, FEATURES, dtype=np.float64)
        moved = [x + (i == level) for i, x in enumerate(FEATURES)]
        (before,), (after,) = (quick_jit(neck.apply)(variables, x) for x in (FEATURES, moved))
        assert np.all(np.asarray(before) != np.asarray(after)) == (level > 0)


def test_odd_sizes_and_the_compute_type():
    features = [
        jax.ShapeDtypeStruct((2, *size, 8), jnp.float32)
        for size in ((50, 75), (25, 38), (13, 19), (7, 10))
    ]
    neck = SingleScaleNeck(8, dtype=jnp.bfloat16)
    (output,), variables = jax.eval_shape(neck.init_with_output, jax.random.key(0), features)
    assert output.shape == (2, 25, 38, 8) and output.dtype == jnp.bfloat16
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(variables))
    assert sorted(variables["params"]) == ["lateral_0", "lateral_1", "lateral_2", "output"]
