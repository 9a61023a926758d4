"""What `pairwise_loss` says of every edge by itself."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from solojax.losses.weak_supervision import pairwise_loss


def edge_terms(logits, *, dilation):
    """(N, h, w) logits to (N, 8, h, w): a mask for every pixel, whose box is that pixel alone."""
    count, height, width = logits.shape
    masks = (8 * count, height * width)
    directions = np.tile(np.eye(8, dtype=bool)[..., None, None], (count, 1, height, width))
    columns = np.tile(np.eye(width, dtype=bool), (height, 1))
    rows = np.repeat(np.eye(height, dtype=bool), width, axis=0)
    sums = pairwise_loss(
        jnp.broadcast_to(jnp.repeat(logits, 8, axis=0)[:, None], (*masks, height, width)),
        directions,
        np.broadcast_to(columns, (*masks, width)),
        np.broadcast_to(rows, (*masks, height)),
        dilation=dilation,
    )
    return sums.reshape(count, 8, height, width)
