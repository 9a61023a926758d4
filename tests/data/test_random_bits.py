"""Raw bits and the choices made of them."""

from __future__ import annotations

import numpy as np

from solojax.data.random_bits import even_draws, permutation, philox


def test_blocks_of_a_stream():
    whole = philox(3, 1, 4).random_raw(40)
    np.testing.assert_array_equal(philox(3, 1, 4, counter=5).random_raw(20), whole[20:])
    assert not np.array_equal(philox(3, 1, 5).random_raw(40), whole)
    assert not np.array_equal(philox(4, 1, 4).random_raw(40), whole)


def test_even_draws():
    bits = np.array([0, 2**11 - 1, 2**11, 2**63, 2**64 - 1], np.uint64)
    expected = [0, 0, 2.0**-53, 0.5, 1 - 2.0**-53]
    np.testing.assert_array_equal(even_draws(bits), expected)


def test_permutations():
    orders = np.array([permutation(4, 7, 0, epoch) for epoch in range(2400)])
    assert (np.sort(orders) == range(4)).all()
    _, counts = np.unique(orders @ [64, 16, 4, 1], return_counts=True)
    assert len(counts) == 24 and ((counts - 100) ** 2 / 100).sum() < 49.7  # 0.1% of chi-square
