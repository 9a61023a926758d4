"""The SOLOv2 head: a category and a mask kernel for every cell of every grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from solojax.errors import InputError
from solojax.models.layers import Conv, ConvNormRelu
from solojax.ops.coords import append_coordinates
from solojax.ops.resize import downsample_mean_2x, resize_bilinear
from solojax.structures import Array

SEMANTICS = ("release", "thesis")
CATEGORY_PRIOR = 0.01


def head_levels(pyramid: Sequence[Array]) -> tuple[Array, ...]:
    """P2..P6 as the head reads them: P2 halved, P6 resized to P5's size.

    So the strides become 8, 8, 16, 32, 32: a grid of 12 cells wants no fewer features than cells.
    """
    first, *middle, last = pyramid
    height, width = middle[-1].shape[1:3]
    return (downsample_mean_2x(first), *middle, resize_bilinear(last, height, width))


class SOLOv2Head(nn.Module):
    """Category and kernel branches, shared by all levels (thesis 4.2.1).

    Attributes:
      num_classes: K.
      num_grids: S of every level.
      num_convs: blocks per tower.
      channels: of the towers.
      kernel_channels: E, numbers per predicted kernel.
      semantics: "release": coordinates join the features before both are resized to the grid;
        "thesis": the features are resized first.
      dtype: compute type of the towers; logits and kernels come out in float32.
    """

    num_classes: int
    num_grids: Sequence[int]
    num_convs: int = 4
    channels: int = 512
    kernel_channels: int = 256
    semantics: str = "release"
    dtype: Any = None

    def setup(self):
        """Builds the towers once; every level runs through the same ones."""
        if self.semantics not in SEMANTICS:
            raise InputError(
                f"head semantics {self.semantics!r} is unknown; use one of {', '.join(SEMANTICS)}"
            )
        normal = nn.initializers.normal(0.01)
        prior = nn.initializers.constant(-math.log((1 - CATEGORY_PRIOR) / CATEGORY_PRIOR))
        self.category_tower = [
            ConvNormRelu(self.channels, dtype=self.dtype) for _ in range(self.num_convs)
        ]
        self.kernel_tower = [
            ConvNormRelu(self.channels, dtype=self.dtype) for _ in range(self.num_convs)
        ]
        self.category_pred = Conv(
            self.num_classes, kernel_init=normal, bias_init=prior, dtype=self.dtype
        )
        self.kernel_pred = Conv(self.kernel_channels, kernel_init=normal, dtype=self.dtype)

    def __call__(self, levels: Sequence[Array]) -> tuple[Array, Array]:
        """Predicts for every cell.

        Args:
          levels: L feature maps (B, h_l, w_l, C), see `head_levels`.

        Returns:
          Category logits (B, G, K) and kernels (B, G, E), cells in row-major order per level.
        """
        outputs = [self._level(x, side) for x, side in zip(levels, self.num_grids, strict=True)]
        categories, kernels = zip(*outputs, strict=True)
        return jnp.concatenate(categories, axis=1), jnp.concatenate(kernels, axis=1)

    def _level(self, features: Array, side: int) -> tuple[Array, Array]:
        if self.semantics == "release":
            kernel_features = resize_bilinear(append_coordinates(features), side, side)
        else:
            kernel_features = append_coordinates(resize_bilinear(features, side, side))
        category_features = kernel_features[..., :-2]
        for block in self.category_tower:
            category_features = block(category_features)
        for block in self.kernel_tower:
            kernel_features = block(kernel_features)
        return (
            _flatten_cells(self.category_pred(category_features)),
            _flatten_cells(self.kernel_pred(kernel_features)),
        )


def _flatten_cells(x: Array) -> Array:
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
