"""The SOLOv2 head: a category and a mask kernel for every cell of every grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from solojax.errors import InputError
from solojax.models.layers import Conv
from solojax.models.towers import (
    NORMAL,
    category_outputs,
    flatten_cells,
    make_category_pred,
    make_tower,
)
from solojax.ops.alignment import align_interpolate
from solojax.ops.coords import append_coordinates
from solojax.ops.resize import resize_bilinear
from solojax.structures import Array, DynamicMasks, SegmenterOutputs

SEMANTICS = ("release", "thesis")


class SOLOv2Head(nn.Module):
    """Category and kernel branches, shared by all levels (thesis 4.2.1).

    With `embedding_width` a further 3x3 convolution beside the one to category logits predicts what
    a cell's object looks like (thesis 6.2.3, Semantic representation learning).

    Attributes:
      num_classes: K.
      num_grids: S of every level.
      num_convs: blocks per tower.
      channels: of the towers.
      kernel_channels: E, numbers per predicted kernel.
      kernel_coordinates: whether the kernel tower knows where it is (Table 4.4).
      semantics: "release": coordinates join the features before both are resized to the grid;
        "thesis": the features are resized first.
      deformable: the towers' last convolutions, see `make_tower`.
      deformable_convs: how many those are.
      align: how category features come to the grid, see `category_logits`.
      align_at: likewise.
      remat: of the towers, see `rematerialised`.
      dtype: compute type of the towers; logits and kernels come out in float32.
      embedding_width: numbers per predicted embedding; None predicts none.
    """

    num_classes: int
    num_grids: Sequence[int]
    num_convs: int = 4
    channels: int = 512
    kernel_channels: int = 256
    kernel_coordinates: bool = True
    semantics: str = "release"
    deformable: str = "none"
    deformable_convs: int = 1
    align: Callable = align_interpolate
    align_at: int = 0
    remat: str = "none"
    dtype: Any = None
    embedding_width: int | None = None

    def setup(self):
        """Builds the towers once; every level runs through the same ones."""
        if self.semantics not in SEMANTICS:
            raise InputError(
                f"head semantics {self.semantics!r} is unknown; use one of {', '.join(SEMANTICS)}"
            )
        tower = {
            "deformable": self.deformable,
            "deformable_convs": self.deformable_convs,
            "remat": self.remat,
            "dtype": self.dtype,
        }
        self.category_tower = make_tower(self.num_convs, self.channels, **tower)
        self.kernel_tower = make_tower(self.num_convs, self.channels, **tower)
        self.category_pred = make_category_pred(self.num_classes, dtype=self.dtype)
        self.kernel_pred = Conv(self.kernel_channels, kernel_init=NORMAL, dtype=self.dtype)
        if self.embedding_width is not None:
            self.embedding_pred = Conv(self.embedding_width, kernel_init=NORMAL, dtype=self.dtype)

    def __call__(self, levels: Sequence[Array], mask_features: Sequence[Array]) -> SegmenterOutputs:
        """Predicts for every cell.

        Args:
          levels: L feature maps (B, h_l, w_l, C), see `head_levels`.
          mask_features: one map (B, h, w, E) for all levels, or L of them.
        """
        kernels = [
            self._kernels(features, side)
            for features, side in zip(levels, self.num_grids, strict=True)
        ]
        if len(mask_features) == 1:
            kernels = [jnp.concatenate(kernels, axis=1)]
        preds = [self.category_pred]
        if self.embedding_width is not None:
            preds.append(self.embedding_pred)
        logits, *embeddings = category_outputs(
            levels, self.num_grids, self.category_tower, preds, self.align, self.align_at
        )
        return SegmenterOutputs(
            category_logits=logits,
            masks=tuple(
                DynamicMasks(kernels=cells, features=features)
                for cells, features in zip(kernels, mask_features, strict=True)
            ),
            embeddings=embeddings[0] if embeddings else None,
        )

    def _kernels(self, features: Array, side: int) -> Array:
        coordinates = append_coordinates if self.kernel_coordinates else lambda x: x
        if self.semantics == "release":
            features = resize_bilinear(coordinates(features), side, side)
        else:
            features = coordinates(resize_bilinear(features, side, side))
        for block in self.kernel_tower:
            features = block(features)
        return flatten_cells(self.kernel_pred(features))
