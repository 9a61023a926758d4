"""What all heads are made of: towers of blocks, and the category branch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from solojax.errors import InputError
from solojax.models.layers import Conv, ConvNormRelu
from solojax.models.rematerialisation import rematerialised
from solojax.ops.resize import downsample_mean_2x, resize_bilinear
from solojax.structures import Array

CATEGORY_PRIOR = 0.01
NORMAL = nn.initializers.normal(0.01)
PRIOR = nn.initializers.constant(-math.log((1 - CATEGORY_PRIOR) / CATEGORY_PRIOR))


def head_levels(pyramid: Sequence[Array]) -> tuple[Array, ...]:
    """P2..P6 as the head reads them: P2 halved, P6 resized to P5's size.

    So the strides become 8, 8, 16, 32, 32: a grid of 12 cells wants no fewer features than cells.
    A single map (a network without pyramid) is taken as it is.
    """
    if len(pyramid) == 1:
        return tuple(pyramid)
    first, *middle, last = pyramid
    height, width = middle[-1].shape[1:3]
    return (downsample_mean_2x(first), *middle, resize_bilinear(last, height, width))


def make_tower(
    num_convs: int,
    channels: int,
    *,
    deformable: str = "none",
    deformable_convs: int = 1,
    remat: str = "none",
    dtype: Any = None,
) -> list[ConvNormRelu]:
    """Blocks of a tower, to be assigned in a module's `setup`.

    Args:
      num_convs: blocks.
      channels: of every block.
      deformable: the last blocks' convolutions: "none", "v1" or "v2", see `ConvNormRelu`.
      deformable_convs: how many blocks those are.
      remat: what of the blocks' activations is computed again, see `rematerialised`.
      dtype: compute type.
    """
    first = num_convs - deformable_convs
    block_class = rematerialised(ConvNormRelu, remat)
    return [
        block_class(channels, deformable=deformable if i >= first else "none", dtype=dtype)
        for i in range(num_convs)
    ]


def make_category_pred(num_classes: int, *, dtype: Any = None) -> Conv:
    """The 3x3 convolution to class logits, whose bias starts at a probability of 0.01."""
    return Conv(num_classes, kernel_init=NORMAL, bias_init=PRIOR, dtype=dtype)


def category_logits(
    levels: Sequence[Array],
    num_grids: Sequence[int],
    tower: Sequence[Callable],
    pred: Callable,
    align: Callable,
    at: int,
) -> Array:
    """The category branch, the same on every level (thesis 3.2.2): `category_outputs` of one pred.

    Args: see `category_outputs`.

    Returns:
      (B, G, K), cells in row-major order per level, float32 (float64 for float64 features).
    """
    (logits,) = category_outputs(levels, num_grids, tower, [pred], align, at)
    return logits


def category_outputs(
    levels: Sequence[Array],
    num_grids: Sequence[int],
    tower: Sequence[Callable],
    preds: Sequence[Callable],
    align: Callable,
    at: int,
) -> list[Array]:
    """All that the category branch predicts, the same on every level (thesis 3.2.2 and 6.2.3).

    Args:
      levels: L feature maps (B, h_l, w_l, C).
      num_grids: S of every level.
      tower: its blocks.
      preds: the last convolutions, side by side.
      align: (features, S) to features on the grid, (B, S, S, C).
      at: blocks that run before the features are aligned.

    Returns:
      (B, G, channels) of every pred, cells in row-major order per level, float32 (float64 for
      float64 features).
    """
    if not 0 <= at < len(tower):
        raise InputError(
            f"the category branch has {len(tower)} blocks and cannot be aligned to the grid after "
            f"{at}; choose 0 to {len(tower) - 1}"
        )
    outputs: list[list[Array]] = [[] for _ in preds]
    for features, side in zip(levels, num_grids, strict=True):
        for block in tower[:at]:
            features = block(features)
        features = align(features, side)
        for block in tower[at:]:
            features = block(features)
        for cells, pred in zip(outputs, preds, strict=True):
            cells.append(flatten_cells(pred(features)))
    return [jnp.concatenate(cells, axis=1) for cells in outputs]


def flatten_cells(x: Array) -> Array:
    """(B, S, S, C) to (B, S^2, C) in float32 at least."""
    return at_least_float32(x.reshape(x.shape[0], -1, x.shape[-1]))


def at_least_float32(x: Array) -> Array:
    """Logits leave a network in float32, whatever it computes in."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
