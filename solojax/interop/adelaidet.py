"""AdelaiDet's SOLOv2 checkpoints (detectron2's names) in and out.

The state dict lies under `model` in the file. Two conventions stay with the weights and are the
caller's affair: the stem reads BGR (means 103.53, 116.28, 123.675, deviations 1), see
`flip_stem_channels`, and bottlenecks have their stride in the first 1x1 convolution
(`ResNet(stride_in_1x1=True)`). BatchNorm is frozen: statistics and affine parameters.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from solojax.interop.layout import (
    BATCH_NORM,
    CONV,
    NORM,
    Layout,
    Row,
    export_state,
    import_state,
)
from solojax.structures import PyTree

STEM = ("params", "backbone", "conv1", "kernel")

BLOCK = "backbone.bottom_up.res{s+1}.{b}"
MASK_BLOCK = "mask_head.convs_all_levels.{l}.conv{s}"

# Blocks of the heads are numbered by layer: convolution, GroupNorm, ReLU, convolution, ...
ADELAIDET = Layout(
    title="AdelaiDet's SOLOv2",
    rows=(
        Row("backbone.bottom_up.stem.conv1", "backbone/conv1", CONV),
        Row("backbone.bottom_up.stem.conv1.norm", "backbone/bn1", BATCH_NORM),
        Row(BLOCK + ".conv{c}", "backbone/layer{s}_{b}/conv{c}", CONV),
        Row(BLOCK + ".conv{c}.norm", "backbone/layer{s}_{b}/bn{c}", BATCH_NORM),
        Row(BLOCK + ".shortcut", "backbone/layer{s}_{b}/downsample_conv", CONV),
        Row(BLOCK + ".shortcut.norm", "backbone/layer{s}_{b}/downsample_bn", BATCH_NORM),
        Row("backbone.fpn_lateral{i+2}", "neck/lateral_{i}", CONV),
        Row("backbone.fpn_output{i+2}", "neck/output_{i}", CONV),
        Row("ins_head.cate_tower.{3i}", "head/category_tower_{i}/conv", CONV),
        Row("ins_head.cate_tower.{3i+1}", "head/category_tower_{i}/norm", NORM),
        Row("ins_head.kernel_tower.{3i}", "head/kernel_tower_{i}/conv", CONV),
        Row("ins_head.kernel_tower.{3i+1}", "head/kernel_tower_{i}/norm", NORM),
        Row("ins_head.cate_pred", "head/category_pred", CONV),
        Row("ins_head.kernel_pred", "head/kernel_pred", CONV),
        Row(MASK_BLOCK + ".0", "mask_features/level{l}_conv{s}/conv", CONV),
        Row(MASK_BLOCK + ".1", "mask_features/level{l}_conv{s}/norm", NORM),
        Row("mask_head.conv_pred.0", "mask_features/pred/conv", CONV),
        Row("mask_head.conv_pred.1", "mask_features/pred/norm", NORM),
    ),
    ignored=(r"pixel_mean", r"pixel_std", r".*\.num_batches_tracked"),
)


def import_adelaidet(
    state: Mapping[str, np.ndarray], expected: PyTree | None = None
) -> dict[str, PyTree]:
    """Variables of a `Segmenter` from an AdelaiDet SOLOv2 state dict.

    Args:
      state: AdelaiDet's names to arrays, convolutions OIHW.
      expected: the model's variables, as arrays or shapes; see `import_state`.

    Returns:
      {"params": tree, "batch_stats": tree} of NumPy arrays, dtypes kept.

    Raises:
      InputError: naming the tensors that are missing, unexpected, misshapen or not floating point.
    """
    return import_state(ADELAIDET, state, expected)


def export_adelaidet(variables: PyTree) -> dict[str, np.ndarray]:
    """An AdelaiDet SOLOv2 state dict of a `Segmenter`'s variables: undoes `import_adelaidet`.

    Raises:
      InputError: naming the leaves that AdelaiDet has no place for.
    """
    return export_state(ADELAIDET, variables)


def flip_stem_channels(variables: PyTree) -> PyTree:
    """Variables whose stem reads RGB where it read BGR, or the reverse; the rest is shared.

    The means and deviations of the normalisation must be reversed with it.
    """

    def flip(path, leaf):
        names = tuple(entry.key for entry in path)
        return leaf[:, :, ::-1] if names == STEM else leaf

    return jax.tree_util.tree_map_with_path(flip, variables)
