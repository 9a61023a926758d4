"""From a network's outputs to masks: one decoding for training and for inference."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp

from solojax.errors import InputError
from solojax.ops.dynamic_conv import dynamic_conv_3x3
from solojax.ops.picking import pick_rows
from solojax.ops.resize import resize_bilinear
from solojax.structures import Array, DecoupledMasks, DirectMasks, DynamicMasks, Masks


def decode_dynamic(kernels: Array, features: Array) -> Array:
    """Dynamic 1x1 convolution: every kernel over the whole map (thesis 4.2.1, equation 4.1).

    Args:
      kernels: (B, P, E).
      features: (B, h, w, E).

    Returns:
      (B, P, h, w) mask logits, float32 (float64 for float64 inputs).
    """
    accumulate = jnp.promote_types(features.dtype, jnp.float32)
    return jnp.einsum("bpe,bhwe->bphw", kernels, features, preferred_element_type=accumulate)


@functools.singledispatch
def count_cells(masks: Masks) -> int:
    """Number of cells that a group of masks covers."""
    raise TypeError(f"{type(masks).__name__} is no group of masks")


def groups_with_offsets(groups: Sequence[Masks]) -> Iterator[tuple[int, Masks]]:
    """Every group of masks with the number of its first cell."""
    offset = 0
    for masks in groups:
        yield offset, masks
        offset += count_cells(masks)


@functools.singledispatch
def map_size(masks: Masks) -> tuple[int, int]:
    """(h, w) of a group's masks."""
    return masks.features.shape[1:3]


@functools.singledispatch
def mask_logits(masks: Masks, cells: Array) -> Array:
    """Logits of some cells' masks.

    Args:
      masks: a group.
      cells: (B, P) int32, counted from the group's first.

    Returns:
      (B, P, h, w) float32 (float64 for float64 outputs).

    Raises:
      InputError: for decoupled masks, which are products of probabilities.
    """
    raise InputError(
        f"{type(masks).__name__} has no mask logits; choose a mask loss on probabilities "
        "(loss.mask=dice)"
    )


@functools.singledispatch
def mask_probabilities(masks: Masks, cells: Array, size: tuple[int, int] | None = None) -> Array:
    """Probabilities of some cells' masks.

    Args:
      masks: a group.
      cells: (B, P) int32, counted from the group's first.
      size: (h, w) to which probabilities are resized, bilinearly and, for decoupled masks, before
        the product, as published; the group's own when None.

    Returns:
      (B, P, h, w) float32 (float64 for float64 outputs).
    """
    return _resize(jax.nn.sigmoid(mask_logits(masks, cells)), size)


@count_cells.register
def _(masks: DynamicMasks) -> int:
    return masks.kernels.shape[1]


@count_cells.register
def _(masks: DirectMasks) -> int:
    return masks.kernel.shape[1]


@count_cells.register
def _(masks: DecoupledMasks) -> int:
    return masks.x.shape[-1] * masks.y.shape[-1]


@map_size.register
def _(masks: DecoupledMasks) -> tuple[int, int]:
    return masks.x.shape[1:3]


@mask_logits.register
def _(masks: DynamicMasks, cells: Array) -> Array:
    kernels = pick_rows(masks.kernels, cells)
    if kernels.shape[-1] == masks.features.shape[-1]:
        return decode_dynamic(kernels, masks.features)
    return dynamic_conv_3x3(kernels, masks.features)


@mask_logits.register
def _(masks: DirectMasks, cells: Array) -> Array:
    logits = decode_dynamic(masks.kernel.T[cells], masks.features)
    return logits + masks.bias[cells][..., None, None]


@mask_probabilities.register
def _(masks: DecoupledMasks, cells: Array, size: tuple[int, int] | None = None) -> Array:
    side = masks.x.shape[-1]
    x = _resize(jax.nn.sigmoid(_pick_maps(masks.x, cells % side)), size)
    y = _resize(jax.nn.sigmoid(_pick_maps(masks.y, cells // side)), size)
    return x * y


def _pick_maps(maps: Array, index: Array) -> Array:
    """Channels of (B, h, w, S) at (B, P) indices: (B, P, h, w)."""
    return pick_rows(jnp.moveaxis(maps, -1, 1), index)


def _resize(maps: Array, size: tuple[int, int] | None) -> Array:
    """Bilinear resize of (B, P, h, w)."""
    if size is None or maps.shape[-2:] == tuple(size):
        return maps
    flat = maps.reshape(-1, *maps.shape[-2:], 1)
    return resize_bilinear(flat, *size).reshape(*maps.shape[:2], *size)
