"""Average precision of one class over images: the figure of PASCAL VOC's classification task."""

from __future__ import annotations

import numpy as np


def eleven_point_average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """PASCAL VOC 2007's: the mean of the best precision at recalls from 0, 0.1, ... to 1 on.

    Images of equal score are taken together, so that the order in which they come does not matter.

    Args:
      scores: (n,) float, higher where the class is more likely.
      positive: (n,) bool, whether the image shows the class.

    Returns:
      A number from 0 to 1; NaN where no image shows the class.
    """
    found, precision = _curve(scores, positive)
    total = np.sum(positive)
    if total == 0:
        return float("nan")
    # In whole numbers: 3 of 10 positives are recall 0.3, whatever binary fractions make of it.
    reached = [precision[found * 10 >= point * total] for point in range(11)]
    return float(np.mean([values.max(initial=0.0) for values in reached]))


def area_average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """The area under the best precision at every recall or a higher one.

    PASCAL VOC's figure from 2010 on, and what the published SVM figures of self-supervised
    backbones are (Goyal et al. 2019, arXiv:1905.01235). Arguments as in
    `eleven_point_average_precision`.
    """
    found, precision = _curve(scores, positive)
    total = np.sum(positive)
    if total == 0:
        return float("nan")
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(found, prepend=0) * best) / total)


def _curve(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positives found and precision at each distinct score, descending."""
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    ranked = np.asarray(scores, np.float64)[order]
    is_last = np.append(ranked[1:] != ranked[:-1], True)
    taken = np.arange(1, len(ranked) + 1)[is_last]
    found = np.cumsum(np.asarray(positive, np.int64)[order])[is_last]
    return found, found / taken
