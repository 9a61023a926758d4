"""Backbone and projection heads: the encoder of queries and, with other weights, of keys."""

from __future__ import annotations

import flax.linen as nn
from flax import struct

from solojax.models.densecl_neck import ContrastiveEmbeddings
from solojax.ops.pooling import adaptive_average_pool
from solojax.structures import Array


@struct.dataclass
class EncodedView:
    """What an encoder makes of a view."""

    features: Array | None  # (B, S_h * S_w, C) of the backbone, pooled to the dense head's grid
    embeddings: ContrastiveEmbeddings


class ContrastiveEncoder(nn.Module):
    """Images to embeddings, and to the backbone's features by which cells are matched.

    Attributes:
      backbone: images to feature maps, of which the last is used.
      neck: that map to `ContrastiveEmbeddings`, with the attributes of `DenseCLNeck`.
    """

    backbone: nn.Module
    neck: nn.Module

    def __call__(
        self, image: Array, *, train: bool = False, row_mask: Array | None = None
    ) -> EncodedView:
        """Runs both parts.

        Args:
          image: (B, H, W, 3) normalised; H and W multiples of 32.
          train: whether BatchNorm takes the batch's statistics.
          row_mask: (B,) bool, rows that count in those statistics.

        Returns:
          The view; without a dense head it has no features.
        """
        features = self.backbone(image, train=train, row_mask=row_mask)[-1]
        embeddings = self.neck(features)
        if not self.neck.dense:
            return EncodedView(None, embeddings)
        # The published code matches the map as it is, which fails at any other grid; the thesis
        # pools it (5.2.4).
        cells = (
            features if self.neck.grid is None else adaptive_average_pool(features, self.neck.grid)
        )
        return EncodedView(cells.reshape(cells.shape[0], -1, cells.shape[-1]), embeddings)
