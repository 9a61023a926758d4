"""solojax.ops.nms against loops over equations 4.3 and 4.4, and properties that must hold."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from helpers import plain_nms
from helpers.properties import reproducible
from helpers.tiny import assert_same_bits
from hypothesis import given
from hypothesis import strategies as st

from solojax.errors import InputError
from solojax.ops.nms import matrix_nms, points_nms

KERNELS = ("gaussian", "linear")
COUNT = 12


@functools.cache
def compiled(kernel, sigma=2.0):
    return jax.jit(functools.partial(matrix_nms, kernel=kernel, sigma=sigma))


def random_scene(seed, count=COUNT, classes=2):
    """IoU of random rectangles, labels, descending scores: some overlap wholly, some not at all."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 6, (count, 2))
    sizes = rng.integers(1, 5, (count, 2))
    masks = np.zeros((count, 10, 10), bool)
    for mask, (y, x), (height, width) in zip(masks, corners, sizes, strict=True):
        mask[y : y + height, x : x + width] = True
    shared = np.einsum("mhw,nhw->mn", masks.astype(int), masks.astype(int))
    areas = masks.sum((1, 2))
    iou = shared / (areas[:, None] + areas[None] - shared)
    scores = np.sort(rng.uniform(0.1, 1, count))[::-1]
    labels = rng.integers(0, classes, count)
    return iou.astype(np.float32), labels.astype(np.int32), scores.astype(np.float32)


def test_points_nms_is_the_loop_over_three_neighbours():
    scores = np.random.default_rng(0).integers(0, 6, (2, 7, 7, 3)).astype(np.float32) / 5
    expected = np.stack([plain_nms.points_nms(image) for image in scores])
    np.testing.assert_array_equal(jax.jit(points_nms)(scores), expected)
    assert 0 < np.count_nonzero(expected) < np.count_nonzero(scores)


def test_points_nms_compares_upper_and_left_neighbours_alone_and_keeps_ties():
    scores = np.array([[0.5, 0.9, 0.1], [0.5, 0.2, 0.9], [0.6, 0.6, 0.3]], np.float32)
    expected = [[0.5, 0.9, 0.0], [0.5, 0.0, 0.9], [0.6, 0.6, 0.0]]
    kept = points_nms(scores[None, :, :, None])[0, :, :, 0]
    np.testing.assert_array_equal(kept, np.array(expected, np.float32))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("sigma", [2.0, 0.5])
def test_matrix_nms_is_the_loop_over_the_equations(kernel, sigma):
    for seed in range(20):
        iou, labels, scores = random_scene(seed)
        out = compiled(kernel, sigma)(iou, labels, scores, np.ones(COUNT, bool))
        expected = plain_nms.matrix_nms(iou.astype(np.float64), labels, scores, kernel, sigma)
        np.testing.assert_allclose(out, expected, rtol=2e-5, atol=1e-6)


def test_matrix_nms_of_a_worked_example():
    # The second object overlaps the first by 0.5, the third overlaps the second by 0.8: the third
    # decays by f(0.8) / f(0.5), because the second is itself half suppressed.
    iou = np.array([[1, 0.5, 0], [0.5, 1, 0.8], [0, 0.8, 1]], np.float32)
    scores, labels = np.array([0.9, 0.8, 0.7], np.float32), np.zeros(3, np.int32)
    valid = np.ones(3, bool)
    linear = matrix_nms(iou, labels, scores, valid, kernel="linear")
    np.testing.assert_allclose(linear, [0.9, 0.8 * 0.5, 0.7 * 0.2 / 0.5], rtol=1e-6)
    gaussian = matrix_nms(iou, labels, scores, valid, kernel="gaussian", sigma=2.0)
    expected = [0.9, 0.8 * np.exp(-2 * 0.25), 0.7 * np.exp(-2 * (0.64 - 0.25))]
    np.testing.assert_allclose(gaussian, expected, rtol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_identical_masks_leave_the_best_one(kernel):
    scores = np.array([0.9, 0.8, 0.7], np.float32)
    out = matrix_nms(
        np.ones((3, 3), np.float32), np.zeros(3, np.int32), scores, np.ones(3, bool), kernel=kernel
    )
    rest = 0.0 if kernel == "linear" else np.exp(-2.0)
    np.testing.assert_allclose(out, [0.9, 0.8 * rest, 0.7 * rest], rtol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_scores_never_rise_and_the_best_of_a_class_stays(kernel):
    @reproducible
    @given(st.integers(0, 10**6), st.integers(1, 3))
    def check(seed, classes):
        iou, labels, scores = random_scene(seed, classes=classes)
        out = np.asarray(compiled(kernel)(iou, labels, scores, np.ones(COUNT, bool)))
        assert np.all(out <= scores) and np.all(out >= 0)
        for label in set(labels):
            best = np.flatnonzero(labels == label)[0]
            assert out[best] == scores[best]

    check()


@pytest.mark.parametrize("kernel", KERNELS)
def test_invalid_objects_and_padding_change_no_bit(kernel):
    extra = 5

    @reproducible
    @given(st.integers(0, 10**6), st.lists(st.booleans(), min_size=COUNT, max_size=COUNT))
    def check(seed, keep):
        iou, labels, scores = random_scene(seed)
        keep = np.array(keep)
        out = np.asarray(compiled(kernel)(iou, labels, scores, keep))
        assert not out[~keep].any()
        # Without the invalid ones, and behind them garbage to the same length and beyond.
        count = keep.sum()
        for size in (COUNT, COUNT + extra):
            rng = np.random.default_rng(seed)
            padded_iou = rng.random((size, size), np.float32)
            padded_iou[:count, :count] = iou[np.ix_(keep, keep)]
            padded_labels, padded_scores = np.zeros(size, np.int32), np.ones(size, np.float32)
            padded_labels[:count], padded_scores[:count] = labels[keep], scores[keep]
            compact = compiled(kernel)(
                padded_iou, padded_labels, padded_scores, np.arange(size) < count
            )
            assert_same_bits(np.asarray(compact)[:count], out[keep])

    check()


@pytest.mark.parametrize("kernel", KERNELS)
def test_classes_do_not_touch_each_other(kernel):
    """However two classes are interleaved, each comes out as it does alone, bit for bit."""

    @reproducible
    @given(st.integers(0, 10**6))
    def check(seed):
        iou, labels, scores = random_scene(seed)
        together = np.asarray(compiled(kernel)(iou, labels, scores, np.ones(COUNT, bool)))
        for label in (0, 1):
            of_class = labels == label
            alone = compiled(kernel)(iou, labels, scores, of_class)
            assert_same_bits(np.asarray(alone)[of_class], together[of_class])

    check()


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_order_of_equal_objects_does_not_matter(kernel):
    """Copies of one mask with one score and class: whichever comes first stays, bit for bit."""

    @reproducible
    @given(st.integers(0, 10**6), st.permutations(range(4)))
    def check(seed, order):
        iou, labels, scores = random_scene(seed)
        copies = np.arange(COUNT)
        copies[4:8] = 4  # places 4 to 7 hold the same object
        permuted = copies.copy()
        permuted[4:8] = copies[4:8][list(order)]
        results = [
            compiled(kernel)(
                iou[np.ix_(index, index)], labels[index], scores[index], np.ones(COUNT, bool)
            )
            for index in (copies, permuted)
        ]
        assert_same_bits(*results)

    check()


def test_leading_axes_are_batches():
    scenes = [random_scene(seed) for seed in (3, 4)]
    stacked = [np.stack(parts) for parts in zip(*scenes, strict=True)]
    valid = np.ones((2, COUNT), bool)
    out = np.asarray(compiled("gaussian")(*stacked, valid))
    for row, scene in enumerate(scenes):
        alone = compiled("gaussian")(*scene, valid[row])
        np.testing.assert_allclose(out[row], alone, rtol=1e-6)


def test_an_unknown_kernel_is_an_error():
    with pytest.raises(InputError, match="'box'.*gaussian"):
        matrix_nms(*random_scene(0), np.ones(COUNT, bool), kernel="box")
