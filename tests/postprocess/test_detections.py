"""solojax.postprocess.detections against a loop over candidates, and what must change no bit."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import plain_nms
from helpers.outputs import dynamic_outputs, kernels_of, mask_features_of
from helpers.plain_layers import sigmoid
from helpers.tiny import QUICK_COMPILE, assert_same_bits, take_rows

from solojax.errors import InputError
from solojax.ops.resize import bilinear_weights
from solojax.postprocess.detections import DetectionSettings, category_scores, detect
from solojax.structures import DynamicMasks, GridSpec, SegmenterOutputs

GRID = GridSpec(num_grids=(8, 5, 3), strides=(4, 8, 16), scale_ranges=((1, 9), (5, 20), (10, 50)))
CLASSES, SIZE = 3, (16, 24)
SETTINGS = DetectionSettings(
    max_candidates=100, nms_pre=40, update_threshold=0.2, max_detections=24
)


@functools.cache
def compiled(settings=SETTINGS, options=()):
    return jax.jit(
        functools.partial(detect, grid=GRID, settings=settings), compiler_options=dict(options)
    )


def random_outputs(seed=0, rows=2, mean=-2.0) -> SegmenterOutputs:
    """Logits whose masks are exact: features and kernels are small integers and halves.

    The kernels of a few prototypes repeat with small changes, so that masks overlap.
    """
    rng = np.random.default_rng(seed)
    width = 8
    features = rng.integers(-2, 3, (rows, *SIZE, width)).astype(np.float32)
    features = features.repeat(4, axis=1)[:, : SIZE[0]].repeat(4, axis=2)[:, :, : SIZE[1]]
    features[..., 0] = 1
    prototypes = rng.integers(-1, 2, (rows, 3, width))
    kernels = np.take_along_axis(
        prototypes, rng.integers(0, 3, (rows, GRID.num_cells, 1)), axis=1
    ).astype(np.float32)
    changed = rng.integers(1, width, (rows, GRID.num_cells, 1))
    np.put_along_axis(kernels, changed, rng.integers(-1, 2, changed.shape), axis=2)
    kernels[..., 0] = rng.choice([-9, -2, -1, 0], kernels.shape[:2]) + 0.5  # so no logit is 0
    logits = rng.normal(mean, 2.0, (rows, GRID.num_cells, CLASSES)).astype(np.float32)
    return dynamic_outputs(logits, kernels, features)


def plain_mask(outputs, row, cell):
    """Mask probabilities of a cell, at the resolution of the first group."""
    for masks in outputs.masks:
        count = masks.kernels.shape[1]
        if cell < count:
            logits = masks.features[row] @ masks.kernels[row, cell]
            rows, columns = (bilinear_weights(SIZE[i], logits.shape[i]) for i in range(2))
            return rows @ sigmoid(logits) @ columns.T
        cell -= count
    raise AssertionError("no such cell")


def by_level(outputs, shrink=(1, 1, 1)) -> SegmenterOutputs:
    """The same kernels as a group for each level, over features of 1 / shrink of the size."""
    (masks,) = outputs.masks
    groups = []
    for start, side, factor in zip(GRID.level_offsets, GRID.num_grids, shrink, strict=True):
        groups.append(
            DynamicMasks(
                kernels=masks.kernels[:, start : start + side * side],
                features=masks.features[:, ::factor, ::factor],
            )
        )
    return outputs.replace(masks=tuple(groups))


def detect_by_loop(outputs, row, settings):
    """The published order, one candidate at a time: a list of (score, label, mask)."""
    candidates = []
    for offset, side, stride in zip(GRID.level_offsets, GRID.num_grids, GRID.strides, strict=True):
        logits = outputs.category_logits[row, offset : offset + side * side]
        scores = plain_nms.points_nms(sigmoid(logits.reshape(side, side, CLASSES)))
        for i, j, k in np.ndindex(scores.shape):
            if scores[i, j, k] > settings.score_threshold:
                candidates.append((scores[i, j, k], offset + i * side + j, k, stride))
    candidates.sort(key=lambda candidate: -candidate[0])
    overflow = max(len(candidates) - settings.max_candidates, 0)
    scored = []
    for score, cell, label, stride in candidates[: settings.max_candidates]:
        probabilities = plain_mask(outputs, row, cell)
        binary = probabilities > settings.mask_threshold
        if binary.sum() > stride:
            scored.append((score * probabilities[binary].mean(), label, probabilities, binary))
    scored.sort(key=lambda candidate: -candidate[0])
    scored = scored[: settings.nms_pre]
    iou = [[plain_nms.mask_iou(a[3], b[3]) for b in scored] for a in scored]
    labels, scores = [candidate[1] for candidate in scored], [candidate[0] for candidate in scored]
    kernel, sigma, threshold = settings.nms_kernel, settings.nms_sigma, settings.nms_threshold
    decayed = {
        "matrix": lambda: plain_nms.matrix_nms(iou, labels, scores, kernel, sigma),
        "soft": lambda: plain_nms.soft_nms(iou, labels, scores, kernel, 1 / sigma, threshold),
        "hard": lambda: plain_nms.hard_nms(iou, labels, scores, threshold),
        "fast": lambda: plain_nms.fast_nms(iou, labels, scores, threshold),
    }[settings.nms]()
    kept = [
        (score, label, probabilities)
        for score, (_, label, probabilities, _) in zip(decayed, scored, strict=True)
        if score >= settings.update_threshold
    ]
    kept.sort(key=lambda detection: -detection[0])
    return kept[: settings.max_detections], overflow, len(candidates), len(scored)


def check_against_loop(outputs, settings):
    """Compares every row; returns (detections, candidates, masks before NMS) of each."""
    options = () if settings == SETTINGS else tuple(QUICK_COMPILE.items())
    detections = jax.device_get(compiled(settings, options)(outputs))
    counts = []
    for row in range(outputs.category_logits.shape[0]):
        expected, overflow, candidates, scored = detect_by_loop(outputs, row, settings)
        count = len(expected)
        counts.append((count, candidates, scored))
        assert detections.valid[row].tolist() == [i < count for i in range(settings.max_detections)]
        assert detections.overflow[row] == overflow
        for i, (score, label, probabilities) in enumerate(expected):
            np.testing.assert_allclose(detections.scores[row, i], score, rtol=2e-5)
            assert detections.labels[row, i] == label
            np.testing.assert_allclose(detections.masks[row, i], probabilities, rtol=0, atol=1e-6)
            ys, xs = np.nonzero(probabilities > settings.mask_threshold)
            box = 4 * np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
            np.testing.assert_array_equal(detections.boxes[row, i], box)
        for values in (detections.scores, detections.boxes, detections.masks):
            assert not values[row, count:].any()
    return counts


@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
def test_detections_are_the_loop_over_candidates(kernel):
    settings = dataclasses.replace(SETTINGS, nms_kernel=kernel)
    counts = check_against_loop(random_outputs(), settings)
    # The scenes reach what they should: more masks than enter NMS, and scores that fall below.
    assert all(candidates > scored == settings.nms_pre for _, candidates, scored in counts)
    assert any(count < settings.max_detections for count, _, _ in counts)


@pytest.mark.parametrize("nms", ["soft", "hard", "fast"])
def test_other_suppressions(nms):
    settings = dataclasses.replace(SETTINGS, nms=nms, nms_threshold=0.4)
    counts = check_against_loop(random_outputs(), settings)
    assert all(0 < count < scored for count, _, scored in counts)


def test_an_unknown_suppression_is_an_error():
    with pytest.raises(InputError, match="'greedy'.*matrix"):
        detect(random_outputs(), GRID, DetectionSettings(nms="greedy"))


def test_masks_by_level_at_one_resolution_are_the_same_as_all_in_one():
    outputs = random_outputs(3)
    assert_same_bits(compiled()(by_level(outputs)), compiled()(outputs))


def test_masks_of_coarser_levels_are_resized_to_the_first():
    check_against_loop(by_level(random_outputs(), (1, 2, 4)), SETTINGS)


def test_candidates_beyond_the_maximum_are_counted_and_other_thresholds_apply():
    settings = DetectionSettings(
        score_threshold=0.6,
        max_candidates=30,
        mask_threshold=0.7,
        nms_pre=30,
        nms_sigma=0.5,
        update_threshold=0.45,
        max_detections=30,
    )
    counts = check_against_loop(random_outputs(4), settings)
    assert all(0 < count < scored for count, _, scored in counts)
    assert sorted(candidates > 30 for _, candidates, _ in counts) == [False, True]


def test_scores_survive_points_nms_exactly_where_logits_peak():
    """Compiled together, the sigmoid compared must be the sigmoid kept."""
    logits = random_outputs(2, rows=4, mean=0.0).category_logits
    scores = np.asarray(jax.jit(functools.partial(category_scores, grid=GRID))(logits))
    for row in range(4):
        for offset, side in zip(GRID.level_offsets, GRID.num_grids, strict=True):
            level = logits[row, offset : offset + side * side].reshape(side, side, CLASSES)
            peaks = plain_nms.points_nms(np.where(level == 0, 1e-9, level)) != 0
            ours = scores[row, offset : offset + side * side].reshape(side, side, CLASSES)
            np.testing.assert_array_equal(ours > 0, peaks)
            np.testing.assert_allclose(ours[peaks], sigmoid(level[peaks]), rtol=1e-6)


def test_more_padding_candidates_change_no_bit():
    """400 are more than there are (cell, class) pairs."""
    outputs, options = random_outputs(3), tuple(QUICK_COMPILE.items())
    more = dataclasses.replace(SETTINGS, max_candidates=400)
    assert_same_bits(compiled(more, options)(outputs), compiled(SETTINGS, options)(outputs))


def test_other_rows_of_the_batch_change_no_bit():
    outputs = random_outputs(4, rows=4)
    # Row 1 has few candidates, row 2 none at all and row 3 very many, so that with each of them
    # another number of chunks is computed.
    outputs.category_logits[1] -= 2
    outputs.category_logits[2] = -20
    outputs.category_logits[3] += 4
    alone = [compiled()(take_rows(outputs, [row])) for row in range(4)]
    assert [bool(detections.valid.any()) for detections in alone] == [True, True, False, True]
    assert alone[3].overflow[0] > 0
    for rows in ([0, 1], [2, 0], [1, 3], [0, 3], [2, 1]):
        together = jax.device_get(compiled()(take_rows(outputs, rows)))
        for place, row in enumerate(rows):
            assert_same_bits(take_rows(together, [place]), jax.device_get(alone[row]))


def test_an_image_without_candidates_has_no_detections():
    outputs = random_outputs(5)
    outputs.category_logits[:] = -20
    detections = jax.device_get(compiled()(outputs))
    for values in jax.tree.leaves(detections):
        assert not values.any()


def test_masks_no_larger_than_the_stride_are_dropped():
    """One candidate on each level, with a mask of exactly `stride` or `stride + 1` pixels."""
    for extra in (0, 1):
        logits = np.full((1, GRID.num_cells, CLASSES), -20, np.float32)
        kernels = np.zeros((1, GRID.num_cells, 8), np.float32)
        features = np.full((1, *SIZE, 8), -10, np.float32)
        for level, (offset, stride) in enumerate(
            zip(GRID.level_offsets, GRID.strides, strict=True)
        ):
            logits[0, offset, level] = 5
            kernels[0, offset, level] = 1
            features[0, level, : stride + extra, level] = 10
        detections = compiled()(dynamic_outputs(logits, kernels, features))
        assert int(detections.valid.sum()) == 3 * extra


def test_bfloat16_features_give_float32_detections():
    outputs = random_outputs(6)
    low = dynamic_outputs(
        outputs.category_logits,
        kernels_of(outputs),
        jnp.asarray(mask_features_of(outputs), jnp.bfloat16),
    )
    assert jax.eval_shape(compiled(), low) == jax.eval_shape(compiled(), outputs)


@pytest.mark.parametrize(
    "sizes", [{"max_detections": 101, "nms_pre": 100}, {"nms_pre": 2000, "max_candidates": 1999}]
)
def test_settings_that_contradict_each_other_are_an_error(sizes):
    with pytest.raises(InputError, match="max_detections .* nms_pre .* max_candidates"):
        DetectionSettings(**sizes)


def test_embeddings_are_those_of_the_cells_that_were_detected():
    """Every cell's points in a direction of its own, which tells the cell of a detection."""
    outputs = random_outputs(3)
    angles = 2 * np.pi * np.arange(GRID.num_cells) / GRID.num_cells
    lengths = np.random.default_rng(0).uniform(0.1, 9, (2, GRID.num_cells, 1))
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    embeddings = (lengths * directions).astype(np.float32)
    found = jax.device_get(compiled()(outputs.replace(embeddings=embeddings)))
    assert found.valid.sum(axis=1).min() > 5
    for row, slot in np.argwhere(found.valid):
        vector = found.embeddings[row, slot]
        np.testing.assert_allclose(np.linalg.norm(vector), 1, rtol=1e-5)
        cell = int(np.argmax(directions @ vector))
        np.testing.assert_allclose(
            found.masks[row, slot], plain_mask(outputs, row, cell), rtol=0, atol=1e-5
        )
    np.testing.assert_array_equal(found.embeddings[~found.valid], 0)
    assert compiled()(outputs).embeddings is None
