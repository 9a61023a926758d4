"""AdelaiDet's SOLOv2 and FreeSOLO checkpoints (detectron2's names) in and out.

AdelaiDet's published networks have MSRA backbones, FreeSOLO's have DenseCL's, which follow
torchvision: see `solojax.interop.stems`. BatchNorm is frozen: statistics and affine parameters.
"""

from __future__ import annotations

from solojax.interop.backbones import COUNTERS, detectron2_rows
from solojax.interop.layout import CONV, NORM, Layout, Row
from solojax.interop.stems import MSRA, TORCHVISION

_MASK_BLOCK = "mask_head.convs_all_levels.{l}.conv{s}"


def _tower(source: str, path: str) -> tuple[Row, ...]:
    """Layers are numbered: convolution, GroupNorm, ReLU, convolution, ..."""
    return (
        Row(f"{source}.{{3i}}", f"{path}_{{i}}/conv", CONV),
        Row(f"{source}.{{3i+1}}", f"{path}_{{i}}/norm", NORM),
    )


_ROWS = (
    *detectron2_rows("backbone.bottom_up."),
    Row("backbone.fpn_lateral{i+2}", "neck/lateral_{i}", CONV),
    Row("backbone.fpn_output{i+2}", "neck/output_{i}", CONV),
    *_tower("ins_head.cate_tower", "head/category_tower"),
    *_tower("ins_head.kernel_tower", "head/kernel_tower"),
    Row("ins_head.cate_pred", "head/category_pred", CONV),
    Row("ins_head.kernel_pred", "head/kernel_pred", CONV),
    Row(f"{_MASK_BLOCK}.0", "mask_features/level{l}_conv{s}/conv", CONV),
    Row(f"{_MASK_BLOCK}.1", "mask_features/level{l}_conv{s}/norm", NORM),
    Row("mask_head.conv_pred.0", "mask_features/pred/conv", CONV),
    Row("mask_head.conv_pred.1", "mask_features/pred/norm", NORM),
)

ADELAIDET = Layout(
    name="adelaidet",
    title="AdelaiDet's SOLOv2",
    rows=_ROWS,
    ignored=(COUNTERS,),
    marks=("ins_head.kernel_pred.weight", "ins_head.cate_pred.weight"),
    stem=MSRA,
    outer="model",
)

FREESOLO = Layout(
    name="freesolo",
    title="FreeSOLO",
    rows=(*_ROWS, Row("ins_head.emb_pred", "head/embedding_pred", CONV)),
    ignored=(r"_iter", *ADELAIDET.ignored),
    marks=(*ADELAIDET.marks, "ins_head.emb_pred.weight"),
    stem=TORCHVISION,
    outer="model",
)
