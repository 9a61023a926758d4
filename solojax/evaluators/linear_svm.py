"""A linear SVM for every class on frozen features: the VOC07 protocol.

That of Goyal et al. (2019, arXiv:1905.01235), whom the thesis follows (section 5.3.3): features of
length 1, L2-regularised squared hinge loss, positives weighing twice as much as negatives, the cost
of each class chosen by 3-fold cross-validation over its average precision. The published code
solves the dual problem by coordinates drawn at random; here the primal is solved, which needs no
random numbers: the same optimum within the solver's tolerance, and the same figures whatever the
number of threads.

Where the class of highest decision value is the answer (accuracy), all classes have one cost:
values of machines whose costs differ by decades cannot be compared.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from solojax.errors import InputError
from solojax.ops.vectors import l2_normalize

# Those that the published commands give, and those that the published code adds to them.
COSTS = (*(10.0**n for n in range(-7, 3)), *(0.5**n for n in range(4, 20)))
POSITIVE_WEIGHT = 2.0
_TOLERANCE, _MAX_ITERATIONS = 1e-4, 2000

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class LinearSVM:
    """A hyperplane for every class.

    Attributes:
      weights: (K, C) float64.
      biases: (K,) float64.
      costs: (K,) float64, what each was trained with.
    """

    weights: np.ndarray
    biases: np.ndarray
    costs: np.ndarray

    def decisions(self, features: np.ndarray) -> np.ndarray:
        """(n, C) `unit_features` to (n, K) float64 decision values."""
        return features @ self.weights.T + self.biases


def require_scikit_learn() -> None:
    """Raises an InputError unless the package that trains the SVMs is there."""
    if importlib.util.find_spec("sklearn") is None:
        raise InputError(
            "package scikit-learn is not installed, which trains the linear SVMs: run "
            "`pip install 'solojax[probe]'`, or leave them out with --probes knn"
        )


def unit_features(features: np.ndarray) -> np.ndarray:
    """(n, C) features as the SVMs take them: float64, divided by their length."""
    return np.asarray(l2_normalize(np.asarray(features, np.float32)), np.float64)


def fit_linear_svm(
    features: np.ndarray,
    positive: np.ndarray,
    *,
    costs: Sequence[float] = COSTS,
    folds: int = 3,
    rows: Sequence[np.ndarray] | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> LinearSVM:
    """Trains an SVM for every class against all others.

    The folds are made of the rows in their order, with equal shares of positives. Of costs with
    equal average precision the first is taken.

    Args:
      features: (n, C) of `unit_features`.
      positive: (n, K) bool; every class has a positive and a negative, with several costs one of
        each for every fold.
      costs: candidates for each class; nothing is validated where there is but one.
      folds: of the cross-validation.
      rows: for every class, those to train on; None for all.
      advance: called when a class is done, from any thread, with the number of machines that
        were trained for it.

    Raises:
      InputError: scikit-learn is missing.
      ValueError: a class has too few examples.
    """
    require_scikit_learn()

    def fit(label: int) -> tuple[np.ndarray, float, float]:
        chosen = slice(None) if rows is None else rows[label]
        x, y = features[chosen], np.where(positive[chosen, label], 1, -1)
        _check_counts(y, label, folds if len(costs) > 1 else 1)
        cost = costs[0] if len(costs) == 1 else _best_cost(x, y, costs, folds)
        machine = _machine(cost).fit(x, y)
        advance(1 + (len(costs) > 1) * len(costs) * folds)
        return machine.coef_[0], float(machine.intercept_[0]), cost

    fitted = _in_threads(fit, range(positive.shape[1]))
    weights, biases, chosen = zip(*fitted, strict=True)
    return LinearSVM(np.stack(weights), np.array(biases), np.array(chosen))


def choose_shared_cost(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    costs: Sequence[float] = COSTS,
    folds: int = 3,
    advance: Callable[[int], object] = lambda count: None,
) -> float:
    """The cost of the best mean accuracy in cross-validation, all classes having the same.

    Args:
      features: (n, C) of `unit_features`.
      labels: (n,) int, 0 to K - 1; each at least `folds` times.
      costs: candidates; of equals the first is taken.
      folds: made of the rows in their order, with equal shares of every class.
      advance: called when a fold is done, from any thread, with the number of machines.

    Raises:
      InputError: scikit-learn is missing.
    """
    if len(costs) == 1:
        return costs[0]
    require_scikit_learn()
    from sklearn.model_selection import StratifiedKFold

    splits = list(StratifiedKFold(folds).split(features, labels))
    classes = range(int(labels.max()) + 1)

    def accuracy(task: tuple[float, tuple[np.ndarray, np.ndarray]]) -> float:
        cost, (inside, outside) = task
        decisions = [
            _machine(cost)
            .fit(features[inside], np.where(labels[inside] == label, 1, -1))
            .decision_function(features[outside])
            for label in classes
        ]
        advance(len(classes))
        return float(np.mean(np.argmax(decisions, axis=0) == labels[outside]))

    found = _in_threads(accuracy, [(cost, split) for cost in costs for split in splits])
    return costs[int(np.argmax(np.reshape(found, (len(costs), folds)).mean(axis=1)))]


def _in_threads(function: Callable, arguments: Iterable) -> list:
    """What the function makes of each argument, in order; the solver gives up Python's lock."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            results = list(threads.map(function, arguments))
    _report(caught)
    return results


def _check_counts(y: np.ndarray, label: int, least: int) -> None:
    for name, count in (("positive", np.sum(y > 0)), ("negative", np.sum(y < 0))):
        if count < least:
            raise ValueError(f"class {label} has {count} {name} examples: {least} are needed")


def _machine(cost: float):
    from sklearn.svm import LinearSVC

    return LinearSVC(
        C=cost,
        penalty="l2",
        loss="squared_hinge",
        dual=False,
        class_weight={1: POSITIVE_WEIGHT, -1: 1.0},
        intercept_scaling=1.0,
        tol=_TOLERANCE,
        max_iter=_MAX_ITERATIONS,
    )


def _best_cost(x: np.ndarray, y: np.ndarray, costs: Sequence[float], folds: int) -> float:
    from sklearn.model_selection import cross_val_score

    means = [
        cross_val_score(_machine(cost), x, y, cv=folds, scoring="average_precision").mean()
        for cost in costs
    ]
    return costs[int(np.argmax(means))]


def _report(caught: list[warnings.WarningMessage]) -> None:
    """One line for all fits that did not converge; other warnings as they came."""
    from sklearn.exceptions import ConvergenceWarning

    unfinished = [each for each in caught if issubclass(each.category, ConvergenceWarning)]
    if unfinished:
        _logger.warning(
            "%d SVMs did not converge within %d iterations (folds and costs counted)",
            len(unfinished),
            _MAX_ITERATIONS,
        )
    for each in caught:
        if each not in unfinished:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
