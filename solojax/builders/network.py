"""From a config to the network that it describes, and what follows from the network's shape."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from solojax.builders.free_solo import embedding_width
from solojax.errors import InputError
from solojax.models.fpn import FPN
from solojax.models.mask_feature_head import MaskFeatureHead, SeparateMaskFeatures
from solojax.models.rematerialisation import rematerialised
from solojax.models.resnet import ResNet
from solojax.models.segmenter import Segmenter
from solojax.models.single_scale_neck import SingleScaleNeck
from solojax.models.solo_head import DecoupledHead, SOLOHead
from solojax.models.solov2_head import SOLOv2Head
from solojax.ops.alignment import align_adaptive_max_pool, align_interpolate, align_region_grid
from solojax.structures import GridSpec

NUM_MASK_LEVELS = 4  # of the pyramid, that the unified mask features merge
# train.remat: what the backbone's blocks compute again, and what neck, head and mask features do.
_REMAT = {
    "none": ("none", "none"),
    "blocks": ("whole", "none"),
    "blocks_convs": ("convs", "none"),
    "all": ("whole", "whole"),
    "all_convs": ("convs", "convs"),
}
ALIGNMENTS = {
    "interpolate": align_interpolate,
    "adaptive_max_pool": align_adaptive_max_pool,
    "region_grid": align_region_grid,
}


def build_grid(config: ConfigDict) -> GridSpec:
    """The GridSpec of `config.model.grid`."""
    return GridSpec(**config.model.grid.to_dict())


def build_model(config: ConfigDict, num_classes: int) -> Segmenter:
    """The network of `config.model` for K classes.

    Raises:
      InputError: the grid has not one level for each level of the pyramid.
    """
    model, dtype = config.model, jnp.dtype(config.model.dtype)
    other_remat = _REMAT[config.train.remat][1]
    _check_levels(model)
    return Segmenter(
        backbone=build_backbone(model.backbone, backbone_remat(config.train.remat), dtype),
        neck=_build_neck(model, other_remat, dtype),
        head=_build_head(model, num_classes, embedding_width(config), other_remat, dtype),
        mask_features=_build_mask_features(model, other_remat, dtype),
    )


def build_backbone(
    backbone: ConfigDict, remat: str, dtype: jnp.dtype, norm_group_images: int | None = None
) -> ResNet:
    """The ResNet of `config.model.backbone`.

    Args:
      backbone: that group.
      remat: see `ResNet`.
      dtype: compute type.
      norm_group_images: images whose statistics BatchNorm takes together; None for the batch.
    """
    return ResNet(
        depth=backbone.depth,
        width=backbone.width,
        norm=backbone.norm,
        frozen_stages=backbone.frozen_stages,
        stride_in_1x1=backbone.stride_in_1x1,
        groups=backbone.groups,
        base_width=backbone.base_width,
        deformable=backbone.deformable,
        deformable_stages=backbone.deformable_stages,
        bn_group_images=norm_group_images,
        remat=remat,
        dtype=dtype,
    )


def backbone_remat(policy: str) -> str:
    """What `train.remat` says of the backbone."""
    return _REMAT[policy][0]


def _build_neck(model: ConfigDict, remat: str, dtype: jnp.dtype) -> nn.Module:
    shared = {"channels": model.neck.channels, "dtype": dtype}
    if model.neck.kind == "single_scale":
        return rematerialised(SingleScaleNeck, remat)(**shared)
    return rematerialised(FPN, remat)(num_outputs=model.neck.num_outputs, **shared)


def _build_head(
    model: ConfigDict, num_classes: int, embedding: int | None, remat: str, dtype: jnp.dtype
) -> nn.Module:
    head = model.head
    shared = {
        "num_classes": num_classes,
        "num_grids": model.grid.num_grids,
        "num_convs": head.num_convs,
        "channels": head.channels,
        "align": ALIGNMENTS[head.align],
        "align_at": head.align_at,
        "deformable": head.deformable,
        "deformable_convs": head.deformable_convs,
        "remat": remat,
        "dtype": dtype,
    }
    if head.kind == "solov2":
        return SOLOv2Head(
            kernel_channels=model.mask_features.out_channels * model.mask_features.kernel_size**2,
            kernel_coordinates=head.num_coordinate_convs > 0,
            semantics=model.semantics,
            embedding_width=embedding,
            **shared,
        )
    shared["num_coordinate_convs"] = head.num_coordinate_convs
    if head.kind == "solo":
        return SOLOHead(**shared)
    return DecoupledHead(shared_tower=head.kind == "decoupled_light", **shared)


def _build_mask_features(model: ConfigDict, remat: str, dtype: jnp.dtype) -> nn.Module | None:
    features = model.mask_features
    if model.head.kind != "solov2":
        return None
    shared = {
        "channels": features.channels,
        "out_channels": features.out_channels,
        "coordinates": features.coordinates,
        "remat": remat,
        "dtype": dtype,
    }
    if features.kind == "separate":
        return SeparateMaskFeatures(num_convs=features.num_convs, **shared)
    return MaskFeatureHead(
        num_levels=NUM_MASK_LEVELS,
        deformable=features.deformable,
        deformable_pred=features.deformable_pred,
        **shared,
    )


def _strides(levels: int) -> tuple[int, ...]:
    """Pixels per feature cell of the head's levels: P2 is halved, the last takes the one before."""
    if levels == 1:
        return (8,)
    strides = [4 * 2**level for level in range(levels)]
    return (8, *strides[1:-1], strides[-2])


def masks_by_level(model: ConfigDict) -> bool:
    """Whether every level makes masks of its own, at half the level's stride."""
    return model.head.kind != "solov2" or model.mask_features.kind == "separate"


def coarse_factors(config: ConfigDict) -> tuple[int, ...]:
    """The scales 8, 16, ... at which training wants masks besides 1/4."""
    strides = config.model.grid.strides if masks_by_level(config.model) else ()
    return tuple(sorted({stride // 2 for stride in strides} - {4}))


def _check_levels(model: ConfigDict) -> None:
    grid_levels = len(model.grid.num_grids)
    levels = 1 if model.neck.kind == "single_scale" else model.neck.num_outputs
    unified = model.head.kind == "solov2" and model.mask_features.kind == "unified"
    if unified and levels < NUM_MASK_LEVELS:
        raise InputError(
            f"config key 'model.neck' gives {levels} levels: unified mask features need "
            f"{NUM_MASK_LEVELS}; raise num_outputs or take model.mask_features.kind=separate"
        )
    expected = _strides(levels)
    if grid_levels == levels and masks_by_level(model) and model.grid.strides != expected:
        raise InputError(
            f"config key 'model.grid.strides' is {model.grid.strides}: the levels of this network "
            f"have {expected}, and its masks half of that; give those"
        )
    if grid_levels != levels:
        raise InputError(
            f"config keys 'model.grid' list {grid_levels} levels but 'model.neck' gives {levels}: "
            "give the grid one entry per level"
        )
