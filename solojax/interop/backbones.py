"""ResNet and ResNeXt backbones alone, as they are pretrained.

`fc` layers are left out: nothing here classifies images.
"""

from __future__ import annotations

from solojax.interop.layout import BATCH_NORM, CONV, Layout, Row, Tensor
from solojax.interop.stems import MSRA

COUNTERS = r".*\.num_batches_tracked"


def torchvision_rows(prefix: str = "", path: str = "backbone") -> tuple[Row, ...]:
    """torchvision's names (OpenMMLab's too) after `prefix`, deformable convolutions included."""
    block, ours = f"{prefix}layer{{s}}.{{b}}", f"{path}/layer{{s}}_{{b}}"
    return (
        Row(f"{prefix}conv1", f"{path}/conv1", CONV),
        Row(f"{prefix}bn1", f"{path}/bn1", BATCH_NORM),
        Row(f"{block}.conv{{c}}", f"{ours}/conv{{c}}", CONV),
        Row(f"{block}.bn{{c}}", f"{ours}/bn{{c}}", BATCH_NORM),
        Row(f"{block}.downsample.0", f"{ours}/downsample_conv", CONV),
        Row(f"{block}.downsample.1", f"{ours}/downsample_bn", BATCH_NORM),
        Row(f"{block}.conv{{c}}.conv_offset", f"{ours}/conv{{c}}/offset", CONV),
        # The spelling of mmdet before its 1.0.
        Row(f"{block}.conv{{c}}_offset", f"{ours}/conv{{c}}/offset", CONV),
    )


def detectron2_rows(prefix: str = "", path: str = "backbone") -> tuple[Row, ...]:
    """detectron2's names after `prefix`, deformable convolutions included."""
    block, ours = f"{prefix}res{{s+1}}.{{b}}", f"{path}/layer{{s}}_{{b}}"
    return (
        Row(f"{prefix}stem.conv1", f"{path}/conv1", CONV),
        Row(f"{prefix}stem.conv1.norm", f"{path}/bn1", BATCH_NORM),
        Row(f"{block}.conv{{c}}", f"{ours}/conv{{c}}", CONV),
        Row(f"{block}.conv{{c}}.norm", f"{ours}/bn{{c}}", BATCH_NORM),
        Row(f"{block}.shortcut", f"{ours}/downsample_conv", CONV),
        Row(f"{block}.shortcut.norm", f"{ours}/downsample_bn", BATCH_NORM),
        Row(f"{block}.conv{{c}}_offset", f"{ours}/conv{{c}}/offset", CONV),
    )


def _renamed(tensors: tuple[Tensor, ...], sources: str) -> tuple[Tensor, ...]:
    names = sources.split()
    return tuple(
        Tensor(name, tensor.collection, tensor.leaf, tensor.axes)
        for name, tensor in zip(names, tensors, strict=True)
    )


def _caffe2_rows() -> tuple[Row, ...]:
    """Names of Caffe2: branch2a, b, c are the convolutions, branch1 is the shortcut."""
    conv = _renamed(CONV[:1], "_w")
    spellings = (
        _renamed(BATCH_NORM, "_gamma _beta _running_mean _running_var"),
        _renamed(BATCH_NORM, "_s _b _rm _riv"),
    )
    block, ours = "res{s+1}_{b}_branch", "backbone/layer{s}_{b}/"
    parts = (("2a", "1"), ("2b", "2"), ("2c", "3"))
    modules = [("conv1", "res_conv1_bn", "backbone/conv1", "backbone/bn1")]
    modules += [
        (f"{block}{branch}", f"{block}{branch}_bn", f"{ours}conv{c}", f"{ours}bn{c}")
        for branch, c in parts
    ]
    modules.append((f"{block}1", f"{block}1_bn", f"{ours}downsample_conv", f"{ours}downsample_bn"))
    return tuple(
        row
        for source, norm_source, path, norm_path in modules
        for row in (
            Row(source, path, conv),
            *(Row(norm_source, norm_path, tensors) for tensors in spellings),
        )
    )


TORCHVISION_RESNET = Layout(
    name="torchvision",
    title="a torchvision ResNet",
    rows=torchvision_rows(),
    ignored=(r"fc\..*", COUNTERS),
    marks=("conv1.weight", "layer1.0.conv1.weight"),
    outer="",
)

OPENMMLAB_BACKBONE = Layout(
    name="openmmlab-backbone",
    title="an OpenMMLab backbone",
    rows=torchvision_rows("backbone."),
    ignored=(r"head\..*", r"data_preprocessor\..*", COUNTERS),
    marks=("backbone.conv1.weight", "backbone.layer1.0.conv1.weight"),
)

DETECTRON2_BACKBONE = Layout(
    name="detectron2",
    title="a detectron2 backbone",
    rows=detectron2_rows(),
    ignored=(r"(stem\.)?fc\d*\..*", r"linear\..*", COUNTERS),
    marks=("stem.conv1.weight", "res2.0.conv1.weight"),
    outer="model",
)

CAFFE2_BACKBONE = Layout(
    name="caffe2",
    title="a Caffe2 backbone (detectron2's MSRA files)",
    rows=_caffe2_rows(),
    ignored=(r"conv1_b", r"(fc1000|pred)_[wb]", r".*_momentum"),
    marks=("conv1_w", "res2_0_branch2a_w"),
    stem=MSRA,
    outer="model",
)
