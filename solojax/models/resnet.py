"""ResNets and ResNeXts in torchvision's layout (parameter names follow it too)."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn

from solojax.errors import InputError
from solojax.models.convolution import Conv
from solojax.models.deform_conv import conv_class
from solojax.models.layers import backbone_norm, max_pool_3x3
from solojax.models.rematerialisation import rematerialised
from solojax.structures import Array

BLOCKS_PER_STAGE = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
BOTTLENECK_DEPTHS = (50, 101, 152)
KAIMING = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class ResidualBlock(nn.Module):
    """Basic (two 3x3) or bottleneck (1x1, 3x3, 1x1) block with identity or projected shortcut.

    Attributes:
      width: channels of the 3x3 convolutions (of ResNeXt: before groups and base width).
      stride: of the block.
      bottleneck: bottleneck instead of basic; output channels are then 4 * width.
      stride_in_1x1: bottlenecks only: stride in the first 1x1 (MSRA) instead of the 3x3.
      groups: bottlenecks only: of the 3x3 convolution.
      base_width: bottlenecks only: channels of a group of the 3x3 at width 64.
      deformable: bottlenecks only: of the 3x3, see `conv_class`.
      norm: see `backbone_norm`.
      bn_group_images: rows that share batch statistics, see `BatchNorm`.
      dtype: compute type.
    """

    width: int
    stride: int = 1
    bottleneck: bool = False
    stride_in_1x1: bool = False
    groups: int = 1
    base_width: int = 64
    deformable: str = "none"
    norm: str = "batch_norm"
    bn_group_images: int | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool, row_mask: Array | None) -> Array:
        """(B, H, W, C) to (B, H / stride, W / stride, width or 4 * width)."""

        def conv_norm(value, features, kernel_size, stride, conv_name, norm_name, conv=Conv):
            value = conv(
                features,
                kernel_size,
                stride,
                use_bias=False,
                kernel_init=KAIMING,
                dtype=self.dtype,
                name=conv_name,
            )(value)
            return backbone_norm(
                value,
                self.norm,
                name=norm_name,
                train=train,
                row_mask=row_mask,
                dtype=self.dtype,
                bn_group_images=self.bn_group_images,
            )

        if self.bottleneck:
            first, second = (self.stride, 1) if self.stride_in_1x1 else (1, self.stride)
            inner = self.width * self.base_width // 64 * self.groups
            middle = functools.partial(conv_class(self.deformable), groups=self.groups)
            plan = (
                (inner, 1, first, Conv),
                (inner, 3, second, middle),
                (4 * self.width, 1, 1, Conv),
            )
        else:
            plan = ((self.width, 3, self.stride, Conv), (self.width, 3, 1, Conv))
        y = x
        for index, (features, kernel_size, stride, conv) in enumerate(plan, start=1):
            y = conv_norm(y, features, kernel_size, stride, f"conv{index}", f"bn{index}", conv)
            if index < len(plan):
                y = nn.relu(y)
        if x.shape != y.shape:
            x = conv_norm(x, y.shape[-1], 1, self.stride, "downsample_conv", "downsample_bn")
        return nn.relu(x + y)


class ResNet(nn.Module):
    """The backbone: an image in, the feature maps C2 to C5 out.

    ResNeXt-101-64x4d is depth 101 with 64 groups and base width 4. Published SOLOv2 models with
    deformable convolutions have them in place of every 3x3 of the stages that end in C3 to C5.

    Attributes:
      depth: 18, 34, 50, 101 or 152.
      width: channels of the stem and of the first stage's 3x3 convolutions; 64 as published.
      norm: see `backbone_norm`.
      frozen_stages: stages whose BatchNorm keeps its statistics: -1 none, 0 the stem, n the stem
        and the first n stages. (Which parameters train is the task's affair.)
      stride_in_1x1: MSRA style, see `ResidualBlock`.
      groups: from depth 50 on: of the 3x3 convolutions of all blocks.
      base_width: from depth 50 on: channels of a group in the first stage, at width 64.
      deformable: from depth 50 on: "none", "v1" or "v2" 3x3 convolutions, see `conv_class`.
      deformable_stages: where; stage n ends in C(n + 1).
      bn_group_images: images that share batch statistics while training, see `BatchNorm`; None is
        the global batch.
      remat: what of the blocks' activations is computed again, see `rematerialised`.
      dtype: compute type.
    """

    depth: int = 50
    width: int = 64
    norm: str = "frozen_batch_norm"
    frozen_stages: int = 1
    stride_in_1x1: bool = False
    groups: int = 1
    base_width: int = 64
    deformable: str = "none"
    deformable_stages: tuple[int, ...] = (2, 3, 4)
    bn_group_images: int | None = None
    remat: str = "none"
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

        Raises:
          InputError: on a depth that is unknown or does not have what the attributes ask for.
        """
        self._check_attributes()
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
            bn_group_images=self.bn_group_images,
        )
        x = max_pool_3x3(nn.relu(x))
        block_class = rematerialised(ResidualBlock, self.remat, static_argnums=(2,))
        features = []
        for stage, blocks in enumerate(BLOCKS_PER_STAGE[self.depth], start=1):
            for block in range(blocks):
                x = block_class(
                    width=self.width * 2 ** (stage - 1),
                    stride=2 if stage > 1 and block == 0 else 1,
                    bottleneck=self.depth in BOTTLENECK_DEPTHS,
                    stride_in_1x1=self.stride_in_1x1,
                    groups=self.groups,
                    base_width=self.base_width,
                    deformable=self.deformable if stage in self.deformable_stages else "none",
                    norm=self.norm,
                    bn_group_images=self.bn_group_images,
                    dtype=self.dtype,
                    name=f"layer{stage}_{block}",
                )(x, train and stage > self.frozen_stages, row_mask)
            features.append(x)
        return tuple(features)

    def _check_attributes(self) -> None:
        if self.depth not in BLOCKS_PER_STAGE:
            raise InputError(
                f"ResNet depth {self.depth} is unknown; use one of {sorted(BLOCKS_PER_STAGE)}"
            )
        plain = (self.groups, self.base_width, self.deformable) == (1, 64, "none")
        if self.depth not in BOTTLENECK_DEPTHS and not plain:
            raise InputError(
                f"ResNet depth {self.depth} has basic blocks, which know neither groups, base_width"
                f" nor deformable; use one of the depths {', '.join(map(str, BOTTLENECK_DEPTHS))}"
            )
        if not set(self.deformable_stages) <= {1, 2, 3, 4}:
            raise InputError(
                f"ResNet deformable_stages {self.deformable_stages} names a stage that is not "
                "there; use stages from 1 to 4"
            )


def is_frozen(name: str, frozen_stages: int) -> bool:
    """Whether the top-level parameter group `name` lies in the frozen stages.

    Args:
      name: "conv1", "bn1" or "layerN_M".
      frozen_stages: as in `ResNet`.
    """
    stage = int(name[len("layer") :].split("_")[0]) if name.startswith("layer") else 0
    return stage <= frozen_stages
