"""A ring buffer of unit vectors: the negatives of contrastive learning (thesis 5.2.1)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from solojax.errors import InputError
from solojax.ops.vectors import l2_normalize
from solojax.structures import Array


def init_queue(rng: Array, length: int, width: int, dtype=jnp.float32) -> Array:
    """Random unit vectors (Q, E), uniform in direction.

    Args:
      rng: key.
      length: Q.
      width: E.
      dtype: of the vectors.
    """
    return l2_normalize(jax.random.normal(rng, (length, width), dtype))


def enqueue(queue: Array, position: Array, keys: Array, valid: Array) -> tuple[Array, Array]:
    """Puts keys in the places of the oldest vectors.

    The position moves by B whatever is valid: where a row is not, the old vector stays for another
    round, because the key of an image that could not be read is no negative worth having.

    Args:
      queue: (Q, E).
      position: () int32 in [0, Q), where the oldest vector lies.
      keys: (B, E) unit vectors.
      valid: (B,) bool.

    Returns:
      (queue, position), both new.

    Raises:
      InputError: B does not divide Q.
    """
    length, rows = queue.shape[0], keys.shape[0]
    if length % rows:
        raise InputError(
            f"a queue of {length} vectors does not take batches of {rows} keys; "
            f"make its length a multiple of {rows}"
        )
    # Modulo, not a slice: a run that goes on with another batch size may stand anywhere.
    places = (position + jnp.arange(rows, dtype=position.dtype)) % length
    kept = jnp.where(valid[:, None], keys.astype(queue.dtype), queue[places])
    queue = queue.at[places].set(kept, unique_indices=True, mode="promise_in_bounds")
    return queue, (position + rows) % length
