"""ResNet-18/34/50/101 in torchvision's layout (parameter names follow it too)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn

from solojax.errors import InputError
from solojax.models.layers import Conv, backbone_norm, max_pool_3x3
from solojax.structures import Array

BLOCKS_PER_STAGE = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
}
BOTTLENECK_DEPTHS = (50, 101)
KAIMING = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class ResidualBlock(nn.Module):
    """Basic (two 3x3) or bottleneck (1x1, 3x3, 1x1) block with identity or projected shortcut.

    Attributes:
      width: channels of the 3x3 convolutions.
      stride: of the block.
      bottleneck: bottleneck instead of basic; output channels are then 4 * width.
      stride_in_1x1: bottlenecks only: stride in the first 1x1 (MSRA) instead of the 3x3.
      norm: see `backbone_norm`.
      dtype: compute type.
    """

    width: int
    stride: int = 1
    bottleneck: bool = False
    stride_in_1x1: bool = False
    norm: str = "batch_norm"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool, row_mask: Array | None) -> Array:
        """(B, H, W, C) to (B, H / stride, W / stride, width or 4 * width)."""

        def conv_norm(value, features, kernel_size, stride, conv_name, norm_name):
            value = Conv(
                features,
                kernel_size,
                stride,
                use_bias=False,
                kernel_init=KAIMING,
                dtype=self.dtype,
                name=conv_name,
            )(value)
            return backbone_norm(
                value, self.norm, name=norm_name, train=train, row_mask=row_mask, dtype=self.dtype
            )

        if self.bottleneck:
            first, second = (self.stride, 1) if self.stride_in_1x1 else (1, self.stride)
            plan = ((self.width, 1, first), (self.width, 3, second), (4 * self.width, 1, 1))
        else:
            plan = ((self.width, 3, self.stride), (self.width, 3, 1))
        y = x
        for index, (features, kernel_size, stride) in enumerate(plan, start=1):
            y = conv_norm(y, features, kernel_size, stride, f"conv{index}", f"bn{index}")
            if index < len(plan):
                y = nn.relu(y)
        if x.shape != y.shape:
            x = conv_norm(x, y.shape[-1], 1, self.stride, "downsample_conv", "downsample_bn")
        return nn.relu(x + y)


class ResNet(nn.Module):
    """The backbone: an image in, the feature maps C2 to C5 out.

    Attributes:
      depth: 18, 34, 50 or 101.
      width: channels of the stem and of the first stage's 3x3 convolutions; 64 as published.
      norm: see `backbone_norm`.
      frozen_stages: stages whose BatchNorm keeps its statistics: -1 none, 0 the stem, n the stem
        and the first n stages. (Which parameters train is the task's affair.)
      stride_in_1x1: MSRA style, see `ResidualBlock`.
      remat: compute the blocks' activations again in the backward pass instead of keeping them.
      dtype: compute type.
    """

    depth: int = 50
    width: int = 64
    norm: str = "frozen_batch_norm"
    frozen_stages: int = 1
    stride_in_1x1: bool = False
    remat: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self, image: Array, *, train: bool = False, row_mask: Array | None = None
    ) -> tuple[Array, ...]:
        """Runs the backbone.

        Args:
          image: (B, H, W, 3) normalised; H and W multiples of 32.
          train: whether BatchNorm takes the batch's statistics.
          row_mask: (B,) bool, rows that count in those statistics.

        Returns:
          Feature maps at strides 4, 8, 16 and 32.
        """
        if self.depth not in BLOCKS_PER_STAGE:
            raise InputError(
                f"ResNet depth {self.depth} is unknown; use one of {sorted(BLOCKS_PER_STAGE)}"
            )
        x = Conv(
            self.width, 7, 2, use_bias=False, kernel_init=KAIMING, dtype=self.dtype, name="conv1"
        )(image)
        x = backbone_norm(
            x,
            self.norm,
            name="bn1",
            train=train and self.frozen_stages < 0,
            row_mask=row_mask,
            dtype=self.dtype,
        )
        x = max_pool_3x3(nn.relu(x))
        block_class = nn.remat(ResidualBlock, static_argnums=(2,)) if self.remat else ResidualBlock
        features = []
        for stage, blocks in enumerate(BLOCKS_PER_STAGE[self.depth], start=1):
            for block in range(blocks):
                x = block_class(
                    width=self.width * 2 ** (stage - 1),
                    stride=2 if stage > 1 and block == 0 else 1,
                    bottleneck=self.depth in BOTTLENECK_DEPTHS,
                    stride_in_1x1=self.stride_in_1x1,
                    norm=self.norm,
                    dtype=self.dtype,
                    name=f"layer{stage}_{block}",
                )(x, train and stage > self.frozen_stages, row_mask)
            features.append(x)
        return tuple(features)


def is_frozen(name: str, frozen_stages: int) -> bool:
    """Whether the top-level parameter group `name` lies in the frozen stages.

    Args:
      name: "conv1", "bn1" or "layerN_M".
      frozen_stages: as in `ResNet`.
    """
    stage = int(name[len("layer") :].split("_")[0]) if name.startswith("layer") else 0
    return stage <= frozen_stages
