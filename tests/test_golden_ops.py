"""Functions against the recorded values of tests/golden/matrix_nms."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.golden import load_arrays, unpack_bits

from solojax.models.layers import GroupNorm, max_pool_3x3
from solojax.ops.coords import linspace_symmetric
from solojax.ops.masks import center_of_mass, mask_area, mask_iou
from solojax.ops.nms import matrix_nms, points_nms
from solojax.ops.resize import (
    downsample_mean_2x,
    resize_bilinear,
    upsample_bilinear_2x,
    upsample_nearest_2x,
)
from solojax.targets.grid import cell_edges

NMS_CASES = (
    "random40",
    "random120_80cls",
    "identical5_same_label",
    "identical5_diff_label",
    "identical6_two_labels",
    "disjoint4",
    "single",
    "tied_scores",
    "iou_exactly_half",
    "nested4",
    "zero_area_pair",
)
NMS_KERNELS = {
    "matrix_gaussian": {"kernel": "gaussian", "sigma": 2.0},
    "matrix_gaussian_sigma0.5": {"kernel": "gaussian", "sigma": 0.5},
    "matrix_linear": {"kernel": "linear"},
}
RESIZED = (
    "bilinear_up_24x32_to_40",
    "bilinear_down_100x76_to_40",
    "bilinear_down_25x38_to_12",
    "bilinear_sf0.5_even",
    "bilinear_sf2",
    "bilinear_p6_to_p5_3x5_to_6x9",
    "bilinear_48x64_to_192x256",
    "bilinear_157x219_to_240x320",
)


def to_nhwc(x):
    return jnp.asarray(x.transpose(0, 2, 3, 1))


def to_nchw(x):
    return np.asarray(x).transpose(0, 3, 1, 2)


def nms_case(case):
    arrays = load_arrays("matrix_nms/nms.npz")
    masks = unpack_bits(arrays, f"{case}/masks_packed", f"{case}/masks_shape")
    return masks, {k.split("/")[1]: v for k, v in arrays.items() if k.startswith(f"{case}/")}


@pytest.mark.parametrize("case", NMS_CASES)
def test_mask_areas(case):
    masks, recorded = nms_case(case)
    np.testing.assert_array_equal(mask_area(jnp.asarray(masks)), recorded["sum_masks"])


@pytest.mark.parametrize("kernel", NMS_KERNELS)
@pytest.mark.parametrize("case", NMS_CASES)
def test_matrix_nms(case, kernel):
    masks, recorded = nms_case(case)
    iou = mask_iou(jnp.asarray(masks), jnp.asarray(masks))
    labels, scores = jnp.asarray(recorded["labels"]), jnp.asarray(recorded["scores"])
    valid = jnp.ones(len(masks), bool)
    decayed = np.asarray(matrix_nms(iou, labels, scores, valid, **NMS_KERNELS[kernel]))

    published = recorded[kernel]
    is_number = ~np.isnan(published)
    np.testing.assert_allclose(decayed[is_number], published[is_number], rtol=0, atol=1e-6)
    # Where the published code divides 0 by 0, NaN is below every threshold, and so is our 0. Masks
    # without a pixel, which are dropped before, overlap nothing here and keep their scores.
    wanted = recorded["scores"] if (recorded["sum_masks"] == 0).any() else np.zeros(len(masks))
    np.testing.assert_array_equal(decayed[~is_number], wanted[~is_number])


def test_nan_cases_are_the_known_ones():
    nan = {
        (case, kernel)
        for case in NMS_CASES
        for kernel in NMS_KERNELS
        if np.isnan(nms_case(case)[1][kernel]).any()
    }
    assert nan == {
        ("identical5_same_label", "matrix_linear"),
        ("identical6_two_labels", "matrix_linear"),
    } | {("zero_area_pair", kernel) for kernel in NMS_KERNELS}


def test_mask_iou_of_every_case_by_plain_counting():
    for case in NMS_CASES:
        masks, _ = nms_case(case)
        both = np.logical_and(masks[:, None], masks[None]).sum(axis=(2, 3))
        either = np.logical_or(masks[:, None], masks[None]).sum(axis=(2, 3))
        wanted = both / np.maximum(either, 1)
        ours = mask_iou(jnp.asarray(masks), jnp.asarray(masks))
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-6, err_msg=case)


@pytest.mark.parametrize("case", ["random", "ties", "constant"])
def test_points_nms(case):
    arrays = load_arrays("matrix_nms/point_nms.npz")
    ours = to_nchw(points_nms(to_nhwc(arrays[f"{case}/in"])))
    np.testing.assert_array_equal(ours, arrays[f"{case}/out"])


@pytest.mark.parametrize("case", RESIZED)
def test_bilinear_resize(case):
    arrays = load_arrays("matrix_nms/interp.npz")
    recorded = arrays[f"{case}/out"]
    ours = to_nchw(resize_bilinear(to_nhwc(arrays[f"{case}/in"]), *recorded.shape[2:]))
    np.testing.assert_allclose(ours, recorded, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", ["linear_256_to_128", "linear_2048_to_128"])
def test_linear_resize_of_one_axis(case):
    arrays = load_arrays("matrix_nms/interp.npz")
    recorded = arrays[f"{case}/out"]
    column = to_nhwc(arrays[f"{case}/in"][..., None])
    ours = to_nchw(resize_bilinear(column, recorded.shape[2], 1))[..., 0]
    np.testing.assert_allclose(ours, recorded, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("resize", "case"),
    [
        (downsample_mean_2x, "bilinear_sf0.5_even"),
        (upsample_bilinear_2x, "bilinear_sf2"),
        (upsample_nearest_2x, "nearest_sf2"),
    ],
)
def test_resizes_with_forms_of_their_own(resize, case):
    arrays = load_arrays("matrix_nms/interp.npz")
    ours = to_nchw(resize(to_nhwc(arrays[f"{case}/in"])))
    np.testing.assert_allclose(ours, arrays[f"{case}/out"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [1, 2, 5, 12, 38, 304])
def test_linspace(length):
    recorded = load_arrays("matrix_nms/interp.npz")[f"linspace_-1_1/{length}"]
    np.testing.assert_array_equal(linspace_symmetric(length), recorded)


def test_group_norm():
    arrays = {
        key.split("/")[1]: value
        for key, value in load_arrays("matrix_nms/interp.npz").items()
        if key.startswith("groupnorm32/")
    }
    params = {"scale": arrays["w"], "bias": arrays["b"]}
    ours = to_nchw(GroupNorm(32).apply({"params": params}, to_nhwc(arrays["in"])))
    np.testing.assert_allclose(ours, arrays["out"], rtol=0, atol=1e-6)


def test_max_pools():
    arrays = load_arrays("matrix_nms/interp.npz")
    x = to_nhwc(arrays["maxpool_k3s2p1/in"])
    np.testing.assert_array_equal(to_nchw(max_pool_3x3(x)), arrays["maxpool_k3s2p1/out"])
    # The pyramid's last level is a strided copy, as `FPN` makes it.
    np.testing.assert_array_equal(to_nchw(x[:, ::2, ::2]), arrays["lastlevelmaxpool_k1s2/out"])


@pytest.mark.parametrize("kind", [bool, np.uint8, np.float32])
def test_centres_of_binary_masks(kind):
    arrays = load_arrays("matrix_nms/centers.npz")
    masks = unpack_bits(arrays, "com/masks_packed", "com/masks_shape")
    recorded = arrays[f"com/{ {bool: 'bool', np.uint8: 'uint8', np.float32: 'float'}[kind] }_xy"]
    ours = center_of_mass(jnp.asarray(masks.astype(kind)))
    np.testing.assert_array_equal(ours, recorded)


def test_centres_of_soft_masks():
    """Against exact ones: the recorded float32 values are themselves 1.4e-6 off."""
    arrays = load_arrays("matrix_nms/centers.npz")
    soft = arrays["com/soft"].astype(np.float64)
    total = soft.sum(axis=(1, 2))
    x = (soft * np.arange(soft.shape[2])).sum(axis=(1, 2)) / total
    y = (soft * np.arange(soft.shape[1])[:, None]).sum(axis=(1, 2)) / total
    exact = np.stack([x, y], axis=-1)
    ours = center_of_mass(jnp.asarray(arrays["com/soft"]))
    np.testing.assert_allclose(ours, exact, rtol=1e-6, atol=0)
    np.testing.assert_allclose(arrays["com/soft_xy"], exact, rtol=1e-6, atol=0)


def test_cells_of_every_recorded_coordinate():
    arrays = load_arrays("matrix_nms/centers.npz")
    tables = {
        key: tuple(int(n) for n in key.removeprefix("grid/size").split("_g"))
        for key in arrays
        if key.startswith("grid/size") and "n_diff" not in key
    }
    total = 0
    for key, (size, side) in tables.items():
        coordinates = np.arange(0, size, 0.25, np.float32)
        ours = np.sum(coordinates[:, None] >= cell_edges(size, side), axis=-1)
        np.testing.assert_array_equal(ours, arrays[key], err_msg=key)
        total += len(ours)
    assert total == 101_120


def test_negative_coordinates_fall_into_the_first_cell():
    """The published cells are negative and cut at 0; ours start there."""
    arrays = load_arrays("matrix_nms/centers.npz")
    ours = np.sum(arrays["grid/negative_in"][:, None] >= cell_edges(256, 40), axis=-1)
    np.testing.assert_array_equal(ours, np.maximum(arrays["grid/negative_size256_g40"], 0))
