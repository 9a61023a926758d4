"""The tight boxes of masks."""

from __future__ import annotations

import jax.numpy as jnp

from solojax.structures import Array


def boxes_from_masks(masks: Array) -> Array:
    """Tight xyxy boxes around binary masks, in pixel edges; all zero for an empty mask.

    Args:
      masks: (..., h, w) bool.

    Returns:
      (..., 4) float32: a single pixel (y, x) gives (x, y, x + 1, y + 1).
    """
    height, width = masks.shape[-2:]
    columns, rows = jnp.any(masks, axis=-2), jnp.any(masks, axis=-1)
    x1, y1 = jnp.argmax(columns, axis=-1), jnp.argmax(rows, axis=-1)
    x2 = width - jnp.argmax(columns[..., ::-1], axis=-1)
    y2 = height - jnp.argmax(rows[..., ::-1], axis=-1)
    boxes = jnp.stack([x1, y1, x2, y2], axis=-1).astype(jnp.float32)
    return jnp.where(jnp.any(columns, axis=-1)[..., None], boxes, 0.0)
