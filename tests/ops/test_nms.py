"""solojax.ops.nms against loops over the definitions, and properties that must hold."""

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
from solojax.ops.nms import fast_nms, hard_nms, matrix_nms, points_nms, soft_nms

KERNELS = ("gaussian", "linear")
METHODS = {
    "matrix gaussian": matrix_nms,
    "matrix linear": functools.partial(matrix_nms, kernel="linear"),
    "hard": hard_nms,
    "soft gaussian": soft_nms,
    "soft linear": functools.partial(soft_nms, kernel="linear"),
    "fast": fast_nms,
}
COUNT = 12


@functools.cache
def compiled(method, **options):
    return jax.jit(functools.partial(METHODS[method], **options))


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
        out = compiled(f"matrix {kernel}", sigma=sigma)(iou, labels, scores, np.ones(COUNT, bool))
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


@pytest.mark.parametrize("method", METHODS)
def test_scores_never_rise_and_the_best_of_a_class_stays(method):
    @reproducible
    @given(st.integers(0, 10**6), st.integers(1, 3))
    def check(seed, classes):
        iou, labels, scores = random_scene(seed, classes=classes)
        out = np.asarray(compiled(method)(iou, labels, scores, np.ones(COUNT, bool)))
        assert np.all(out <= scores) and np.all(out >= 0)
        for label in set(labels):
            best = np.flatnonzero(labels == label)[0]
            assert out[best] == scores[best]

    check()


@pytest.mark.parametrize("method", METHODS)
def test_invalid_objects_and_padding_change_no_bit(method):
    extra = 5

    @reproducible
    @given(st.integers(0, 10**6), st.lists(st.booleans(), min_size=COUNT, max_size=COUNT))
    def check(seed, keep):
        iou, labels, scores = random_scene(seed)
        keep = np.array(keep)
        out = np.asarray(compiled(method)(iou, labels, scores, keep))
        assert not out[~keep].any()
        # Without the invalid ones, and behind them garbage to the same length and beyond.
        count = keep.sum()
        for size in (COUNT, COUNT + extra):
            rng = np.random.default_rng(seed)
            padded_iou = rng.random((size, size), np.float32)
            padded_iou[:count, :count] = iou[np.ix_(keep, keep)]
            padded_labels, padded_scores = np.zeros(size, np.int32), np.ones(size, np.float32)
            padded_labels[:count], padded_scores[:count] = labels[keep], scores[keep]
            compact = compiled(method)(
                padded_iou, padded_labels, padded_scores, np.arange(size) < count
            )
            assert_same_bits(np.asarray(compact)[:count], out[keep])

    check()


@pytest.mark.parametrize("method", METHODS)
def test_classes_do_not_touch_each_other(method):
    """However two classes are interleaved, each comes out as it does alone, bit for bit."""

    @reproducible
    @given(st.integers(0, 10**6))
    def check(seed):
        iou, labels, scores = random_scene(seed)
        together = np.asarray(compiled(method)(iou, labels, scores, np.ones(COUNT, bool)))
        for label in (0, 1):
            of_class = labels == label
            alone = compiled(method)(iou, labels, scores, of_class)
            assert_same_bits(np.asarray(alone)[of_class], together[of_class])

    check()


@pytest.mark.parametrize("method", METHODS)
def test_only_the_order_within_a_class_matters(method):
    """Objects shuffled so that every class keeps its order: the results move along, bit for bit."""

    @reproducible
    @given(st.integers(0, 10**6))
    def check(seed):
        iou, labels, scores = random_scene(seed, classes=3)
        places = np.random.default_rng(seed).permutation(labels)  # the class at every new place
        order = np.zeros(COUNT, int)
        for label in set(labels):
            order[places == label] = np.flatnonzero(labels == label)
        everything = np.ones(COUNT, bool)
        straight = np.asarray(compiled(method)(iou, labels, scores, everything))
        moved = compiled(method)(
            iou[np.ix_(order, order)], labels[order], scores[order], everything
        )
        assert_same_bits(np.asarray(moved), straight[order])

    check()


@pytest.mark.parametrize("method", METHODS)
def test_leading_axes_are_batches(method):
    scenes = [random_scene(seed) for seed in (3, 4)]
    stacked = [np.stack(parts) for parts in zip(*scenes, strict=True)]
    # The second image has fewer objects: it must not end the first one's steps, nor go on itself.
    valid = np.arange(COUNT) < np.array([[COUNT], [COUNT // 2]])
    out = np.asarray(compiled(method)(*stacked, valid))
    for row, scene in enumerate(scenes):
        alone = compiled(method)(*scene, valid[row])
        np.testing.assert_allclose(out[row], alone, rtol=1e-6)


@pytest.mark.parametrize("threshold", [0.25, 0.5])
def test_hard_and_fast_nms_are_the_loops(threshold):
    sizes = []
    for seed in range(20):
        scene = random_scene(seed)
        hard = compiled("hard", threshold=threshold)(*scene, np.ones(COUNT, bool))
        np.testing.assert_array_equal(hard, plain_nms.hard_nms(*scene, threshold))
        fast = compiled("fast", threshold=threshold)(*scene, np.ones(COUNT, bool))
        np.testing.assert_array_equal(fast, plain_nms.fast_nms(*scene, threshold))
        sizes.append((np.count_nonzero(fast), np.count_nonzero(hard), COUNT))
    # The scenes tell the two apart, and both from doing nothing.
    total_fast, total_hard, total = np.sum(sizes, axis=0)
    assert total_fast < total_hard < total


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("sigma", "threshold"), [(0.5, 0.3), (0.1, 0.0)])
def test_soft_nms_is_the_loop(kernel, sigma, threshold):
    reordered = 0
    for seed in range(20):
        iou, labels, scores = random_scene(seed)
        options = {"sigma": sigma, "threshold": threshold}
        out = compiled(f"soft {kernel}", **options)(iou, labels, scores, np.ones(COUNT, bool))
        exact = plain_nms.soft_nms(iou.astype(np.float64), labels, scores, kernel, **options)
        np.testing.assert_allclose(out, exact, rtol=1e-5)
        reordered += np.any(np.diff(exact) > 0)
    assert reordered  # there was something to rank anew


def test_the_compared_methods_on_a_worked_example():
    # A chain: the second overlaps the first, the third the second but not the first.
    iou = np.array([[1, 0.6, 0], [0.6, 1, 0.8], [0, 0.8, 1]], np.float32)
    chain = iou, np.zeros(3, np.int32), np.array([0.9, 0.8, 0.7], np.float32), np.ones(3, bool)
    np.testing.assert_allclose(compiled("hard")(*chain), [0.9, 0, 0.7], rtol=1e-6)
    np.testing.assert_allclose(compiled("fast")(*chain), [0.9, 0, 0], rtol=1e-6)
    # The second falls to 0.32, so that the third comes before it and decays it once more.
    expected = [0.9, 0.8 * 0.4 * 0.2, 0.7]
    np.testing.assert_allclose(compiled("soft linear")(*chain), expected, rtol=1e-6)
    expected = [0.9, 0.8 * np.exp(-0.72) * np.exp(-1.28), 0.7]
    np.testing.assert_allclose(compiled("soft gaussian")(*chain), expected, rtol=1e-6)


@pytest.mark.parametrize("method", ["hard", "fast", "soft linear"])
def test_an_iou_at_the_threshold_removes_nothing(method):
    iou = np.full((3, 3), 0.5, np.float32)
    scores = np.array([0.9, 0.8, 0.7], np.float32)
    nms = compiled(method, threshold=0.5)
    np.testing.assert_array_equal(nms(iou, np.zeros(3, np.int32), scores, scores > 0), scores)


def test_a_chain_is_decided_to_its_end():
    # Every object overlaps the next: every other one stays, which takes as many rounds as objects.
    iou = np.eye(COUNT) + 0.9 * np.eye(COUNT, k=1) + 0.9 * np.eye(COUNT, k=-1)
    scores = np.linspace(1, 0.1, COUNT, dtype=np.float32)
    labels, valid = np.zeros(COUNT, np.int32), np.ones(COUNT, bool)
    kept = compiled("hard")(iou.astype(np.float32), labels, scores, valid)
    np.testing.assert_array_equal(kept, np.where(np.arange(COUNT) % 2 == 0, scores, 0))


def test_hard_nms_keeps_what_no_survivor_overlaps_and_nothing_else():
    """No two survivors overlap, and every object that fell overlaps a better survivor."""

    @reproducible
    @given(st.integers(0, 10**6), st.sampled_from([0.2, 0.5, 0.8]))
    def check(seed, threshold):
        iou, labels, scores = random_scene(seed)
        kept = np.asarray(compiled("hard", threshold=threshold)(iou, labels, scores, scores > 0.2))
        survivors = np.flatnonzero(kept)
        for j in np.flatnonzero(scores > 0.2):
            better = survivors[(survivors < j) & (labels[survivors] == labels[j])]
            assert np.any(iou[better, j] > threshold) == (kept[j] == 0)

    check()


@pytest.mark.parametrize("nms", [matrix_nms, soft_nms])
def test_an_unknown_kernel_is_an_error(nms):
    with pytest.raises(InputError, match="'box'.*gaussian"):
        nms(*random_scene(0), np.ones(COUNT, bool), kernel="box")
