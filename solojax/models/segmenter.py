"""The whole SOLOv2 network: backbone, pyramid, head and mask features."""

from __future__ import annotations

import flax.linen as nn

from solojax.models.solov2_head import head_levels
from solojax.structures import Array, SegmenterOutputs

NUM_MASK_LEVELS = 4


class Segmenter(nn.Module):
    """Joins four modules; what they are is the caller's choice.

    Attributes:
      backbone: image to C2..C5.
      neck: C2..C5 to P2..P6.
      head: head levels to category logits and kernels.
      mask_features: P2..P5 to the mask feature map.
    """

    backbone: nn.Module
    neck: nn.Module
    head: nn.Module
    mask_features: nn.Module

    def __call__(
        self, image: Array, *, train: bool = False, row_mask: Array | None = None
    ) -> SegmenterOutputs:
        """Runs the network.

        Args:
          image: (B, H, W, 3) normalised; H and W multiples of 32.
          train: whether BatchNorm takes the batch's statistics.
          row_mask: (B,) bool, rows that count in those statistics.
        """
        pyramid = self.neck(self.backbone(image, train=train, row_mask=row_mask))
        category_logits, kernels = self.head(head_levels(pyramid))
        return SegmenterOutputs(
            category_logits=category_logits,
            kernels=kernels,
            mask_features=self.mask_features(pyramid[:NUM_MASK_LEVELS]),
        )
