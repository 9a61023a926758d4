"""solojax.targets.correspondence against a loop, and with a permutation that is known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from solojax.targets.correspondence import match_cells, random_cells

RNG = np.random.default_rng(0)


def test_every_cell_finds_the_largest_cosine():
    query, key = RNG.normal(size=(2, 6, 5)), RNG.normal(size=(2, 4, 5))
    key[0, 2] *= 100  # length counts for nothing
    matches = match_cells(jnp.float32(query), jnp.float32(key))
    assert matches.shape == (2, 6) and matches.dtype == jnp.int32
    for row in range(2):
        for cell in range(6):
            cosines = [
                query[row, cell] @ other / np.linalg.norm(query[row, cell]) / np.linalg.norm(other)
                for other in key[row]
            ]
            assert matches[row, cell] == np.argmax(cosines)


def test_a_permuted_view_is_put_in_order_and_ties_go_to_the_first():
    features = RNG.normal(size=(1, 9, 16)).astype(np.float32)
    order = RNG.permutation(9)
    np.testing.assert_array_equal(match_cells(features[:, order], features)[0], order)
    same = np.repeat(features[:, :1], 9, axis=1)
    assert not np.any(match_cells(features, same))


def test_random_cells_are_uniform():
    cells = np.asarray(random_cells(jax.random.key(0), 500, 9, 9))
    assert cells.shape == (500, 9) and cells.dtype == np.int32
    np.testing.assert_allclose(np.bincount(cells.ravel(), minlength=9), 500, atol=5 * np.sqrt(500))
    assert not np.array_equal(cells, random_cells(jax.random.key(1), 500, 9, 9))
