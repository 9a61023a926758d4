"""The published heads of SOLO, Decoupled SOLO (light) and SOLOv2 (mmdet v1): outputs to results.

Features and ground truth go in; maps, targets, losses, gradients and instances are compared.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small_solo as small
from helpers.compiling import precision_of
from helpers.golden import load_arrays, load_json, sampled, unpack_bits
from pycocotools import mask as coco_mask

from solojax.interop.layout import export_state
from solojax.interop.layouts import layout_named
from solojax.ops.mask_decoding import count_cells, mask_logits
from solojax.ops.masks import unpack_masks
from solojax.postprocess.detections import DetectionSettings, detect
from solojax.postprocess.rescale import encode_rle, resize_masks
from solojax.targets.pairs import group_pairs
from solojax.tasks.instance_segmentation import packed_masks

OUTPUTS, LOSSES, SCORES, LEAST_IOU = 1e-5, 1e-5, 1e-4, 0.995
SOLO, DECOUPLED, LIGHT, SOLOV2 = (
    "SOLOHead",
    "DecoupledSOLOHead",
    "DecoupledSOLOLightHead",
    "SOLOv2Head",
)
each_head = pytest.mark.parametrize("name", small.HEADS)
each_level = pytest.mark.parametrize("level", range(5))
# Compiling the backward pass takes most of the time; one precision each day for each head.
GRADIENTS = [
    pytest.param(SOLO, "float64"),
    pytest.param(DECOUPLED, "float64", marks=pytest.mark.slow),
    pytest.param(LIGHT, "float32", marks=pytest.mark.slow),
    pytest.param("SOLOHead_down1", "float32", marks=pytest.mark.slow),
    *(
        pytest.param(name, precision, marks=pytest.mark.slow)
        for name, precision in (
            (SOLO, "float32"),
            (DECOUPLED, "float32"),
            (LIGHT, "float64"),
            (SOLOV2, "float32"),
            (SOLOV2, "float64"),
            ("SOLOHead_down1", "float64"),
        )
    ),
]


def recorded(name):
    return load_arrays(f"solo_mmdet/{name}.npz")


@functools.cache
def outputs(name):
    return jax.jit(small.build_task(name).forward)(small.variables(name), small.training_batch())


@functools.cache
def targets(name):
    return jax.device_get(small.build_task(name).targets(small.training_batch()))


def assert_close(arrays, key, ours):
    wanted, found = sampled(arrays, key, np.asarray(ours))
    assert np.abs(found - wanted).max() <= OUTPUTS * np.abs(ours).max()


@each_head
@each_level
def test_category_logits(name, level):
    start, side = small.GRID.level_offsets[level], small.GRID.num_grids[level]
    cells = np.asarray(outputs(name).category_logits)[:, start : start + side * side]
    ours = cells.reshape(2, side, side, -1).transpose(0, 3, 1, 2)
    assert_close(recorded(name), f"train/cate_pred_L{level}", ours)


@each_level
@pytest.mark.parametrize("name", [SOLO, "SOLOHead_down1"])
def test_every_mask_of_solo(name, level):
    masks = outputs(name).masks[level]
    cells = jnp.tile(jnp.arange(count_cells(masks)), (2, 1))
    assert_close(recorded(name), f"train/ins_pred_L{level}", mask_logits(masks, cells))


@each_level
@pytest.mark.parametrize("name", [DECOUPLED, LIGHT])
def test_maps_of_decoupled_solo(name, level):
    masks = outputs(name).masks[level]
    for axis in ("x", "y"):
        maps = np.asarray(getattr(masks, axis)).transpose(0, 3, 1, 2)
        assert_close(recorded(name), f"train/ins_pred_{axis}_L{level}", maps)


@each_level
def test_kernels_of_solov2(level):
    (masks,) = outputs(SOLOV2).masks
    start, side = small.GRID.level_offsets[level], small.GRID.num_grids[level]
    kernels = np.asarray(masks.kernels)[:, start : start + side * side]
    ours = kernels.reshape(2, side, side, -1).transpose(0, 3, 1, 2)
    assert_close(recorded(SOLOV2), f"train/kernel_pred_L{level}", ours)


@each_head
@each_level
@pytest.mark.parametrize("image", range(2))
def test_categories_of_the_cells(name, level, image):
    start, side = small.GRID.level_offsets[level], small.GRID.num_grids[level]
    ours = targets(name).category[image, start : start + side * side].reshape(side, side)
    wanted = recorded(name)[f"target/img{image}/L{level}/cate_label"]
    np.testing.assert_array_equal(np.where(ours == small.NUM_CLASSES, 0, ours + 1), wanted)


def recorded_cells(name, image, level):
    """Flat indices of the level's positive cells, in the order of their target masks."""
    arrays, prefix = recorded(name), f"target/img{image}/L{level}/"
    if f"{prefix}grid_order" in arrays:
        return arrays[f"{prefix}grid_order"]
    if f"{prefix}ins_ind_yx" in arrays:
        rows, columns = arrays[f"{prefix}ins_ind_yx"].T
        return rows * small.GRID.num_grids[level] + columns
    return arrays[f"{prefix}ins_ind_label"]


@each_head
@each_level
def test_cells_and_masks_that_are_learned(name, level):
    batch, one_mask = small.training_batch(), name != SOLOV2
    start, side = small.GRID.level_offsets[level], small.GRID.num_grids[level]
    limit = side * side if one_mask else 128
    pairs = jax.device_get(group_pairs(targets(name), start, side * side, limit))
    for image in range(2):
        arrays, prefix = recorded(name), f"target/img{image}/L{level}/ins_label"
        wanted = unpack_bits(arrays, f"{prefix}_packed", f"{prefix}_shape")
        truth = packed_masks(batch.instances, small.CANVAS[0], wanted.shape[1])[image]
        truth = np.asarray(unpack_masks(truth, wanted.shape[2]))
        kept = pairs.valid[image]
        cells, instances = pairs.cells[image, kept], pairs.instances[image, kept]
        if one_mask:  # recorded by cell; ours by object
            order = np.argsort(cells)
            cells, instances = cells[order], instances[order]
        np.testing.assert_array_equal(cells, recorded_cells(name, image, level))
        np.testing.assert_array_equal(truth[instances], wanted)


@functools.cache
def loss_and_gradients(name, precision):
    """Recorded arrays, our metrics, our gradients by the recorded names and of the features."""
    double = precision == "float64"
    with precision_of(precision):
        task, batch = small.build_task(name, jnp.dtype(precision)), small.training_batch()
        params = jax.tree.map(lambda x: jnp.asarray(x, precision), small.variables(name)["params"])
        weights = task.row_weights(batch)
        state = SimpleNamespace(batch_stats={})

        def loss_fn(params):
            return task.loss_fn(params, state, batch, jax.random.key(0), weights)

        (_, (_, metrics)), gradients = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params)
        metrics = {name: float(value) for name, value in metrics.items()}
        gradients = jax.tree.map(np.asarray, gradients)
    features = [gradients.pop(f"feat_L{i}").transpose(0, 3, 1, 2) for i in range(5)]
    exported = export_state(layout_named(small.LAYOUTS[name]), {"params": gradients})
    arrays = load_arrays(f"solo_mmdet/{name}{'_f64' if double else ''}.npz")
    return arrays, metrics, exported, features


def check_gradient(ours, wanted, allowed, element):
    assert np.linalg.norm(ours - wanted) <= allowed * np.linalg.norm(wanted)
    assert np.abs(ours - wanted).max() <= element * np.abs(wanted).max()


@pytest.mark.parametrize(("name", "precision"), GRADIENTS)
def test_losses(name, precision):
    arrays, metrics, *_ = loss_and_gradients(name, precision)
    relative = LOSSES if precision == "float32" else 1e-6
    np.testing.assert_allclose(metrics["loss/mask"], arrays["loss_ins"], rtol=relative)
    np.testing.assert_allclose(metrics["loss/category"], arrays["loss_cate"], rtol=relative)


@pytest.mark.parametrize(("name", "precision"), GRADIENTS)
def test_gradients(name, precision):
    arrays, _, gradients, features = loss_and_gradients(name, precision)
    double = precision == "float64"
    allowed, element = (1e-6, 1e-6) if double else (2e-3, 3e-3)
    for index, parameter in enumerate(arrays["grad_table/names"]):
        ours = gradients[str(parameter)].astype(np.float64)
        norm = arrays["grad_table/l2"][index]
        assert abs(np.linalg.norm(ours) - norm) <= allowed * norm, parameter
    names = {key.split("/")[1] for key in arrays if key.startswith("grad/")}
    assert names
    for parameter in names:
        wanted, ours = sampled(arrays, f"grad/{parameter}", gradients[parameter])
        check_gradient(ours, wanted, allowed, element)
    for level in range(5):
        wanted, ours = sampled(arrays, f"grad_feat_L{level}", features[level])
        largest = np.abs(features[level]).max()
        assert np.abs(ours - wanted).max() <= (1e-6 if double else 2e-2) * largest


@each_head
@pytest.mark.parametrize("kernel", ["gaussian", pytest.param("linear", marks=pytest.mark.slow)])
def test_instances(name, kernel):
    settings = DetectionSettings(nms_kernel=kernel)
    found = jax.jit(functools.partial(detect, grid=small.GRID, settings=settings))(outputs(name))
    found = jax.tree.map(np.asarray, found)
    batch = small.training_batch()
    for image in range(2):
        prefix = f"seg_{kernel}/img{image}/"
        scores, labels = (recorded(name)[prefix + key] for key in ("scores", "labels"))
        valid = found.valid[image]
        assert valid.sum() == len(scores)
        np.testing.assert_allclose(found.scores[image, valid], scores, rtol=0, atol=SCORES)
        np.testing.assert_array_equal(found.labels[image, valid], labels)
        masks = resize_masks(
            found.masks[image, valid], batch.image_size[image], batch.original_size[image]
        )
        published = load_json(f"solo_mmdet/{name}_seg.json")[kernel][image]["masks"]
        for ours, theirs in zip(masks, published, strict=True):
            if coco_mask.area(theirs) or ours.any():
                assert coco_mask.iou([encode_rle(ours)], [theirs], [0])[0, 0] >= LEAST_IOU
