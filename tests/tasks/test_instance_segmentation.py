"""solojax.tasks.instance_segmentation: losses recomputed in NumPy, and what must not matter."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import plain_losses
from helpers.outputs import kernels_of, mask_features_of
from helpers.plain_layers import sigmoid
from helpers.plain_targets import assign
from helpers.tiny import (
    CANVAS,
    GRID,
    NUM_CLASSES,
    assert_same_bits,
    quick_jit,
    random_batch,
    random_variables,
    relative_distance,
    take_rows,
    tiny_task,
)

from solojax.errors import InputError
from solojax.postprocess.detections import DetectionSettings

BATCH = random_batch(0)
DETECTION = DetectionSettings(max_candidates=64, nms_pre=20, max_detections=10)
NORMS = ("frozen_batch_norm", "batch_norm")


@functools.cache
def variables_of(norm):
    return random_variables(tiny_task(norm), BATCH)


@functools.cache
def compiled_loss(norm):
    task = tiny_task(norm)

    def loss(params, batch_stats, batch, weights):
        state = SimpleNamespace(batch_stats=batch_stats)
        return task.loss_fn(params, state, batch, jax.random.key(0), weights)

    return quick_jit(jax.value_and_grad(loss, has_aux=True))


@functools.cache
def compiled_weights(group=None):
    task = tiny_task(loss_group_images=group)
    return quick_jit(task.row_weights)


def loss_of(batch, norm="frozen_batch_norm", weights=None):
    """(loss, metrics, batch_stats, gradient), NumPy."""
    variables = variables_of(norm)
    weights = compiled_weights()(batch) if weights is None else weights
    (loss, (updates, metrics)), gradient = compiled_loss(norm)(
        variables["params"], variables["batch_stats"], batch, weights
    )
    return jax.device_get((loss, metrics, updates["batch_stats"], gradient))


def plain_targets(batch, row):
    instances = batch.instances
    valid = instances.valid[row] & batch.valid[row]
    arrays = (x[row] for x in (instances.boxes, instances.labels, instances.centers))
    return assign(*arrays, valid, GRID, CANVAS, NUM_CLASSES)


def without_objects(batch):
    return batch.replace(
        instances=batch.instances.replace(valid=np.zeros_like(batch.instances.valid))
    )


def test_losses_are_those_of_a_numpy_recomputation():
    task, variables = tiny_task(), variables_of("frozen_batch_norm")
    outputs = jax.device_get(quick_jit(task.forward)(variables, BATCH))
    dice, focal, cells, total = [], 0.0, 0, 0
    for row in range(4):
        category, owner, pairs = plain_targets(BATCH, row)
        cells += np.sum(owner >= 0)
        total += len(pairs)
        for cell, n in pairs[: task.max_positives]:
            features = mask_features_of(outputs)[row].astype(np.float64)
            logits = features @ kernels_of(outputs)[row, cell]
            wanted = np.unpackbits(BATCH.instances.masks[row, n], axis=-1)
            dice.append(plain_losses.dice(sigmoid(logits), wanted))
        for cell, k in np.ndindex(outputs.category_logits.shape[1:]):
            logit = float(outputs.category_logits[row, cell, k])
            focal += plain_losses.focal(logit, category[cell] == k)
    assert total > len(dice) > 20  # some pairs do not fit, most do

    _, metrics, batch_stats, _ = loss_of(BATCH)
    np.testing.assert_allclose(metrics["loss/mask"], 3 * np.mean(dice), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss/category"], focal / (cells + 1), rtol=1e-5)
    np.testing.assert_allclose(
        metrics["loss"], metrics["loss/mask"] + metrics["loss/category"], rtol=1e-6
    )
    assert metrics["targets/positive_pairs"] == len(dice)
    assert metrics["targets/overflow"] == total - len(dice)
    assert metrics["data/dropped_instances"] == 0 + 1 + 2 + 3
    assert metrics["data/broken_images"] == 0
    assert_same_bits(batch_stats, variables["batch_stats"])  # frozen


def test_the_network_sees_normalised_pixels_and_zeros_outside():
    task = tiny_task()
    pixels = (BATCH.image - np.array(task.pixel_mean)) / np.array(task.pixel_std)
    for row, (height, width) in enumerate(BATCH.image_size):
        pixels[row, height:] = 0
        pixels[row, :, width:] = 0
    normalized = quick_jit(task.normalized)
    seen = normalized(BATCH)
    assert seen.dtype == jnp.float32
    np.testing.assert_allclose(seen, pixels, rtol=0, atol=1e-6)
    # A file's padding may hold anything.
    dirty = BATCH.replace(image=np.where(pixels == 0, 77, BATCH.image).astype(np.uint8))
    assert_same_bits(normalized(dirty), seen)


def test_row_weights_are_reciprocals_of_the_groups_counts():
    batch = random_batch(1)
    batch.instances.valid[2:] = False  # the second group of two has no object
    kept = tiny_task().max_positives
    pairs = np.array([min(len(plain_targets(batch, row)[2]), kept) for row in range(4)])
    cells = np.array([np.sum(plain_targets(batch, row)[1] >= 0) for row in range(4)])
    weights = compiled_weights()(batch)
    np.testing.assert_allclose(weights["mask"], np.full(4, 1 / pairs.sum()), rtol=1e-6)
    np.testing.assert_allclose(weights["category"], np.full(4, 1 / (cells.sum() + 1)), rtol=1e-6)
    weights = compiled_weights(2)(batch)
    by_group = np.repeat(pairs.reshape(2, 2).sum(1), 2)
    expected = np.where(by_group > 0, 1 / np.maximum(by_group, 1) / 2, 0)
    assert expected[2] == expected[3] == 0
    np.testing.assert_allclose(weights["mask"], expected, rtol=1e-6)
    expected = 1 / (np.repeat(cells.reshape(2, 2).sum(1), 2) + 1) / 2
    np.testing.assert_allclose(weights["category"], expected, rtol=1e-6)


def test_groups_that_do_not_divide_the_batch_are_an_error():
    with pytest.raises(InputError, match="loss.group_images 3.*4 images"):
        jax.eval_shape(tiny_task(loss_group_images=3).row_weights, BATCH)


def test_groups_of_two_are_the_mean_of_two_batches_of_two():
    loss, metrics, _, gradient = loss_of(BATCH, weights=compiled_weights(2)(BATCH))
    # A batch of two is one of four with two broken rows: see the tests of those.
    first = np.array([True, True, False, False])
    parts = [loss_of(BATCH.replace(valid=valid)) for valid in (first, ~first)]
    np.testing.assert_allclose(loss, np.mean([part[0] for part in parts]), rtol=1e-6)
    for name in ("loss/mask", "loss/category"):
        expected = np.mean([part[1][name] for part in parts])
        np.testing.assert_allclose(metrics[name], expected, rtol=1e-6)
    expected = jax.tree.map(lambda a, b: (a + b) / 2, parts[0][3], parts[1][3])
    assert relative_distance(gradient, expected) < 1e-5
    # And that is not what one group of four gives.
    assert relative_distance(loss_of(BATCH)[3], expected) > 1e-2


@pytest.mark.parametrize("norm", NORMS)
def test_a_batch_without_objects_has_finite_loss_and_gradient(norm):
    loss, metrics, _, gradient = loss_of(without_objects(BATCH), norm)
    assert np.isfinite(loss) and metrics["loss/mask"] == 0 and metrics["loss/category"] == loss
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
    for leaf in jax.tree.leaves([gradient["kernel"], gradient["mask_features"]]):
        assert not leaf.any()
    assert np.any(gradient["category"]["kernel"])


def test_broken_rows_change_neither_loss_nor_gradient_nor_statistics():
    """Two good rows and two broken ones are the same as the two good ones alone."""
    norm = "batch_norm"
    good = np.array([True, False, True, False])
    broken = BATCH.replace(valid=good)
    loss, metrics, batch_stats, gradient = loss_of(broken, norm)
    assert metrics["data/broken_images"] == 2
    alone = loss_of(take_rows(BATCH, [0, 2]), norm)
    np.testing.assert_allclose(loss, alone[0], rtol=1e-6)
    assert relative_distance(gradient, alone[3]) < 1e-5
    assert relative_distance(batch_stats, alone[2]) < 1e-5


@pytest.mark.parametrize("norm", NORMS)
def test_what_a_broken_row_holds_changes_no_bit(norm):
    good = np.array([True, False, True, False])
    broken = BATCH.replace(valid=good)
    loss, _, batch_stats, gradient = loss_of(broken, norm)
    other = random_batch(9).replace(valid=good)
    mixed = jax.tree.map(
        lambda a, b: np.where(good.reshape(-1, *[1] * (a.ndim - 1)), a, b), broken, other
    )
    again = loss_of(mixed, norm)
    assert_same_bits(again[0], loss)
    assert_same_bits(again[2:], (batch_stats, gradient))


def test_a_batch_of_broken_rows_alone_has_no_loss_and_no_gradient():
    loss, _, batch_stats, gradient = loss_of(BATCH.replace(valid=np.zeros(4, bool)), "batch_norm")
    assert loss == 0
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient))
    assert_same_bits(batch_stats, variables_of("batch_norm")["batch_stats"])


def test_batch_statistics_move_while_training():
    before, after = variables_of("batch_norm")["batch_stats"], loss_of(BATCH, "batch_norm")[2]
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True):
        assert np.all(a != b)


def test_predictions_read_no_objects_and_broken_rows_have_none():
    task = tiny_task(detection=DETECTION)
    predict = quick_jit(task.predict)
    variables = variables_of("frozen_batch_norm")
    detections = jax.device_get(predict(variables, BATCH))
    assert detections.masks.shape == (4, 10, CANVAS[0] // 4, CANVAS[1] // 4)
    assert detections.valid.any(axis=1).all()
    other = BATCH.replace(instances=random_batch(5).instances)
    assert_same_bits(jax.device_get(predict(variables, other)), detections)
    broken = predict(variables, BATCH.replace(valid=np.array([True, False, True, True])))
    expected = detections.valid.copy()
    expected[1] = False
    np.testing.assert_array_equal(broken.valid, expected)


TRAINABLE_CASES = [
    # path, frozen stages, whether norms train, whether it trains
    ("head/category_pred/kernel", 4, False, True),
    ("neck/output_0/bias", 4, False, True),
    ("mask_features/pred/norm/scale", 4, False, True),
    ("backbone/conv1/kernel", -1, True, True),
    ("backbone/conv1/kernel", 0, True, False),
    ("backbone/bn1/scale", 0, True, False),
    ("backbone/bn1/scale", -1, True, True),
    ("backbone/bn1/scale", -1, False, False),
    ("backbone/layer1_0/conv1/kernel", 0, True, True),
    ("backbone/layer1_2/conv1/kernel", 1, True, False),
    ("backbone/layer2_0/conv1/kernel", 1, True, True),
    ("backbone/layer2_0/bn2/bias", 1, True, True),
    ("backbone/layer2_0/bn2/bias", 1, False, False),
    ("backbone/layer3_0/downsample_bn/scale", 1, False, False),
    ("backbone/layer3_0/downsample_bn/scale", 1, True, True),
    ("backbone/layer3_0/downsample_conv/kernel", 1, False, True),
    ("backbone/layer3_22/conv3/kernel", 3, True, False),
]


@pytest.mark.parametrize(("path", "frozen_stages", "norms_train", "expected"), TRAINABLE_CASES)
def test_which_parameters_train(path, frozen_stages, norms_train, expected):
    task = tiny_task(frozen_stages=frozen_stages, train_norm_affine=norms_train)
    assert task.is_trainable(tuple(path.split("/"))) == expected


def test_losses_are_float32_under_bfloat16():
    task = tiny_task(dtype=jnp.bfloat16)
    variables = variables_of("frozen_batch_norm")
    state = SimpleNamespace(batch_stats=variables["batch_stats"])
    loss, (_, metrics) = jax.eval_shape(
        lambda: task.loss_fn(
            variables["params"], state, BATCH, jax.random.key(0), task.row_weights(BATCH)
        )
    )
    assert loss.dtype == jnp.float32
    assert {x.dtype for x in metrics.values()} == {jnp.dtype("float32")}
