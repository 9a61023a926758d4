"""The whole network: backbone, neck, head and, where the head wants them, mask features."""

from __future__ import annotations

import flax.linen as nn

from solojax.models.towers import head_levels
from solojax.structures import Array, SegmenterOutputs


class Segmenter(nn.Module):
    """Joins the modules; what they are is the caller's choice.

    Attributes:
      backbone: image to C2..C5.
      neck: C2..C5 to P2..P6, or to a single map.
      head: head levels, and the mask features if there are any, to SegmenterOutputs.
      mask_features: the pyramid to a tuple of mask feature maps (SOLOv2); None for heads that make
        their masks from the levels.
    """

    backbone: nn.Module
    neck: nn.Module
    head: nn.Module
    mask_features: nn.Module | None = None

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
        levels = head_levels(pyramid)
        if self.mask_features is None:
            return self.head(levels)
        return self.head(levels, self.mask_features(pyramid))
