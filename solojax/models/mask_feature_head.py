"""Unified mask features of SOLOv2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn

from solojax.models.layers import ConvNormRelu
from solojax.ops.coords import append_coordinates
from solojax.ops.resize import upsample_bilinear_2x
from solojax.structures import Array


class MaskFeatureHead(nn.Module):
    """Merges P2..P5 at 1/4 of the image (thesis 4.2.1, "Mask feature").

    Level i passes i times through (block, x2) - the first level through one block alone - and the
    coarsest level gets coordinates. The sum goes through a 1x1 block.

    Attributes:
      channels: inside.
      out_channels: of the mask features.
      dtype: compute type.
    """

    channels: int = 128
    out_channels: int = 256
    dtype: Any = None

    @nn.compact
    def __call__(self, pyramid: Sequence[Array]) -> Array:
        """Feature maps at strides 4, 8, 16, 32 to (B, H/4, W/4, out_channels)."""
        total = None
        for level, x in enumerate(pyramid):
            if level == len(pyramid) - 1:
                x = append_coordinates(x)
            for step in range(max(level, 1)):
                x = ConvNormRelu(self.channels, dtype=self.dtype, name=f"level{level}_conv{step}")(
                    x
                )
                if level > 0:
                    x = upsample_bilinear_2x(x)
            total = x if total is None else total + x
        return ConvNormRelu(self.out_channels, kernel_size=1, dtype=self.dtype, name="pred")(total)
