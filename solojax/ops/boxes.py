"""Boxes: formats, areas, and the tight boxes of masks."""

from __future__ import annotations

import jax.numpy as jnp

from solojax.structures import Array


def box_xyxy_to_xywh(boxes: Array) -> Array:
    """Turns corners (x1, y1, x2, y2) into COCO's (x, y, width, height). Shape (..., 4)."""
    return jnp.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)


def box_xywh_to_xyxy(boxes: Array) -> Array:
    """Turns COCO's (x, y, width, height) into corners (x1, y1, x2, y2). Shape (..., 4)."""
    return jnp.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


def box_area(boxes_xyxy: Array) -> Array:
    """Width times height of xyxy boxes, shape (..., 4) to (...)."""
    size = boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]
    return size[..., 0] * size[..., 1]


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
