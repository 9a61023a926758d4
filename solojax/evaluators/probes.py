"""What classifiers on frozen features achieve: nearest neighbours and linear SVMs.

Figures lie in [0, 1]. Of images with one class each: `accuracy`, the share whose highest score is
that of their class. Of images with several: `mAP_area`, the mean over the classes of the area under
the curve of precision over recall, which is what published VOC07 SVM figures are (82.9 for DenseCL,
Table 5.6 of the thesis), and `mAP`, the same of PASCAL VOC 2007's average precision at eleven
recalls. Images that are
undecided about a class are left out of its figure, and count as not showing it in training, both as
published.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from solojax.errors import InputError
from solojax.evaluators.average_precision import (
    area_average_precision,
    eleven_point_average_precision,
)
from solojax.evaluators.knn import knn_scores
from solojax.evaluators.linear_svm import (
    COSTS,
    LinearSVM,
    choose_shared_cost,
    fit_linear_svm,
    require_scikit_learn,
    unit_features,
)
from solojax.evaluators.low_shot import low_shot_rows

KNN, SVM = "knn", "svm"

Score = Callable[[np.ndarray], dict]  # (n, K) to figures
Advance = Callable[[int], object]


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Features with what their images show.

    Attributes:
      features: (n, C) float32.
      targets: (n, K) int: 1 shown, 0 absent, -1 undecided.
      source: where they come from, for messages.
    """

    features: np.ndarray
    targets: np.ndarray
    source: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """Which probes, and their parameters; the defaults are the published ones.

    Attributes:
      probes: of KNN and SVM.
      neighbors: k of the nearest neighbours.
      temperature: of their votes.
      costs: of the SVM, among which cross-validation chooses: for each class its own, or one for
        all where images have one class each.
      folds: of the cross-validation.
      shots: numbers of training images of a class, each a low-shot SVM.
      repeats: draws of those images, each with its own SVM.
      seed: of the draws.

    Raises:
      InputError: a value out of its range, or scikit-learn is missing.
    """

    probes: tuple[str, ...] = (KNN, SVM)
    neighbors: int = 20
    temperature: float = 0.07
    costs: tuple[float, ...] = COSTS
    folds: int = 3
    shots: tuple[int, ...] = ()
    repeats: int = 5
    seed: int = 0

    def __post_init__(self):
        if not self.probes or not set(self.probes) <= {KNN, SVM}:
            raise InputError(f"the probes are {', '.join(self.probes)}: give {KNN}, {SVM} or both")
        if self.shots and SVM not in self.probes:
            raise InputError(f"shots are of the probe {SVM}, which is not among the probes: add it")
        for name, least in (("neighbors", 1), ("folds", 2), ("repeats", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}: give {least} or more")
        for name in ("temperature", "costs", "shots"):
            values = np.atleast_1d(getattr(self, name))
            if not (np.isfinite(values) & (values > 0)).all():
                raise InputError(f"{name} is {getattr(self, name)}: give positive numbers")
        if not self.costs:
            raise InputError("there is no cost for the SVM: give at least one")
        if SVM in self.probes:
            require_scikit_learn()


def check_training_set(
    targets: np.ndarray, names: Sequence[str], source: str, settings: ProbeSettings
) -> None:
    """Raises an InputError where a training set is too small for the probes.

    Args:
      targets: (n, K) int, see `Examples`.
      names: of the classes.
      source: where the images come from.
      settings: of the probes.
    """
    if KNN in settings.probes and settings.neighbors > len(targets):
        raise InputError(
            f"{source}: k is {settings.neighbors} and there are {len(targets)} training images; "
            f"give --k {len(targets)} or less"
        )
    if SVM not in settings.probes:
        return
    least = settings.folds if len(settings.costs) > 1 else 1
    for name, column in zip(names, targets.T, strict=True):
        shown = int(np.sum(column == 1))
        for which, count in (("with", shown), ("without", len(column) - shown)):
            if count < least:
                raise InputError(
                    f"{source}: {count} training images {which} class '{name}', and the SVM needs "
                    f"{least} (one for each fold); give more images, fewer --folds, a single cost "
                    "by --costs, or --probes knn"
                )
        if settings.shots and shown < max(settings.shots):
            raise InputError(
                f"{source}: {max(settings.shots)} shots of class '{name}', which has {shown} "
                "training images; give fewer --shots"
            )
        if settings.shots and not np.any(column == 0):
            raise InputError(f"{source}: no training image is surely without class '{name}'")


def run_probes(
    train: Examples,
    test: Examples,
    names: Sequence[str],
    settings: ProbeSettings,
    *,
    multi_label: bool,
    advance: Advance = lambda count: None,
) -> dict:
    """The figures of all probes, as json has them.

    Args:
      train: what the probes learn from.
      test: what they are scored on.
      names: of the K classes.
      settings: which probes.
      multi_label: whether an image may show several classes, or none.
      advance: called with a number of SVMs whenever so many are trained; `count_svms` in all.

    Returns:
      {"knn": {figures, "k", "temperature"}, "svm": {figures, "costs": {class: cost}}, "low_shot":
      {shots: {...}}}, of what was asked for. Figures are {"accuracy": x}, or {"mAP_area": x,
      "mAP": x, "average_precision": {class: x or None}}. Low-shot figures are the mean and
      standard deviation over the draws at the cost with the best mean accuracy or mAP_area on the
      test set, as published, and the mean at each cost.

    Raises:
      InputError: the training set is too small, or no test image shows any class.
    """
    check_training_set(train.targets, names, train.source, settings)
    if not np.any(test.targets == 1):
        raise InputError(f"{test.source}: no test image shows any class; give others")

    def score(scores: np.ndarray) -> dict:
        if not multi_label:
            return {"accuracy": _accuracy(scores, test.targets)}
        return _average_precisions(scores, test.targets, names)

    figures = {}
    if KNN in settings.probes:
        figures[KNN] = _nearest_neighbors(train, test, settings, score)
    if SVM in settings.probes:
        train, test = (
            dataclasses.replace(each, features=unit_features(each.features))
            for each in (train, test)
        )
        machine = _full_svm(train, settings, multi_label, advance)
        costs = dict(zip(names, machine.costs.tolist(), strict=True))
        figures[SVM] = score(machine.decisions(test.features)) | {"costs": costs}
    if settings.shots:
        figures["low_shot"] = {
            str(shots): _low_shot(train, test, shots, settings, score, multi_label, advance)
            for shots in settings.shots
        }
    return figures


def count_svms(settings: ProbeSettings, num_classes: int) -> int:
    """How many SVMs `run_probes` trains."""
    costs = len(settings.costs)
    validated = (costs > 1) * costs * settings.folds
    low_shot = len(settings.shots) * settings.repeats * costs
    return (SVM in settings.probes) * (1 + validated + low_shot) * num_classes


def _nearest_neighbors(
    train: Examples, test: Examples, settings: ProbeSettings, score: Score
) -> dict:
    parameters = {"k": settings.neighbors, "temperature": settings.temperature}
    votes = np.float32(train.targets == 1)
    return score(knn_scores(test.features, train.features, votes, **parameters)) | parameters


def _full_svm(
    train: Examples, settings: ProbeSettings, multi_label: bool, advance: Advance
) -> LinearSVM:
    """Trained on everything, its costs found by cross-validation."""
    shared = {"folds": settings.folds, "advance": advance}
    costs = settings.costs
    if not multi_label:
        labels = np.argmax(train.targets == 1, axis=1)
        costs = (choose_shared_cost(train.features, labels, costs=costs, **shared),)
    return fit_linear_svm(train.features, train.targets == 1, costs=costs, **shared)


def _low_shot(
    train: Examples,
    test: Examples,
    shots: int,
    settings: ProbeSettings,
    score: Score,
    multi_label: bool,
    advance: Advance,
) -> dict:
    """Mean and deviation over the draws at the best cost, and the means at all."""
    draws = [
        low_shot_rows(train.targets, shots, settings.seed, repeat, multi_label=multi_label)
        for repeat in range(settings.repeats)
    ]
    by_cost: dict[float, list[dict[str, float]]] = {}
    for cost in settings.costs:
        machines = (
            fit_linear_svm(
                train.features, train.targets == 1, costs=(cost,), rows=rows, advance=advance
            )
            for rows in draws
        )
        by_cost[cost] = [_scalars(score(each.decisions(test.features))) for each in machines]
    kinds = tuple(by_cost[settings.costs[0]][0])
    means = {
        cost: {kind: float(np.mean([found[kind] for found in repeats])) for kind in kinds}
        for cost, repeats in by_cost.items()
    }
    chief = "mAP_area" if multi_label else "accuracy"
    best = max(means, key=lambda cost: means[cost][chief])
    deviations = {
        f"{kind}_std": float(np.std([found[kind] for found in by_cost[best]])) for kind in kinds
    }
    return {
        **means[best],
        **deviations,
        "cost": best,
        "repeats": settings.repeats,
        "by_cost": {repr(cost): mean for cost, mean in means.items()},
    }


def _scalars(figures: dict) -> dict[str, float]:
    return {name: value for name, value in figures.items() if isinstance(value, float)}


def _accuracy(scores: np.ndarray, targets: np.ndarray) -> float:
    labels = np.argmax(targets == 1, axis=1)
    return float(np.mean(np.argmax(scores, axis=1) == labels))


def _average_precisions(scores: np.ndarray, targets: np.ndarray, names: Sequence[str]) -> dict:
    """Means over the classes that a test image shows, and the eleven-point figure of each."""
    eleven, area = (
        [
            precision(column[decided >= 0], decided[decided >= 0] == 1)
            for column, decided in zip(scores.T, targets.T, strict=True)
        ]
        for precision in (eleven_point_average_precision, area_average_precision)
    )
    per_class = {
        name: None if np.isnan(value) else value for name, value in zip(names, eleven, strict=True)
    }
    return {
        "mAP_area": float(np.nanmean(area)),
        "mAP": float(np.nanmean(eleven)),
        "average_precision": per_class,
    }
