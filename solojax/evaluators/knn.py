"""Classes by the nearest training images: a weighted vote by cosine similarity.

As Wu et al. (2018, arXiv:1805.01978) evaluate features without training anything on them.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from solojax.ops.vectors import l2_normalize
from solojax.structures import Array


def nearest_neighbors(
    test: np.ndarray,
    train: np.ndarray,
    k: int,
    *,
    test_block: int = 256,
    train_block: int = 4096,
) -> tuple[np.ndarray, np.ndarray]:
    """The k training vectors of highest cosine similarity to each test vector.

    Only (test_block, train_block) similarities are there at a time.

    Args:
      test: (n, C) float.
      train: (m, C) float.
      k: from 1 to m.
      test_block: rows of `test` taken together.
      train_block: likewise of `train`.

    Returns:
      (n, k) float32 similarities, descending, and (n, k) int32 rows of `train`; of equals the
      earlier row comes first.
    """
    if not 1 <= k <= len(train):
        raise ValueError(f"k is {k}: there are {len(train)} training vectors")
    train_block = min(train_block, len(train))
    blocks = _in_blocks(jnp.asarray(train, jnp.float32), train_block)
    starts = jnp.arange(len(blocks), dtype=jnp.int32) * train_block
    test_block = min(test_block, len(test))
    found = [
        jax.device_get(_nearest(rows, blocks, starts, jnp.int32(len(train)), k))
        for rows in _in_blocks(np.asarray(test, np.float32), test_block)
    ]
    similarities, rows = (np.concatenate(parts)[: len(test)] for parts in zip(*found, strict=True))
    return similarities, rows


def knn_scores(
    test: np.ndarray,
    train: np.ndarray,
    targets: np.ndarray,
    *,
    k: int = 20,
    temperature: float = 0.07,
    **blocks: int,
) -> np.ndarray:
    """What the k nearest training images say of each test image.

    A neighbour of similarity s votes with weight exp(s / temperature), and the votes of an image
    add up to one, so that they can be compared between images.

    Args:
      test: (n, C) float.
      train: (m, C) float.
      targets: (m, K) float, what each training image votes for, such as 0 and 1.
      k: neighbours.
      temperature: above 0.
      blocks: of `nearest_neighbors`.

    Returns:
      (n, K) float32.
    """
    similarities, rows = nearest_neighbors(test, train, k, **blocks)
    weights = np.exp((similarities - similarities[:, :1]) / np.float32(temperature))
    weights /= weights.sum(axis=1, keepdims=True)
    scores = np.zeros((len(rows), targets.shape[1]), np.float32)
    for place in range(k):  # not all at once, which would be (n, k, K)
        scores += weights[:, place, None] * targets[rows[:, place]]
    return scores


def _in_blocks(vectors, size: int):
    """(n, C) to (blocks, size, C), filled up with zeros."""
    numpy = jnp if isinstance(vectors, jax.Array) else np
    missing = -len(vectors) % size
    return numpy.pad(vectors, ((0, missing), (0, 0))).reshape(-1, size, vectors.shape[1])


@functools.partial(jax.jit, static_argnames="k")
def _nearest(
    test: Array, blocks: Array, starts: Array, count: Array, k: int
) -> tuple[Array, Array]:
    """Similarities and rows (b, k) of vectors (b, C) among the first `count` of all blocks."""
    test = l2_normalize(test)

    def merge(best, block):
        vectors, start = block
        rows = start + jnp.arange(len(vectors), dtype=jnp.int32)
        similarity = jnp.einsum(
            "nc,mc->nm", test, l2_normalize(vectors), precision=jax.lax.Precision.HIGHEST
        )
        similarity = jnp.where(rows < count, similarity, -jnp.inf)
        rows = jnp.broadcast_to(rows, similarity.shape)
        # What was found before stands first: `top_k` prefers it among equals.
        similarity, rows = (
            jnp.concatenate(pair, axis=1) for pair in zip(best, (similarity, rows), strict=True)
        )
        similarity, places = jax.lax.top_k(similarity, k)
        return (similarity, jnp.take_along_axis(rows, places, axis=1)), None

    nothing = jnp.full((len(test), k), -jnp.inf), jnp.zeros((len(test), k), jnp.int32)
    return jax.lax.scan(merge, nothing, (blocks, starts))[0]
