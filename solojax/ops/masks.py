"""Binary masks: bit packing, areas, intersection over union, centre of mass."""

from __future__ import annotations

import jax.numpy as jnp

from solojax.structures import Array


def pack_masks(masks: Array) -> Array:
    """Packs binary masks (..., h, w) to bits (..., h, ceil(w / 8)) uint8, as `np.packbits`."""
    return jnp.packbits(masks.astype(bool), axis=-1)


def unpack_masks(packed: Array, width: int | None = None) -> Array:
    """Undoes `pack_masks`: (..., h, w / 8) uint8 to (..., h, width) bool.

    Args:
      packed: bits, the leftmost pixel in the highest bit.
      width: columns to keep; all that the bytes hold when None.
    """
    return jnp.unpackbits(packed, axis=-1, count=width).astype(bool)


def mask_area(masks: Array) -> Array:
    """Number of foreground pixels: (..., h, w) bool to (...) float32."""
    return jnp.sum(masks, axis=(-2, -1), dtype=jnp.float32)


def mask_intersection(masks_a: Array, masks_b: Array) -> Array:
    """Pixels that two sets of binary masks share.

    Zeros and ones are exact in every matrix unit (bfloat16 inputs too) and sums are exact in
    float32 up to 2^24 pixels, so default matmul precision loses nothing.

    Args:
      masks_a: (..., M, h, w) bool.
      masks_b: (..., N, h, w) bool.

    Returns:
      (..., M, N) float32 counts.
    """
    a, b = masks_a.astype(jnp.float32), masks_b.astype(jnp.float32)
    return jnp.einsum("...mhw,...nhw->...mn", a, b, preferred_element_type=jnp.float32)


def iou_from_intersection(intersection: Array, area_a: Array, area_b: Array) -> Array:
    """Intersection over union from (..., M, N) intersections and areas (..., M), (..., N).

    Two empty masks have IoU 0 (the published code divides 0 by 0 there).
    """
    union = area_a[..., :, None] + area_b[..., None, :] - intersection
    return jnp.where(union > 0, intersection / jnp.maximum(union, 1.0), 0.0)


def mask_iou(masks_a: Array, masks_b: Array) -> Array:
    """Pairwise IoU of binary masks (..., M, h, w) and (..., N, h, w): (..., M, N) float32."""
    intersection = mask_intersection(masks_a, masks_b)
    return iou_from_intersection(intersection, mask_area(masks_a), mask_area(masks_b))


def center_of_mass(masks: Array) -> Array:
    """Centre of mass in pixel indices (no half-pixel offset), (..., h, w) to (..., 2) as (x, y).

    Soft masks weigh by value. An empty mask gives (0, 0).
    """
    weights = masks.astype(jnp.float32)
    total = jnp.maximum(jnp.sum(weights, axis=(-2, -1)), 1e-6)
    ys = jnp.arange(masks.shape[-2], dtype=jnp.float32)
    xs = jnp.arange(masks.shape[-1], dtype=jnp.float32)
    x = jnp.sum(weights.sum(-2) * xs, axis=-1) / total
    y = jnp.sum(weights.sum(-1) * ys, axis=-1) / total
    return jnp.stack([x, y], axis=-1)


def maskness(probabilities: Array, binary: Array) -> Array:
    """Mean probability inside the binary mask (thesis 4.2.4), 0 for an empty mask.

    Args:
      probabilities: (..., h, w) float in [0, 1].
      binary: (..., h, w) bool.

    Returns:
      (...) float32.
    """
    inside = jnp.sum(jnp.where(binary, probabilities, 0.0), axis=(-2, -1), dtype=jnp.float32)
    return inside / jnp.maximum(mask_area(binary), 1.0)
