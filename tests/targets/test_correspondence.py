"""solojax.targets.correspondence against a loop, and with a permutation that is known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from solojax.targets.correspondence import match_cells, mutual_nearest, random_cells

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


def test_mutual_nearest_cells_by_two_loops():
    first, second = RNG.normal(size=(3, 7, 4)), RNG.normal(size=(3, 5, 4))
    matches, similarity = mutual_nearest(jnp.float32(first), jnp.float32(second))
    assert matches.shape == similarity.shape == (3, 7) and matches.dtype == jnp.int32
    found = 0
    for row in range(3):
        cosines = np.zeros((7, 5))
        for a in range(7):
            for b in range(5):
                x, y = first[row, a], second[row, b]
                cosines[a, b] = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
        for a in range(7):
            b = int(np.argmax(cosines[a]))
            mutual = int(np.argmax(cosines[:, b])) == a
            assert matches[row, a] == (b if mutual else -1)
            np.testing.assert_allclose(similarity[row, a], cosines[a, b], atol=1e-6)
            found += mutual
    assert 3 <= found < 21  # some are mutual, and not all


def test_mutual_nearest_cells_by_hand():
    """Directions in degrees: 0 and 10 both point to 2, which points back to 0; 88 and 90 match."""

    def directions(*degrees):
        return jnp.stack([jnp.cos(jnp.radians(jnp.array(degrees))),
                          jnp.sin(jnp.radians(jnp.array(degrees)))], axis=-1)[None]  # fmt: skip

    matches, similarity = mutual_nearest(directions(10.0, 0.0, 88.0), directions(90.0, 2.0, 45.0))
    np.testing.assert_array_equal(matches, [[-1, 1, 0]])
    np.testing.assert_allclose(similarity, np.cos(np.radians([[8, 2, 2]])), atol=1e-6)


def test_mutual_ties_go_to_the_first_and_permutations_match_wholly():
    features = RNG.normal(size=(1, 9, 16)).astype(np.float32)
    order = RNG.permutation(9)
    matches, similarity = mutual_nearest(features[:, order], 3 * features)
    np.testing.assert_array_equal(matches[0], order)
    np.testing.assert_allclose(similarity, 1, atol=1e-6)
    same = np.repeat(features[:, :1], 9, axis=1)
    matches, _ = mutual_nearest(same, same)
    np.testing.assert_array_equal(matches, [[0] + 8 * [-1]])
