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
    # In float32 to the last bit also where matrix units are coarser: it costs next to nothing.
    cosine = jnp.einsum(
        "bsc,btc->bst",
        l2_normalize(query_features),
        l2_normalize(key_features),
        precision=jax.lax.Precision.HIGHEST,
    )
    return jnp.argmax(cosine, axis=2).astype(jnp.int32)


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
