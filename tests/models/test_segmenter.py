"""solojax.models.segmenter: the whole network recomputed in float64, and its types."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from helpers import plain_network
from helpers.outputs import kernels_of, mask_features_of
from helpers.tiny import quick_jit, random_variables

from solojax.models.fpn import FPN
from solojax.models.mask_feature_head import MaskFeatureHead
from solojax.models.resnet import ResNet
from solojax.models.segmenter import Segmenter
from solojax.models.solov2_head import SOLOv2Head

NUM_GRIDS = (8, 6, 5, 4, 3)


def make_segmenter(dtype=None):
    return Segmenter(
        backbone=ResNet(18, width=8, dtype=dtype),
        neck=FPN(32, dtype=dtype),
        head=SOLOv2Head(3, NUM_GRIDS, 1, channels=32, kernel_channels=32, dtype=dtype),
        mask_features=MaskFeatureHead(32, 32, dtype=dtype),
    )


def test_the_whole_network_in_float64():
    image = np.random.default_rng(0).normal(size=(2, 64, 96, 3))
    with jax.enable_x64(True):
        model = make_segmenter()
        variables = random_variables(model, image, dtype=np.float64)
        assert set(variables["params"]) == {"backbone", "neck", "head", "mask_features"}
        outputs = quick_jit(model.apply)(variables, image)

        part = plain_network.part
        features = plain_network.resnet18(part(variables, "backbone"), image)
        pyramid = plain_network.fpn(part(variables, "neck"), features, 5)
        levels = plain_network.head_levels(pyramid)
        expected = {
            "mask_features": plain_network.mask_features(
                part(variables, "mask_features"), pyramid[:4]
            )
        }
        expected["category_logits"], expected["kernels"] = plain_network.solov2_head(
            part(variables, "head"), levels, NUM_GRIDS, 1
        )
        read = {
            "category_logits": lambda x: x.category_logits,
            "kernels": kernels_of,
            "mask_features": mask_features_of,
        }
        for name, plain in expected.items():
            ours = read[name](outputs)
            assert ours.dtype == jnp.float64
            np.testing.assert_allclose(ours, plain, rtol=0, atol=1e-10 * np.abs(plain).max())


def test_shapes_and_types_under_bfloat16():
    image = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.bfloat16)
    model = make_segmenter(jnp.bfloat16)
    outputs, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    cells = 64 + 36 + 25 + 16 + 9
    assert outputs.category_logits.shape == (2, cells, 3)
    assert kernels_of(outputs).shape == (2, cells, 32)
    assert mask_features_of(outputs).shape == (2, 16, 24, 32)
    assert outputs.category_logits.dtype == kernels_of(outputs).dtype == jnp.float32
    assert mask_features_of(outputs).dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
