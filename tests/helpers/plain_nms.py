"""Every kind of non-maximum suppression as loops over its definition, in float64."""

from __future__ import annotations

import math

import numpy as np


def points_nms(scores):
    """Keeps a score (S, S, K) that no upper, left or upper-left neighbour of its class exceeds."""
    out = np.zeros_like(scores)
    side, _, classes = scores.shape
    for i in range(side):
        for j in range(side):
            for k in range(classes):
                rivals = [
                    scores[i - di, j - dj, k]
                    for di, dj in ((1, 0), (0, 1), (1, 1))
                    if i >= di and j >= dj
                ]
                if all(scores[i, j, k] >= rival for rival in rivals):
                    out[i, j, k] = scores[i, j, k]
    return out


def matrix_nms(iou, labels, scores, kernel="gaussian", sigma=2.0):
    """Equations 4.3 and 4.4 for objects in descending order of score; exp(-sigma iou^2)."""

    def decreasing(value):
        return math.exp(-sigma * value**2) if kernel == "gaussian" else 1.0 - value

    decayed = []
    for j in range(len(scores)):
        factors = [1.0]
        for i in range(j):
            if labels[i] != labels[j]:
                continue
            # How far object i is itself suppressed: equation 4.3.
            own = [decreasing(iou[k][i]) for k in range(i) if labels[k] == labels[i]]
            suppressed = min(own, default=1.0)
            if suppressed > 0:  # an object that is wholly suppressed decays nobody
                factors.append(decreasing(iou[i][j]) / suppressed)
        decayed.append(scores[j] * min(factors))
    return np.array(decayed)


def hard_nms(iou, labels, scores, threshold=0.5):
    """Takes the best that is left and drops what overlaps it, until nothing is left."""
    kept, left = np.zeros(len(scores)), list(range(len(scores)))
    while left:
        best = left.pop(0)
        kept[best] = scores[best]
        left = [j for j in left if labels[j] != labels[best] or iou[best][j] <= threshold]
    return kept


def soft_nms(iou, labels, scores, kernel="gaussian", sigma=0.5, threshold=0.3):
    """Takes the best that is left and decays the rest by it, ranked anew, until nothing is left."""
    scores, left = [float(score) for score in scores], list(range(len(scores)))
    while left:
        best = max(left, key=lambda j: scores[j])
        left.remove(best)
        for j in left:
            if labels[j] != labels[best]:
                continue
            if kernel == "gaussian":
                scores[j] *= math.exp(-(iou[best][j] ** 2) / sigma)
            elif iou[best][j] > threshold:
                scores[j] *= 1 - iou[best][j]
    return np.array(scores)


def fast_nms(iou, labels, scores, threshold=0.5):
    """Drops what overlaps any better object of its class, dropped ones included."""
    kept = np.array(scores, np.float64)
    for j in range(len(scores)):
        for i in range(j):
            if labels[i] == labels[j] and iou[i][j] > threshold:
                kept[j] = 0
    return kept


def mask_iou(mask_a, mask_b):
    """Shared pixels over covered pixels, pixel by pixel; 0 for two empty masks."""
    shared = covered = 0
    for a, b in zip(np.ravel(mask_a), np.ravel(mask_b), strict=True):
        shared += bool(a and b)
        covered += bool(a or b)
    return shared / covered if covered else 0.0
