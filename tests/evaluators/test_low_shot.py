"""Draws of a few images of each class."""

from __future__ import annotations

import numpy as np
import pytest

from solojax.evaluators.low_shot import low_shot_rows

SINGLE = np.eye(3, dtype=np.int8)[np.arange(30) % 3]
MULTI = np.random.default_rng(0).choice([-1, 0, 1], (60, 3), p=[0.2, 0.5, 0.3]).astype(np.int8)


def test_one_label_each():
    rows = low_shot_rows(SINGLE, 4, seed=0, repeat=0, multi_label=False)
    assert len(rows) == 3
    for chosen in rows:
        np.testing.assert_array_equal(chosen, rows[0])
    assert SINGLE[rows[0]].sum(axis=0).tolist() == [4, 4, 4]


def test_several_labels():
    rows = low_shot_rows(MULTI, 5, seed=0, repeat=0, multi_label=True)
    for label, chosen in enumerate(rows):
        shown = MULTI[chosen, label]
        assert (shown == 1).sum() == 5 and (shown == 0).sum() == 10 and len(chosen) == 15
        assert len(set(chosen.tolist())) == 15
    few = low_shot_rows(np.int8([[1, 1], [1, 0], [0, 1]]), 2, 0, 0, multi_label=True)
    assert [chosen.tolist() for chosen in few] == [[0, 1, 2], [0, 1, 2]]  # one negative each


@pytest.mark.parametrize("multi_label", [False, True])
def test_repeats_seeds_and_nesting(multi_label):
    targets = MULTI if multi_label else SINGLE

    def draw(shots=4, seed=0, repeat=0):
        drawn = low_shot_rows(targets, shots, seed, repeat, multi_label=multi_label)
        return [set(chosen.tolist()) for chosen in drawn]

    assert draw() == draw()
    assert draw() != draw(repeat=1) and draw() != draw(seed=1)
    assert all(few <= many for few, many in zip(draw(2), draw(4), strict=True))
