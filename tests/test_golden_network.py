"""The whole SOLOv2 network with imported weights, layer by layer, against recorded features."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from helpers import small_solov2 as small
from helpers.golden import load_arrays, sampled
from helpers.outputs import kernels_of, mask_features_of

from solojax.ops.images import normalize_image

TOLERANCE = 1e-4  # of the recorded array's largest value
FEATURES = (
    *(f"res{i}" for i in range(2, 6)),
    *(f"p{i}" for i in range(2, 7)),
    *(f"split{i}" for i in range(5)),
)


@functools.cache
def features():
    task = small.build_task()
    batch = small.make_batch(small.recorded_images())

    def run(variables, batch):
        image = normalize_image(batch.image, batch.image_size, task.pixel_mean, task.pixel_std)
        return small.all_features(task.model, variables, image)

    return jax.tree.map(np.asarray, jax.jit(run)(small.variables(), batch))


@functools.cache
def outputs():
    batch = small.make_batch(small.recorded_images())
    return jax.tree.map(np.asarray, small.jitted_forward()(small.variables(), batch))


def assert_close(recorded, ours):
    assert recorded.shape == ours.shape
    assert np.abs(recorded - ours).max() <= TOLERANCE * np.abs(recorded).max()


def test_normalised_batch_is_exact():
    recorded, ours = sampled(
        load_arrays("solov2_adet/small_features.npz"),
        "batch",
        features()["batch"].transpose(0, 3, 1, 2),
    )
    np.testing.assert_array_equal(ours, recorded)


@pytest.mark.parametrize("name", FEATURES)
def test_features(name):
    arrays = load_arrays("solov2_adet/small_features.npz")
    full = features()[name].transpose(0, 3, 1, 2)
    assert_close(*sampled(arrays, name, full))
    _, norm, low, high = arrays[f"{name}/stats"]
    ours = np.array([np.linalg.norm(full.astype(np.float64)), full.min(), full.max()])
    np.testing.assert_allclose(ours, [norm, low, high], rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("level", range(5))
@pytest.mark.parametrize(
    ("name", "read"),
    [("cate_pred", lambda outputs: outputs.category_logits), ("kernel_pred", kernels_of)],
)
def test_heads(name, read, level):
    start, side = small.GRID.level_offsets[level], small.GRID.num_grids[level]
    cells = read(outputs())[:, start : start + side * side]
    ours = cells.reshape(2, side, side, -1).transpose(0, 3, 1, 2)
    assert_close(load_arrays("solov2_adet/small_heads.npz")[f"{name}_L{level}"], ours)


def test_mask_features():
    ours = mask_features_of(outputs()).transpose(0, 3, 1, 2)
    assert_close(load_arrays("solov2_adet/small_heads.npz")["mask_feat"], ours)
    assert ours.min() == 0
