"""The SOLO family in OpenMMLab's layouts: mmdet v1, as published, and mmdetection 2 and 3.

Both have torchvision's backbones, ConvModules (`conv`, `gn`) and 80 outputs for COCO's classes,
although mmdet v1 calls that 81 classes. They differ in what they call the head's parts.
"""

from __future__ import annotations

import dataclasses

from solojax.interop.backbones import COUNTERS, torchvision_rows
from solojax.interop.layout import CONV, NORM, Layout, Row

_DENSE = (
    *torchvision_rows("backbone."),
    Row("neck.lateral_convs.{i}.conv", "neck/lateral_{i}", CONV),
    Row("neck.fpn_convs.{i}.conv", "neck/output_{i}", CONV),
)
_IGNORED = (COUNTERS, r"data_preprocessor\..*")


def _module(source: str, path: str) -> tuple[Row, ...]:
    """A ConvModule; its convolution may be deformable."""
    return (
        Row(f"{source}.conv", f"{path}/conv", CONV),
        Row(f"{source}.gn", f"{path}/norm", NORM),
        Row(f"{source}.conv.conv_offset", f"{path}/conv/offset", CONV),
    )


def _tower(source: str, path: str) -> tuple[Row, ...]:
    return _module(f"{source}.{{i}}", f"head/{path}_{{i}}")


@dataclasses.dataclass(frozen=True)
class _Names:
    """What a generation of mmdet calls the parts of a head."""

    key: str
    title: str
    head: str
    category_tower: str
    category: str
    decoupled_category: str
    mask_tower: str
    mask_list: str
    decoupled_list: str
    kernel: str
    mask_features: str
    mask_features_pred: str


_V1 = _Names(
    key="mmdet-v1",
    title="mmdet v1",
    head="bbox_head.",
    category_tower="cate_convs",
    category="solo_cate",
    decoupled_category="dsolo_cate",
    mask_tower="ins_convs",
    mask_list="solo_ins_list",
    decoupled_list="dsolo_ins_list",
    kernel="solo_kernel",
    mask_features="mask_feat_head.",
    mask_features_pred="conv_pred.0",
)
_V3 = _Names(
    key="mmdet",
    title="mmdetection 2 and 3",
    head="mask_head.",
    category_tower="cls_convs",
    category="conv_cls",
    decoupled_category="conv_cls",
    mask_tower="mask_convs",
    mask_list="conv_mask_list",
    decoupled_list="conv_mask_list",
    kernel="conv_kernel",
    mask_features="mask_head.mask_feature_head.",
    mask_features_pred="conv_pred",
)


def _solo(n: _Names) -> Layout:
    first = f"{n.head}{n.mask_list}.0.weight"
    return Layout(
        name=f"{n.key}-solo",
        title=f"SOLO of {n.title}",
        rows=(
            *_DENSE,
            *_tower(f"{n.head}{n.category_tower}", "category_tower"),
            *_tower(f"{n.head}{n.mask_tower}", "mask_tower"),
            Row(f"{n.head}{n.category}", "head/category_pred", CONV),
            Row(f"{n.head}{n.mask_list}.{{l}}", "head/mask_pred_{l}", CONV),
        ),
        ignored=_IGNORED,
        marks=(f"{n.head}{n.category}.weight", first),
    )


def _decoupled_rows(n: _Names) -> tuple[Row, ...]:
    return (
        *_DENSE,
        *_tower(f"{n.head}{n.category_tower}", "category_tower"),
        Row(f"{n.head}{n.decoupled_category}", "head/category_pred", CONV),
        Row(f"{n.head}{n.decoupled_list}_x.{{l}}", "head/x_pred_{l}", CONV),
        Row(f"{n.head}{n.decoupled_list}_y.{{l}}", "head/y_pred_{l}", CONV),
    )


def _decoupled(n: _Names) -> Layout:
    tower = f"{n.head}{n.mask_tower}"
    return Layout(
        name=f"{n.key}-decoupled-solo",
        title=f"Decoupled SOLO of {n.title}",
        rows=(
            *_decoupled_rows(n),
            *_tower(f"{tower}_x", "x_tower"),
            *_tower(f"{tower}_y", "y_tower"),
        ),
        ignored=_IGNORED,
        marks=(f"{n.head}{n.decoupled_list}_x.0.weight", f"{tower}_x.0.conv.weight"),
    )


def _decoupled_light(n: _Names) -> Layout:
    tower = f"{n.head}{n.mask_tower}"
    return Layout(
        name=f"{n.key}-decoupled-solo-light",
        title=f"Decoupled SOLO light of {n.title}",
        rows=(*_decoupled_rows(n), *_tower(tower, "mask_tower")),
        ignored=_IGNORED,
        marks=(f"{n.head}{n.decoupled_list}_x.0.weight", f"{tower}.0.conv.weight"),
    )


def _solov2(n: _Names) -> Layout:
    features = n.mask_features
    block = f"{features}convs_all_levels.{{l}}.conv{{s}}"
    return Layout(
        name=f"{n.key}-solov2",
        title=f"SOLOv2 of {n.title}",
        rows=(
            *_DENSE,
            *_tower(f"{n.head}{n.category_tower}", "category_tower"),
            *_tower(f"{n.head}kernel_convs", "kernel_tower"),
            Row(f"{n.head}{n.category}", "head/category_pred", CONV),
            Row(f"{n.head}{n.kernel}", "head/kernel_pred", CONV),
            *_module(block, "mask_features/level{l}_conv{s}"),
            *_module(f"{features}{n.mask_features_pred}", "mask_features/pred"),
        ),
        ignored=_IGNORED,
        marks=(f"{n.head}{n.kernel}.weight", f"{n.head}{n.category}.weight"),
    )


MMDET_V1_SOLO, MMDET_SOLO = _solo(_V1), _solo(_V3)
MMDET_V1_DECOUPLED, MMDET_DECOUPLED = _decoupled(_V1), _decoupled(_V3)
MMDET_V1_DECOUPLED_LIGHT, MMDET_DECOUPLED_LIGHT = _decoupled_light(_V1), _decoupled_light(_V3)
MMDET_V1_SOLOV2, MMDET_SOLOV2 = _solov2(_V1), _solov2(_V3)
