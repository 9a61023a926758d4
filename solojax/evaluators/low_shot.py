"""Which images a classifier gets to see that learns from a few of each class.

As Goyal et al. (2019, arXiv:1905.01235) draw them: for every class some positives, and K - 1 times
as many negatives. Here the draws of one repeat are nested: its 4 images are among its 8.
"""

from __future__ import annotations

import numpy as np


def low_shot_rows(
    targets: np.ndarray, shots: int, seed: int, repeat: int, *, multi_label: bool
) -> list[np.ndarray]:
    """Draws the training rows of every class.

    With several labels in an image each class has its own draw: `shots` images that show it, and
    (K - 1) `shots` of those that surely do not (all, where there are fewer). With one label each,
    all classes share one draw of `shots` images of each.

    Args:
      targets: (n, K) int: 1 shown, 0 absent, -1 undecided.
      shots: 1 or more; no more than a class has.
      seed: non-negative integer; another repeat is another draw of the same seed.
      repeat: non-negative integer.
      multi_label: see above.

    Returns:
      K arrays of sorted rows.
    """
    classes = targets.shape[1]
    shown = [_draw(targets[:, label] == 1, shots, seed, repeat, label) for label in range(classes)]
    if not multi_label:
        return [np.sort(np.concatenate(shown))] * classes
    wanted = (classes - 1) * shots
    absent = [
        _draw(targets[:, label] == 0, wanted, seed, repeat, classes + label)
        for label in range(classes)
    ]
    return [np.sort(np.concatenate(pair)) for pair in zip(shown, absent, strict=True)]


def _draw(candidates: np.ndarray, count: int, *key: int) -> np.ndarray:
    return np.random.default_rng(key).permutation(np.flatnonzero(candidates))[:count]
