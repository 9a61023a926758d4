"""Which cell of one view shows what a cell of the other view shows (thesis 5.2.4)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from solojax.ops.vectors import l2_normalize
from solojax.structures import Array


def match_cells(query_features: Array, key_features: Array) -> Array:
    """Every query cell's most similar key cell of the same image (equation 5.4).

    Args:
      query_features: (B, S, C), a vector a cell: of the backbone (max-sim F) or of the dense head
        (max-sim Theta).
      key_features: (B, T, C).

    Returns:
      (B, S) int32 in [0, T): argmax of the cosine, the first one where cells tie.
    """
    return jnp.argmax(_cosines(query_features, key_features), axis=2).astype(jnp.int32)


def mutual_nearest(features_a: Array, features_b: Array) -> tuple[Array, Array]:
    """The cells of two views that are each other's most similar one (thesis 5.3.4).

    "The match is kept if the same match holds from F_2 to F_1. Each match is assigned an averaged
    similarity": both directions have the same cosine, which is therefore their average.

    Args:
      features_a: (B, S, C), a vector a cell.
      features_b: (B, T, C), of the same images.

    Returns:
      matches (B, S) int32 in [0, T): the cell of b, or -1 where a cell of a is in no match; no cell
      of b occurs twice. Where cells tie the first one is nearest, in both directions.
      similarity (B, S) in [-1, 1]: the cosine of a cell of a and its nearest of b, matched or not.
    """
    cosine = _cosines(features_a, features_b)
    nearest = jnp.argmax(cosine, axis=2)
    back = jnp.take_along_axis(jnp.argmax(cosine, axis=1), nearest, axis=1)
    mutual = back == jnp.arange(cosine.shape[1])
    return jnp.where(mutual, nearest, -1).astype(jnp.int32), jnp.max(cosine, axis=2)


def _cosines(a: Array, b: Array) -> Array:
    """(B, S, C) and (B, T, C) to (B, S, T)."""
    # In float32 to the last bit also where matrix units are coarser: it costs next to nothing.
    return jnp.einsum(
        "bsc,btc->bst",
        l2_normalize(a),
        l2_normalize(b),
        precision=jax.lax.Precision.HIGHEST,
    )


def random_cells(rng: Array, rows: int, cells: int, choices: int) -> Array:
    """Cells drawn uniformly: the ablation of matching, and the choice of sampled negatives.

    Args:
      rng: key.
      rows: B.
      cells: S, how many are drawn for a row.
      choices: how many there are to draw from.

    Returns:
      (B, S) int32 in [0, choices).
    """
    return jax.random.randint(rng, (rows, cells), 0, choices, jnp.int32)
