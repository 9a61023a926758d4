"""Average precision, at eleven recalls and as an area."""

from __future__ import annotations

import numpy as np
import pytest

from solojax.evaluators.average_precision import (
    area_average_precision,
    eleven_point_average_precision,
)

BOTH = (eleven_point_average_precision, area_average_precision)


def loops(scores, positive) -> tuple[float, float]:
    """Both figures by going through every threshold for every recall, in whole numbers."""
    total = sum(positive)
    curve = []
    for threshold in set(scores):
        taken = [p for s, p in zip(scores, positive, strict=True) if s >= threshold]
        curve.append((sum(taken), sum(taken) / len(taken)))

    def best(numerator, denominator):
        """The best precision where recall is at least a fraction."""
        return max((p for found, p in curve if found * denominator >= numerator * total), default=0)

    eleven = sum(best(point, 10) for point in range(11)) / 11
    area = sum(best(found, total) for found in range(1, total + 1)) / total
    return eleven, area


@pytest.mark.parametrize("seed", range(6))
def test_against_loops(seed):
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal(50)
    if seed % 2:
        scores = np.round(scores, 1)  # with ties
    positive = rng.random(50) < 0.3
    expected = loops(scores.tolist(), positive.tolist())
    assert [f(scores, positive) for f in BOTH] == pytest.approx(expected, abs=1e-12)


def test_worked_example():
    # In order: hit, miss, hit, miss, miss. Recall 0 to 0.5 at precision 1, then at 2/3.
    scores, positive = np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([1, 0, 1, 0, 0], bool)
    assert eleven_point_average_precision(scores, positive) == pytest.approx((6 + 5 * 2 / 3) / 11)
    assert area_average_precision(scores, positive) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


@pytest.mark.parametrize("figure", BOTH)
def test_extremes(figure):
    positive = np.arange(10) < 3
    assert figure(-np.arange(10.0), positive) == 1
    assert figure(np.zeros(10), positive) == pytest.approx(0.3)
    assert np.isnan(figure(np.zeros(10), np.zeros(10, bool)))


@pytest.mark.parametrize("figure", BOTH)
def test_the_order_of_images_does_not_matter(figure):
    rng = np.random.default_rng(0)
    scores, positive = np.round(rng.random(40), 1), rng.random(40) < 0.5
    order = rng.permutation(40)
    assert figure(scores[order], positive[order]) == figure(scores, positive)
