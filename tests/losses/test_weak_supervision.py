"""solojax.losses.weak_supervision against loops, and gradients against differences."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import plain_weak_losses as plain
from helpers.edge_terms import edge_terms
from helpers.plain_layers import sigmoid

from solojax.losses.weak_supervision import (
    count_edges,
    embedding_loss,
    pairwise_loss,
    projection_loss,
)
from solojax.ops.neighbors import unfold_neighbors
from solojax.ops.projections import project_max, project_mean

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (2, 4, 9, 11)).astype(np.float32)
COARSE = RNG.random((2, 4, 9, 11)) < 0.04
SIMILARITY = RNG.random((2, 8, 9, 11))
# As colours have it: none of a neighbour outside.
EDGES = (SIMILARITY >= 0.3) & np.asarray(unfold_neighbors(np.ones((9, 11)), dilation=2), bool)
SHADOW = tuple(np.asarray(x) for x in project_max(COARSE))


def test_projections():
    probabilities = sigmoid(LOGITS).astype(np.float32)
    for project, reduce in ((project_max, np.max), (project_mean, np.mean)):
        found = projection_loss(project(probabilities), project(COARSE))
        for index in np.ndindex(2, 4):
            wanted = plain.projection(probabilities[index], COARSE[index], reduce)
            np.testing.assert_allclose(found[index], wanted, rtol=1e-5)
    same = projection_loss(project_max(COARSE * 1.0), project_max(COARSE))
    np.testing.assert_allclose(same, 0, atol=1e-5)
    empty = jnp.zeros((9, 11))
    assert projection_loss(project_mean(empty), project_mean(empty)) == 2


def test_pairwise_sums_and_counts():
    found = pairwise_loss(LOGITS, EDGES, *SHADOW)
    counts = count_edges(EDGES, *SHADOW)
    assert found.shape == (2, 4)
    for row, mask in np.ndindex(2, 4):
        similarity = np.where(EDGES[row], SIMILARITY[row], 0)
        total, count = plain.pairwise(LOGITS[row, mask], similarity, COARSE[row, mask])
        np.testing.assert_allclose(found[row, mask], total, rtol=1e-5)
        assert counts[row, mask] == count
    assert counts.min() > 0


def test_gradients_are_differences():
    with jax.enable_x64(True):
        logits = jnp.asarray(LOGITS[:, :1], jnp.float64)
        shadow = tuple(x[:, :1] for x in SHADOW)

        def loss(x):
            return jnp.sum(pairwise_loss(x, EDGES, *shadow))

        gradient, step = jax.grad(loss)(logits), 1e-5
        for index in [(0, 0, 0, 0), (0, 0, 4, 5), (1, 0, 8, 10), (1, 0, 3, 0), (0, 0, 6, 7)]:
            change = jnp.zeros_like(logits).at[index].set(step)
            wanted = (loss(logits + change) - loss(logits - change)) / (2 * step)
            np.testing.assert_allclose(gradient[index], wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dilation", [1, 2])
def test_the_gradient_that_is_written_out_is_the_one_that_jax_derives(dilation):
    """At every pixel, those of the border too, and with weights of the masks."""
    with jax.enable_x64(True):
        logits, weights = jnp.asarray(LOGITS, jnp.float64), jnp.asarray(RNG.normal(size=(2, 4)))
        inside = unfold_neighbors(np.ones((9, 11)), dilation=dilation)
        edges = (SIMILARITY >= 0.3) & np.asarray(inside, bool)
        found, wanted = (
            jax.grad(lambda x, f=f: jnp.sum(weights * f(x, edges, *SHADOW, dilation)))(logits)
            for f in (pairwise_loss, pairwise_loss.fun)
        )
        assert np.count_nonzero(wanted) > 200
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [0.0, 40.0, 1e4])
def test_extreme_logits(size):
    """Neighbours that agree cost nothing, and one against the other -log 2 p (1 - p)."""
    logits = np.full((1, 6, 6), size, np.float32)
    logits[..., 3:] *= -1
    terms = np.asarray(edge_terms(logits, dilation=1))
    gradient = jax.grad(lambda x: jnp.sum(edge_terms(x, dilation=1)))(logits)
    assert np.isfinite(terms).all() and np.isfinite(gradient).all()
    assert terms.min() >= -1e-6
    right = terms[0, 4]  # (0, 1), from left to right
    np.testing.assert_allclose(right[2, 2], size - np.log(2) if size else np.log(2), rtol=1e-6)
    np.testing.assert_allclose(right[2, 0], 0 if size else np.log(2), atol=1e-6, rtol=1e-6)
    np.testing.assert_array_equal(right[:, 5], 0)  # no neighbour


def test_embeddings():
    predicted, wanted = RNG.normal(size=(2, 3, 5, 16)).astype(np.float32)
    found = embedding_loss(predicted, wanted)
    for index in np.ndindex(3, 5):
        expected = plain.one_minus_cosine(predicted[index], wanted[index])
        np.testing.assert_allclose(found[index], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(embedding_loss(wanted, 7 * wanted), 0, atol=1e-6)
    np.testing.assert_allclose(embedding_loss(-2 * wanted, wanted), 2, atol=1e-6)
    gradient = jax.grad(lambda x: jnp.sum(embedding_loss(x, wanted)))(jnp.zeros_like(predicted))
    assert np.isfinite(gradient).all()
