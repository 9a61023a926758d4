"""Mask features of SOLOv2: unified over the pyramid, or separate for each level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn

from solojax.models.layers import ConvNormRelu
from solojax.models.rematerialisation import rematerialised
from solojax.models.towers import head_levels
from solojax.ops.coords import append_coordinates
from solojax.ops.resize import upsample_bilinear_2x
from solojax.structures import Array


class MaskFeatureHead(nn.Module):
    """Merges the finest levels at 1/4 of the image (thesis 4.2.1, "Mask feature").

    Level i passes i times through (block, x2) - the first level through one block alone - and the
    coarsest level gets coordinates. The sum goes through a 1x1 block.

    Attributes:
      channels: inside.
      out_channels: of the mask features.
      num_levels: of the pyramid that are merged: P2..P5 as published.
      coordinates: whether the coarsest level gets coordinates (Table 4.4).
      deformable: the 3x3 convolutions, see `ConvNormRelu`.
      deformable_pred: whether the 1x1 convolution of the sum is deformable too, as in the published
        checkpoints.
      remat: what of the blocks' activations is computed again, see `rematerialised`.
      dtype: compute type.
    """

    channels: int = 128
    out_channels: int = 256
    num_levels: int = 4
    coordinates: bool = True
    deformable: str = "none"
    deformable_pred: bool = False
    remat: str = "none"
    dtype: Any = None

    @nn.compact
    def __call__(self, pyramid: Sequence[Array]) -> tuple[Array]:
        """Feature maps at strides 4, 8, 16, ... to one map (B, H/4, W/4, out_channels)."""
        block_class = rematerialised(ConvNormRelu, self.remat)
        total = None
        for level, x in enumerate(pyramid[: self.num_levels]):
            if level == self.num_levels - 1 and self.coordinates:
                x = append_coordinates(x)
            for step in range(max(level, 1)):
                x = block_class(
                    self.channels,
                    deformable=self.deformable,
                    dtype=self.dtype,
                    name=f"level{level}_conv{step}",
                )(x)
                if level > 0:
                    x = upsample_bilinear_2x(x)
            total = x if total is None else total + x
        pred = block_class(
            self.out_channels,
            kernel_size=1,
            deformable=self.deformable if self.deformable_pred else "none",
            dtype=self.dtype,
            name="pred",
        )
        return (pred(total),)


class SeparateMaskFeatures(nn.Module):
    """A tower for each head level, with shared weights, as in SOLO's mask branch (Table 4.5).

    Attributes:
      channels: inside.
      out_channels: of the mask features.
      num_convs: blocks of the tower; 7 in the thesis.
      coordinates: whether the first block gets coordinates.
      remat: what of the blocks' activations is computed again, see `rematerialised`.
      dtype: compute type.
    """

    channels: int = 256
    out_channels: int = 256
    num_convs: int = 7
    coordinates: bool = True
    remat: str = "none"
    dtype: Any = None

    def setup(self):
        """Builds the tower once; every level runs through the same one."""
        block_class = rematerialised(ConvNormRelu, self.remat)
        self.tower = [block_class(self.channels, dtype=self.dtype) for _ in range(self.num_convs)]
        self.pred = block_class(self.out_channels, kernel_size=1, dtype=self.dtype)

    def __call__(self, pyramid: Sequence[Array]) -> tuple[Array, ...]:
        """The pyramid to a map (B, 2 h_l, 2 w_l, out_channels) for each of the L head levels."""
        return tuple(self._level(x) for x in head_levels(pyramid))

    def _level(self, x: Array) -> Array:
        if self.coordinates:
            x = append_coordinates(x)
        for block in self.tower:
            x = block(x)
        return self.pred(upsample_bilinear_2x(x))
