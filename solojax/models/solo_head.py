"""The SOLO and Decoupled SOLO heads: categories by cell, masks as maps of the whole image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn

from solojax.models.layers import Conv
from solojax.models.towers import (
    NORMAL,
    PRIOR,
    at_least_float32,
    category_logits,
    make_category_pred,
    make_tower,
)
from solojax.ops.alignment import align_interpolate
from solojax.ops.coords import append_coordinates, append_x, append_y
from solojax.ops.resize import upsample_bilinear_2x
from solojax.structures import Array, DecoupledMasks, DirectMasks, Masks, SegmenterOutputs


class _GridHead(nn.Module):
    """The category branch and the walk over the levels, for heads with masks by level.

    Attributes:
      num_classes: K.
      num_grids: S of every level.
      num_convs: blocks per tower.
      channels: of the towers.
      num_coordinate_convs: first blocks of a mask tower that get coordinates (Table 3.3).
      deformable: the towers' last convolutions, see `make_tower`.
      deformable_convs: how many those are.
      align: how category features come to the grid, see `category_logits`.
      align_at: likewise.
      remat: of the towers, see `rematerialised`.
      dtype: compute type of the towers; logits come out in float32.
    """

    num_classes: int
    num_grids: Sequence[int]
    num_convs: int = 7
    channels: int = 256
    num_coordinate_convs: int = 1
    deformable: str = "none"
    deformable_convs: int = 1
    align: Callable = align_interpolate
    align_at: int = 0
    remat: str = "none"
    dtype: Any = None

    def setup(self):
        """Builds the towers once; every level runs through the same ones."""
        self.category_tower = self.make_tower()
        self.category_pred = make_category_pred(self.num_classes, dtype=self.dtype)
        self.setup_masks()

    def __call__(self, levels: Sequence[Array]) -> SegmenterOutputs:
        """Predicts for every cell, from L feature maps (B, h_l, w_l, C), see `head_levels`."""
        return SegmenterOutputs(
            category_logits=category_logits(
                levels,
                self.num_grids,
                self.category_tower,
                self.category_pred,
                self.align,
                self.align_at,
            ),
            masks=tuple(self.level_masks(x, level) for level, x in enumerate(levels)),
        )

    def make_tower(self) -> list:
        return make_tower(
            self.num_convs,
            self.channels,
            deformable=self.deformable,
            deformable_convs=self.deformable_convs,
            remat=self.remat,
            dtype=self.dtype,
        )

    def run_mask_tower(self, tower: Sequence[Callable], x: Array, coordinates: Callable) -> Array:
        """Features through a tower and to twice their size."""
        for index, block in enumerate(tower):
            x = block(coordinates(x) if index < self.num_coordinate_convs else x)
        return upsample_bilinear_2x(x)


class SOLOHead(_GridHead):
    """SOLO: a mask channel for every cell (thesis 3.2.2); S^2 channels by a 1x1 convolution.

    Attributes: those of every head with masks by level, see `_GridHead`.
    """

    def setup_masks(self):
        """The mask tower, and a 1x1 convolution for each level."""
        self.mask_tower = self.make_tower()
        self.mask_pred = [CellChannels(side * side) for side in self.num_grids]

    def level_masks(self, features: Array, level: int) -> Masks:
        """One level's masks at twice its resolution."""
        features = self.run_mask_tower(self.mask_tower, features, append_coordinates)
        kernel, bias = self.mask_pred[level](features.shape[-1])
        return DirectMasks(features=features, kernel=kernel, bias=bias)


class CellChannels(nn.Module):
    """The weights of a 1x1 convolution to one channel a cell, which runs where masks are decoded.

    Attributes:
      num_cells: S^2.
    """

    num_cells: int

    @nn.compact
    def __call__(self, channels: int) -> tuple[Array, Array]:
        """The kernel (C, S^2) and the bias (S^2,) for C channels."""
        kernel = self.param("kernel", NORMAL, (1, 1, channels, self.num_cells))
        return kernel[0, 0], self.param("bias", PRIOR, (self.num_cells,))


class DecoupledHead(_GridHead):
    """Decoupled SOLO: S maps of columns and S of rows (thesis 3.4).

    Attributes: those of every head with masks by level, see `_GridHead`, and
      shared_tower: one mask tower with both coordinates for x and y (Decoupled SOLO light) instead
        of one each with its own coordinate.
    """

    shared_tower: bool = False

    def setup_masks(self):
        """The mask towers, and two 3x3 convolutions for each level."""
        if self.shared_tower:
            self.mask_tower = self.make_tower()
        else:
            self.x_tower = self.make_tower()
            self.y_tower = self.make_tower()
        self.x_pred = [self._pred(side) for side in self.num_grids]
        self.y_pred = [self._pred(side) for side in self.num_grids]

    def level_masks(self, features: Array, level: int) -> Masks:
        """One level's maps at twice its resolution."""
        if self.shared_tower:
            x = y = self.run_mask_tower(self.mask_tower, features, append_coordinates)
        else:
            x = self.run_mask_tower(self.x_tower, features, append_x)
            y = self.run_mask_tower(self.y_tower, features, append_y)
        return DecoupledMasks(
            x=at_least_float32(self.x_pred[level](x)), y=at_least_float32(self.y_pred[level](y))
        )

    def _pred(self, side: int) -> Conv:
        return Conv(side, kernel_init=NORMAL, bias_init=PRIOR, dtype=self.dtype)
