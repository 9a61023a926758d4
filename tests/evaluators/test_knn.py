"""The weighted vote of nearest neighbours, against loops."""

from __future__ import annotations

import numpy as np
import pytest

from solojax.evaluators.knn import knn_scores, nearest_neighbors


def features(seed=0, test=23, train=37, channels=5):
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((test, channels)).astype(np.float32),
        rng.standard_normal((train, channels)).astype(np.float32) * 7,
    )


def cosine(a, b) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


@pytest.mark.parametrize("blocks", [(8, 16), (23, 37), (5, 7), (100, 1000), (1, 1)])
def test_neighbors_against_a_loop(blocks):
    test, train = features()
    similarities, rows = nearest_neighbors(
        test, train, 4, test_block=blocks[0], train_block=blocks[1]
    )
    assert similarities.shape == rows.shape == (23, 4) and rows.dtype == np.int32
    for vector, found, where in zip(test, similarities, rows, strict=True):
        all_similarities = [cosine(vector, other) for other in train]
        expected = sorted(range(len(train)), key=lambda row: -all_similarities[row])[:4]
        assert where.tolist() == expected
        np.testing.assert_allclose(found, [all_similarities[row] for row in expected], atol=1e-6)


def test_of_equals_the_earlier_comes_first():
    train = np.tile(np.float32([[1, 0], [0, 1]]), (6, 1))
    _, rows = nearest_neighbors(np.float32([[2, 0]]), train, 5, train_block=3)
    assert rows.tolist() == [[0, 2, 4, 6, 8]]


def test_scores_against_a_loop():
    test, train = features(1)
    targets = np.float32(np.random.default_rng(2).integers(0, 2, (37, 3)))
    scores = knn_scores(test, train, targets, k=6, temperature=0.2, test_block=4, train_block=10)
    for vector, found in zip(test, scores, strict=True):
        similarities = [cosine(vector, other) for other in train]
        chosen = sorted(range(37), key=lambda row: -similarities[row])[:6]
        votes, total = np.zeros(3), 0.0
        for row in chosen:
            weight = np.exp(similarities[row] / 0.2)
            votes += weight * targets[row]
            total += weight
        np.testing.assert_allclose(found, votes / total, rtol=1e-5)


def test_votes_add_up_and_small_temperatures_do_not_overflow():
    test, train = features(3)
    labels = np.eye(4, dtype=np.float32)[np.arange(37) % 4]
    scores = knn_scores(test, train, labels, k=37, temperature=1e-4)
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-5)
    _, nearest = nearest_neighbors(test, train, 1)
    np.testing.assert_array_equal(scores.argmax(axis=1), nearest[:, 0] % 4)


@pytest.mark.parametrize("k", [0, 38])
def test_no_such_number_of_neighbors(k):
    with pytest.raises(ValueError, match="37 training vectors"):
        nearest_neighbors(*features(), k)
