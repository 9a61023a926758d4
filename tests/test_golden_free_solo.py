"""FreeSOLO against recorded values of the published training and inference."""

from __future__ import annotations

import contextlib
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from helpers import small_free_solo as small
from helpers.edge_terms import edge_terms
from helpers.golden import load_arrays, load_json, sampled, seeded_state, unpack_bits
from pycocotools import mask as coco_mask

from solojax.interop.adelaidet import FREESOLO
from solojax.interop.layout import export_state, import_state
from solojax.losses.weak_supervision import projection_loss
from solojax.ops.lab_color import rgb_to_lab
from solojax.ops.neighbors import (
    color_similarity,
    colored_pixels,
    image_color_similarity,
    shrink_colors,
    unfold_neighbors,
)
from solojax.postprocess.detections import DetectionSettings, detect
from solojax.postprocess.rescale import encode_rle, resize_masks
from solojax.targets.pairs import group_pairs

RETURNED = {
    "max_projection": "loss_ins_max",
    "mean_projection": "loss_ins",
    "pairwise": "loss_pairwise",
    "category": "loss_cate",
}
LEVELS = range(small.GRID.num_levels)
each_image = pytest.mark.parametrize("image", range(2))


def recorded(name="train"):
    return load_arrays(f"freesolo/{name}.npz")


@functools.cache
def outputs():
    """What the network says of both images; its norms are frozen, so training sees the same."""
    run = jax.jit(small.build_task().forward)
    return jax.device_get(run(small.variables(), small.training_batch()))


@functools.cache
def compiled_terms():
    task = small.build_task()

    def terms(network, batch):
        targets, weights = task.targets(batch), task.row_weights(batch)
        state = SimpleNamespace(step=small.STEPS_DONE)
        return task.loss_terms(network, targets, batch, weights, state)

    return jax.jit(terms)


def terms_of(batch):
    found = compiled_terms()(outputs(), batch)
    return {name.removeprefix("loss/"): float(value) for name, value in found.items()}


@pytest.mark.parametrize("dilation", [1, 2])
def test_pairwise_terms_and_their_gradient(dilation):
    arrays, key = recorded("functions"), f"pairwise/size3_dil{dilation}"
    logits = arrays["pairwise/logits"][:, 0]
    terms = jax.jit(functools.partial(edge_terms, dilation=dilation))
    np.testing.assert_allclose(terms(logits), arrays[key], rtol=0, atol=1e-6)
    gradient = jax.grad(lambda x: jnp.sum(terms(x)))(logits)
    wanted = arrays[f"{key}_grad_of_sum"][:, 0]
    assert np.linalg.norm(gradient - wanted) <= 1e-6 * np.linalg.norm(wanted)


def test_functions():
    arrays = recorded("functions")
    neighbors = unfold_neighbors(arrays["pairwise/logits"], dilation=2)
    np.testing.assert_array_equal(neighbors, arrays["unfold_wo_center/size3_dil2"])
    for dilation in (1, 2):
        similarity = color_similarity(
            arrays["color/lab"].transpose(0, 2, 3, 1), arrays["color/mask"] > 0, dilation=dilation
        )
        wanted = arrays[f"color/sim_size3_dil{dilation}"]
        np.testing.assert_allclose(similarity, wanted, rtol=0, atol=1e-6)
    lab = rgb_to_lab(arrays["rgb2lab/rgb_u8"])
    np.testing.assert_allclose(lab, arrays["rgb2lab/lab_f64"], rtol=0, atol=3e-5)
    x, target = (arrays[f"dice_coefficient/{name}"].reshape(4, 42) for name in ("x", "target"))
    nothing = np.zeros((4, 1), np.float32)  # has a Dice loss of 1
    dice = projection_loss((x, nothing), (target, nothing)) - 1.0
    np.testing.assert_allclose(dice, arrays["dice_coefficient/loss"], rtol=0, atol=1e-6)


@each_image
def test_colours(image):
    batch, arrays, key = small.training_batch(), recorded(), f"color/img{image}"
    shrunk = shrink_colors(batch.image)
    exact = arrays["color/downsampled_rgb"].transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(shrunk, np.floor(exact))
    lab = np.asarray(rgb_to_lab(shrunk))[image].transpose(2, 0, 1)
    np.testing.assert_allclose(lab, arrays[f"{key}/lab"][0], rtol=0, atol=5e-5)
    valid = colored_pixels(*small.CANVAS, batch.image_size, batch.original_size, 10)
    np.testing.assert_array_equal(valid[image], arrays[f"{key}/mask"] > 0)
    similarity = image_color_similarity(batch.image, batch.image_size, batch.original_size)
    wanted, ours = sampled(arrays, f"{key}/similarity", np.asarray(similarity[image])[None])
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-5)
    assert np.sum(similarity[image] >= 0.3) == arrays[f"{key}/n_ge_0.3"]


@each_image
def test_targets(image):
    task, batch, arrays = small.build_task(), small.training_batch(), recorded()
    targets = jax.device_get(task.targets(batch))
    embeddings = batch.instances.embeddings[image]
    for level, start, count in zip(
        LEVELS, small.GRID.level_offsets, small.GRID.cells_per_level, strict=True
    ):
        key, side = f"target/img{image}/L{level}", small.GRID.num_grids[level]
        cells = slice(start, start + count)
        np.testing.assert_array_equal(
            targets.category[image, cells].reshape(side, side), arrays[f"{key}/cate_label"]
        )
        pairs = jax.device_get(group_pairs(targets, start, count, task.max_positives))
        used = pairs.valid[image]
        np.testing.assert_array_equal(pairs.cells[image, used], arrays[f"{key}/grid_order"])
        masks = batch.instances.masks[image, pairs.instances[image, used]]
        wanted = unpack_bits(arrays, f"{key}/ins_label_packed", f"{key}/ins_label_shape")
        np.testing.assert_array_equal(np.unpackbits(masks, axis=-1).astype(bool), wanted)
        owner = targets.owner[image, cells]
        sums = np.where(owner >= 0, embeddings[np.maximum(owner, 0)].sum(axis=1), 0.0)
        np.testing.assert_allclose(
            sums.reshape(side, side), arrays[f"{key}/emb_label_sum"], rtol=1e-5, atol=1e-5
        )


def test_losses():
    """The semantic one too, which the published training computes and throws away."""
    found, arrays = terms_of(small.training_batch()), recorded()
    wanted = {name: arrays[f"returned/{key}"] for name, key in RETURNED.items()}
    wanted["semantic"] = arrays["computed_but_not_returned/loss_emb"]
    assert arrays["returned/loss_emb"] == 0
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


def test_weights_of_rows():
    """Their denominators: pairs and edges of the levels, positive cells."""
    weights = jax.device_get(small.build_task().row_weights(small.training_batch()))
    arrays = recorded()
    edges = np.array([arrays[f"pairwise/L{level}/weight_sum"] for level in LEVELS])
    pairs = np.array([len(arrays[f"dice/L{level}/max_over_rows"]) for level in LEVELS])
    np.testing.assert_array_equal(arrays["levels_with_positives"], LEVELS)
    for row in range(2):
        np.testing.assert_allclose(weights["pairwise"][row], 1 / edges / 5, rtol=1e-6)
        np.testing.assert_allclose(weights["mask"][row], 1 / pairs / 5, rtol=1e-6)
        np.testing.assert_allclose(weights["category"][row], 1 / (arrays["num_ins_pos_cells"] + 1))
        np.testing.assert_allclose(weights["semantic"][row], 1 / arrays["num_ins_pos_cells"])


def test_images_without_labels():
    """Where the published code stops, ours leaves the images out of the losses on masks."""
    wanted = load_json("freesolo/degenerate_cases.json")["both_empty"]
    found = terms_of(small.training_batch(without=(0, 1)))
    np.testing.assert_allclose(found.pop("category"), wanted["loss_cate"], rtol=1e-5)
    assert set(found.values()) == {0.0}
    for empty in range(2):
        assert all(0 < value < 10 for value in terms_of(small.training_batch((empty,))).values())


@functools.cache
def loss_and_gradients(precision):
    """Metrics and gradients by the recorded names, of the published losses."""
    double = precision == "float64"
    with jax.enable_x64(True) if double else contextlib.nullcontext():
        task = small.build_task(jnp.dtype(precision), semantics="release")
        variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, precision), small.variables())

        def loss_fn(params, batch_stats, batch):
            state = SimpleNamespace(batch_stats=batch_stats, step=small.STEPS_DONE)
            weights = task.row_weights(batch)
            return task.loss_fn(params, state, batch, jax.random.key(0), weights)

        step = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
        (_, (_, metrics)), gradients = step(
            variables["params"], variables["batch_stats"], small.training_batch()
        )
        metrics = {name: float(value) for name, value in metrics.items()}
        gradients = export_state(FREESOLO, {"params": jax.tree.map(np.asarray, gradients)})
    return metrics, gradients


PRECISIONS = [
    pytest.param("float64", 1e-6, marks=pytest.mark.slow),
    pytest.param("float32", 1e-3, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("precision", "tolerance"), PRECISIONS)
def test_training(precision, tolerance):
    """Losses within 1e-5 or 1e-6, the gradient of every trained parameter within the tolerance."""
    metrics, gradients = loss_and_gradients(precision)
    arrays = recorded("train_f64" if precision == "float64" else "train")
    for name, key in RETURNED.items():
        np.testing.assert_allclose(
            metrics[f"loss/{name}"], arrays[f"returned/{key}"], rtol=min(tolerance, 1e-5)
        )
    table = (arrays[f"grad_table/{name}"] for name in ("names", "l2", "sum", "absmax"))
    for name, norm, total, largest in zip(*table, strict=True):
        ours = gradients[str(name)].astype(np.float64)
        assert abs(np.linalg.norm(ours) - norm) <= tolerance * norm, name
        assert abs(ours.sum() - total) <= tolerance * norm * np.sqrt(ours.size), name
        assert abs(np.abs(ours).max() - largest) <= 3 * tolerance * largest, name
    for key in arrays:
        if key.startswith("grad/") and key.endswith("/shape"):
            name = key.removeprefix("grad/").removesuffix("/shape")
            wanted, ours = sampled(arrays, f"grad/{name}", gradients[name])
            assert np.linalg.norm(ours - wanted) <= tolerance * np.linalg.norm(wanted), name


def test_the_published_parameters_train():
    task = small.build_task()
    leaves = traverse_util.flatten_dict(small.variables()["params"])
    trained = {path: leaf for path, leaf in leaves.items() if task.is_trainable(path)}
    names = export_state(FREESOLO, {"params": traverse_util.unflatten_dict(trained)}).keys()
    table = {str(name) for name in recorded()["grad_table/names"]}
    # The published graph reaches the embeddings' convolution through a product with 0.
    assert table == names


def test_import_and_export_change_no_bit():
    state = seeded_state("freesolo/small_state_shapes.json")
    variables = small.variables()
    batch = small.training_batch()
    shapes = jax.eval_shape(small.build_task().init, jax.random.key(0), batch)
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, shapes)
    again = export_state(FREESOLO, variables)
    assert again.keys() == state.keys() - {"_iter"}
    for name, array in again.items():
        assert array.dtype == state[name].dtype and array.tobytes() == state[name].tobytes()
    jax.tree.map(np.testing.assert_array_equal, import_state(FREESOLO, again), variables)


def levels_nchw(cells):
    """(B, G, C) as the recorded maps (B, C, S, S) of every level."""
    starts = zip(small.GRID.level_offsets, small.GRID.num_grids, strict=True)
    for start, side in starts:
        rows = cells[:, start : start + side * side]
        yield rows.transpose(0, 2, 1).reshape(rows.shape[0], -1, side, side)


def assert_near(arrays, key, ours):
    wanted, ours = sampled(arrays, key, ours)
    assert np.abs(ours - wanted).max() <= 1e-4 * np.abs(wanted).max(), key


def test_the_network():
    arrays, found = recorded("eval"), outputs()
    (masks,) = found.masks
    for name, cells in (
        ("cate_pred", found.category_logits),
        ("kernel_pred", masks.kernels),
        ("emb_pred", found.embeddings),
    ):
        for level, maps in enumerate(levels_nchw(cells)):
            assert_near(arrays, f"{name}_L{level}", maps)
    assert_near(arrays, "mask_feat", masks.features.transpose(0, 3, 1, 2))


def published_embeddings(cells):
    """What the published inference takes for embeddings: its maps, cut up in the wrong order."""
    rows = [maps.reshape(len(maps), -1, maps.shape[1]) for maps in levels_nchw(cells)]
    return np.concatenate(rows, axis=1)


@functools.cache
def detections():
    found = outputs()
    mixed = found.replace(embeddings=published_embeddings(found.embeddings))
    run = jax.jit(lambda network: detect(network, small.GRID, DetectionSettings()))
    return jax.device_get(run(mixed))


@each_image
def test_detections_and_their_embeddings(image):
    """Every recorded object is found once, and its embedding beside it."""
    found, arrays = detections(), recorded("eval")
    prefix = f"default/img{image}/"
    scores, labels, embeddings = (
        arrays[prefix + name] for name in ("scores", "pred_classes", "pred_embs")
    )
    used = found.valid[image]
    assert used.sum() == len(scores)
    size = small.recorded_images()[image].shape[:2]
    masks = resize_masks(found.masks[image, used], size, small.original_size(image))
    published = load_json("freesolo/eval.json")["default"][image]["masks"]
    iou = coco_mask.iou([encode_rle(mask) for mask in masks], published, [0] * len(published))
    left = set(range(len(scores)))
    for j, score in enumerate(scores):
        matches = [
            i
            for i in left
            if found.labels[image, i] == labels[j]
            and abs(found.scores[image, i] - score) <= 5e-4
            and iou[i, j] >= 0.995
        ]
        assert matches, f"recorded object {j} is missing"
        best = min(matches, key=lambda i: np.abs(found.embeddings[image, i] - embeddings[j]).max())
        np.testing.assert_allclose(found.embeddings[image, best], embeddings[j], atol=1e-4)
        left.remove(best)
    assert not found.embeddings[image, ~used].any()
