"""Linear SVMs: the optimum, the choice of costs, what they learn."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold

from solojax.errors import InputError
from solojax.evaluators.linear_svm import (
    COSTS,
    choose_shared_cost,
    fit_linear_svm,
    unit_features,
)


def clusters(seed=0, count=60, classes=3, channels=6, noise=0.3):
    """Features around a centre for each class, and their labels in turn."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centers = 2 * np.eye(classes, channels)
    features = centers[labels] + noise * rng.standard_normal((count, channels))
    return unit_features(features), labels


def one_hot(labels):
    return labels[:, None] == np.arange(labels.max() + 1)


def test_features_have_length_one():
    vectors = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    unit = unit_features(vectors)
    assert unit.dtype == np.float64
    expected = (
        vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1)[:, None]
    )
    np.testing.assert_allclose(unit, expected, atol=1e-6)


@pytest.mark.parametrize("cost", [0.01, 1.0])
def test_it_is_the_optimum_of_the_published_objective(cost):
    features, labels = clusters(noise=1.0)
    positive = one_hot(labels)
    svm = fit_linear_svm(features, positive, costs=(cost,))
    assert svm.costs.tolist() == [cost] * 3
    extended = np.hstack([features, np.ones((len(features), 1))])
    for label in range(3):
        sign = np.where(positive[:, label], 1.0, -1.0)
        weight = cost * np.where(positive[:, label], 2.0, 1.0)
        solution = np.append(svm.weights[label], svm.biases[label])

        def gradient(w, sign=sign, weight=weight):
            slack = np.maximum(0, 1 - sign * (extended @ w))
            return w - 2 * (weight * sign * slack) @ extended

        at_start = np.linalg.norm(gradient(np.zeros(len(solution))))
        assert np.linalg.norm(gradient(solution)) < 1e-3 * at_start


def test_separable_classes_are_recovered_and_permuted_labels_are_not():
    train, labels = clusters(0)
    test, answers = clusters(1)
    shuffled = np.random.default_rng(0).permutation(labels)
    right, chance = (
        np.mean(
            fit_linear_svm(train, one_hot(given), costs=(1.0,)).decisions(test).argmax(1) == answers
        )
        for given in (labels, shuffled)
    )
    assert right == 1 and chance < 0.6


def test_each_class_has_the_cost_of_its_best_validation():
    features, labels = clusters(2, noise=1.5)
    costs = (1e-4, 0.03, 1.0, 30.0)
    svm = fit_linear_svm(features, one_hot(labels), costs=costs)
    for label in range(3):
        positive = labels == label
        means = []
        for cost in costs:
            figures = []
            for inside, outside in StratifiedKFold(3).split(features, positive):
                machine = fit_linear_svm(features[inside], positive[inside, None], costs=(cost,))
                scores = machine.decisions(features[outside])[:, 0]
                figures.append(average_precision_score(positive[outside], scores))
            means.append(np.mean(figures))
        assert svm.costs[label] == costs[int(np.argmax(means))]


def test_the_shared_cost_has_the_best_accuracy():
    features, labels = clusters(3, noise=1.5)
    costs = (1e-4, 0.03, 1.0, 30.0)
    means = []
    for cost in costs:
        figures = []
        for inside, outside in StratifiedKFold(3).split(features, labels):
            svm = fit_linear_svm(features[inside], one_hot(labels)[inside], costs=(cost,))
            found = svm.decisions(features[outside]).argmax(axis=1)
            figures.append(np.mean(found == labels[outside]))
        means.append(np.mean(figures))
    assert len(set(means)) > 1
    assert choose_shared_cost(features, labels, costs=costs) == costs[int(np.argmax(means))]
    assert choose_shared_cost(features, labels, costs=(5.0,)) == 5.0


def test_each_class_may_have_rows_of_its_own():
    features, labels = clusters(4, noise=1.0)
    rows = [np.arange(30), np.arange(10, 50), np.arange(60)]
    svm = fit_linear_svm(features, one_hot(labels), costs=(1.0,), rows=rows)
    for label, chosen in enumerate(rows):
        alone = fit_linear_svm(features[chosen], one_hot(labels)[chosen, label, None], costs=(1.0,))
        np.testing.assert_array_equal(svm.weights[label], alone.weights[0])


def test_the_published_costs():
    assert len(COSTS) == len(set(COSTS)) == 26
    assert {1e-7, 0.1, 100.0, 0.5**4, 0.5**19} <= set(COSTS)


def test_classes_with_too_few_examples():
    features, labels = clusters()
    positive = np.zeros((60, 1), bool)
    positive[:2] = True
    with pytest.raises(ValueError, match="2 positive examples: 3 are needed"):
        fit_linear_svm(features, positive, costs=(1.0, 2.0))
    with pytest.raises(ValueError, match="2 negative"):
        fit_linear_svm(features, ~positive, costs=(1.0, 2.0))
    assert fit_linear_svm(features, positive, costs=(1.0,)).weights.shape == (1, 6)


def test_without_scikit_learn(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "sklearn" else find(name, *a)
    )
    features, labels = clusters()
    with pytest.raises(InputError, match=r"scikit-learn .*pip install 'solojax\[probe\]'"):
        fit_linear_svm(features, one_hot(labels))
