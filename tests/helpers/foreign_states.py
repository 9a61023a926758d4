"""Small state dicts with the names of every foreign layout, written down apart from the tables.

Names come from the systems themselves: tests/golden/foreign_files/names_and_shapes.json holds
recorded ones, and `test_layouts` compares.
"""

from __future__ import annotations

import re
import zlib

import numpy as np

BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
FULL_GRIDS = (40, 36, 24, 16, 12)
NORM = ("weight", "bias", "running_mean", "running_var")

Shapes = dict[str, tuple[int, ...]]


def resnet(depth: int = 18, width: int = 4, group_width: int | None = None, offsets: int = 0):
    """A torchvision ResNet; `offsets` channels beside the 3x3 convolutions of C3 to C5."""
    shapes: Shapes = {}

    def conv(name, norm, *shape):
        shapes[f"{name}.weight"] = shape
        shapes.update({f"{norm}.{part}": (shape[0],) for part in NORM})
        shapes[f"{norm}.num_batches_tracked"] = ()

    conv("conv1", "bn1", width, 3, 7, 7)
    channels = width
    for stage, blocks in enumerate(BLOCKS[depth]):
        inner = width * 2**stage
        for block in range(blocks):
            name = f"layer{stage + 1}.{block}"
            if depth < 50:
                conv(f"{name}.conv1", f"{name}.bn1", inner, channels, 3, 3)
                conv(f"{name}.conv2", f"{name}.bn2", inner, inner, 3, 3)
                out = inner
            else:
                middle = inner * 2 if group_width else inner
                per_group = group_width * 2**stage if group_width else middle
                conv(f"{name}.conv1", f"{name}.bn1", middle, channels, 1, 1)
                conv(f"{name}.conv2", f"{name}.bn2", middle, per_group, 3, 3)
                if offsets and stage > 0:
                    shapes[f"{name}.conv2.conv_offset.weight"] = (offsets, middle, 3, 3)
                    shapes[f"{name}.conv2.conv_offset.bias"] = (offsets,)
                conv(f"{name}.conv3", f"{name}.bn3", inner * 4, middle, 1, 1)
                out = inner * 4
            if out != channels or (stage > 0 and block == 0):
                conv(f"{name}.downsample.0", f"{name}.downsample.1", out, channels, 1, 1)
            channels = out
    return shapes


def renamed(shapes: Shapes, *rules: tuple[str, str]) -> Shapes:
    """Names after regular-expression replacements, one after the other."""
    result = {}
    for name, shape in shapes.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        result[name] = shape
    return result


def prefixed(prefix: str, shapes: Shapes) -> Shapes:
    """Names after a prefix."""
    return {prefix + name: shape for name, shape in shapes.items()}


def without_counters(shapes: Shapes) -> Shapes:
    """Without num_batches_tracked, which detectron2 does not keep."""
    return {name: s for name, s in shapes.items() if not name.endswith("num_batches_tracked")}


def detectron2_resnet(**options) -> Shapes:
    """The same network with detectron2's names."""
    stages = [(rf"^layer{n}\.", f"res{n + 1}.") for n in range(1, 5)]
    return renamed(
        without_counters(resnet(**options)),
        (r"\bbn(\d)", r"conv\1.norm"),
        (r"downsample\.0", "shortcut"),
        (r"downsample\.1", "shortcut.norm"),
        (r"conv2\.conv_offset", "conv2_offset"),
        (r"^conv1", "stem.conv1"),
        *stages,
    )


GAMMA = ("gamma", "beta", "running_mean", "running_var")


def caffe2_resnet(spelling: tuple[str, str, str, str] = GAMMA) -> Shapes:
    """A bottleneck network with Caffe2's names, and its classifier."""
    norms = list(zip(NORM, spelling, strict=True))
    shapes = renamed(
        without_counters(resnet(depth=50)),
        (r"^layer4\.", "res5_"), (r"^layer3\.", "res4_"),
        (r"^layer2\.", "res3_"), (r"^layer1\.", "res2_"),
        (r"(res\d_\d+)\.downsample\.0\.weight", r"\1_branch1_w"),
        *((rf"(res\d_\d+)\.downsample\.1\.{ours}$", rf"\1_branch1_bn_{theirs}")
          for ours, theirs in norms),
        *((rf"(res\d_\d+)\.conv{n}\.weight", rf"\1_branch2{letter}_w")
          for n, letter in ((1, "a"), (2, "b"), (3, "c"))),
        *((rf"(res\d_\d+)\.bn{n}\.{ours}$", rf"\1_branch2{letter}_bn_{theirs}")
          for n, letter in ((1, "a"), (2, "b"), (3, "c")) for ours, theirs in norms),
        (r"^conv1\.weight", "conv1_w"),
        *((rf"^bn1\.{ours}$", f"res_conv1_bn_{theirs}") for ours, theirs in norms),
    )  # fmt: skip
    return shapes | {"fc1000_w": (10, 128), "fc1000_b": (10,)}


def openmmlab_neck(channels: int = 8, inputs: tuple[int, ...] = (4, 8, 16, 32)) -> Shapes:
    """An FPN."""
    shapes: Shapes = {}
    for i, width in enumerate(inputs):
        shapes[f"neck.lateral_convs.{i}.conv.weight"] = (channels, width, 1, 1)
        shapes[f"neck.lateral_convs.{i}.conv.bias"] = (channels,)
        shapes[f"neck.fpn_convs.{i}.conv.weight"] = (channels, channels, 3, 3)
        shapes[f"neck.fpn_convs.{i}.conv.bias"] = (channels,)
    return shapes


def tower(name, inputs, channels, count, extra=0, offsets=0, norm="gn") -> Shapes:
    """ConvModules: `extra` channels go into the first, the last may be deformable."""
    shapes: Shapes = {}
    for i in range(count):
        width = inputs + extra if i == 0 else channels
        shapes[f"{name}.{i}.conv.weight"] = (channels, width, 3, 3)
        shapes[f"{name}.{i}.{norm}.weight"] = (channels,)
        shapes[f"{name}.{i}.{norm}.bias"] = (channels,)
        if offsets and i == count - 1:
            shapes[f"{name}.{i}.conv.conv_offset.weight"] = (offsets, width, 3, 3)
            shapes[f"{name}.{i}.conv.conv_offset.bias"] = (offsets,)
    return shapes


def layer(name: str, *shape: int) -> Shapes:
    """A convolution or linear layer with bias."""
    return {f"{name}.weight": shape, f"{name}.bias": (shape[0],)}


def mask_features(prefix: str, pred: str, inputs=8, channels=8, out=8) -> Shapes:
    """SOLOv2's mask features of OpenMMLab."""
    shapes: Shapes = {}
    for level in range(4):
        for step in range(max(level, 1)):
            width = channels if step else inputs + (2 if level == 3 else 0)
            name = f"{prefix}convs_all_levels.{level}.conv{step}"
            shapes[f"{name}.conv.weight"] = (channels, width, 3, 3)
            shapes |= {f"{name}.gn.weight": (channels,), f"{name}.gn.bias": (channels,)}
    shapes[f"{prefix}{pred}.conv.weight"] = (out, channels, 1, 1)
    return shapes | {f"{prefix}{pred}.gn.weight": (out,), f"{prefix}{pred}.gn.bias": (out,)}


V1 = {
    "head": "bbox_head.", "cate": "cate_convs", "cls": "solo_cate", "dcls": "dsolo_cate",
    "ins": "ins_convs", "list": "solo_ins_list", "dlist": "dsolo_ins_list",
    "kernel": "solo_kernel", "features": "mask_feat_head.", "pred": "conv_pred.0",
}  # fmt: skip
V3 = {
    "head": "mask_head.", "cate": "cls_convs", "cls": "conv_cls", "dcls": "conv_cls",
    "ins": "mask_convs", "list": "conv_mask_list", "dlist": "conv_mask_list",
    "kernel": "conv_kernel", "features": "mask_head.mask_feature_head.", "pred": "conv_pred",
}  # fmt: skip


def openmmlab_head(kind, names, c=8, convs=2, grids=FULL_GRIDS, classes=80, offsets=0) -> Shapes:
    """A head by its kind: solo, decoupled, decoupled_light or solov2."""
    head, last = names["head"], {"offsets": offsets}
    shapes = tower(f"{head}{names['cate']}", c, c, convs, **last)
    if kind == "solov2":
        shapes |= tower(f"{head}kernel_convs", c, c, convs, extra=2, **last)
        shapes |= layer(f"{head}{names['cls']}", classes, c, 3, 3)
        shapes |= layer(f"{head}{names['kernel']}", c, c, 3, 3)
        return shapes | mask_features(names["features"], names["pred"], c, c, c)
    if kind == "solo":
        shapes |= tower(f"{head}{names['ins']}", c, c, convs, extra=2, **last)
        shapes |= layer(f"{head}{names['cls']}", classes, c, 3, 3)
        for level, side in enumerate(grids):
            shapes |= layer(f"{head}{names['list']}.{level}", side * side, c, 1, 1)
        return shapes
    if kind == "decoupled_light":
        shapes |= tower(f"{head}{names['ins']}", c, c, convs, extra=2, **last)
    else:
        for axis in "xy":
            shapes |= tower(f"{head}{names['ins']}_{axis}", c, c, convs, extra=1, **last)
    for axis in "xy":
        for level, side in enumerate(grids):
            shapes |= layer(f"{head}{names['dlist']}_{axis}.{level}", side, c, 3, 3)
    return shapes | layer(f"{head}{names['dcls']}", classes, c, 3, 3)


def openmmlab(kind, names=V1, head=None, **backbone) -> Shapes:
    """A whole network."""
    width = backbone.get("width", 4) * (4 if backbone.get("depth", 18) >= 50 else 1)
    inputs = tuple(width * 2**stage for stage in range(4))
    head = head or {}
    body = prefixed("backbone.", resnet(**backbone)) | openmmlab_neck(head.get("c", 8), inputs)
    return body | openmmlab_head(kind, names, **head)


def adelaidet(c=8, convs=2, classes=80, embedding=False, **backbone) -> Shapes:
    """AdelaiDet's SOLOv2, or FreeSOLO."""
    head = {"c": c, "convs": convs, "classes": classes}
    shapes = renamed(
        openmmlab("solov2", V1, head, **backbone),
        (r"^backbone\..*num_batches_tracked$", "drop"),
        (r"neck\.lateral_convs\.(\d)\.conv", lambda m: f"backbone.fpn_lateral{int(m[1]) + 2}"),
        (r"neck\.fpn_convs\.(\d)\.conv", lambda m: f"backbone.fpn_output{int(m[1]) + 2}"),
        (r"bbox_head\.(cate|kernel)_convs\.(\d+)\.conv",
         lambda m: f"ins_head.{m[1]}_tower.{int(m[2]) * 3}"),
        (r"bbox_head\.(cate|kernel)_convs\.(\d+)\.gn",
         lambda m: f"ins_head.{m[1]}_tower.{int(m[2]) * 3 + 1}"),
        (r"bbox_head\.solo_cate", "ins_head.cate_pred"),
        (r"bbox_head\.solo_kernel", "ins_head.kernel_pred"),
        (r"mask_feat_head\.(.*)\.conv\.", r"mask_head.\1.0."),
        (r"mask_feat_head\.(.*)\.gn\.", r"mask_head.\1.1."),
        (r"mask_head\.conv_pred\.0\.", "mask_head.conv_pred."),
    )  # fmt: skip
    body = {name: s for name, s in shapes.items() if not name.startswith("backbone.layer")}
    body = {
        name: s
        for name, s in body.items()
        if re.match(r"backbone\.fpn|ins_head|mask_head", name) and name != "drop"
    }
    bottom_up = prefixed("backbone.bottom_up.", detectron2_resnet(**backbone))
    if embedding:
        body |= layer("ins_head.emb_pred", 128, c, 3, 3) | {"_iter": (1,)}
    return bottom_up | body


def projection(prefix: str, name: str, *spatial: int, width: int = 32) -> Shapes:
    """Two layers with a ReLU between them, 128 out."""
    return layer(f"{prefix}{name}.0", 16, width, *spatial) | layer(
        f"{prefix}{name}.2", 128, 16, *spatial
    )


def queue(name: str) -> Shapes:
    """A queue of 24 keys and its pointer."""
    return {name: (128, 24), f"{name}_ptr": (1,)}


def moco(version: int) -> Shapes:
    """MoCo, the prefix of DataParallel already off."""
    shapes = queue("queue")
    for encoder in ("encoder_q.", "encoder_k."):
        shapes |= prefixed(encoder, resnet())
        head = projection("", "fc") if version == 2 else layer("fc", 128, 32)
        shapes |= prefixed(encoder, head)
    return shapes


def densecl() -> Shapes:
    """The published DenseCL; its backbone has two names."""
    shapes = queue("queue") | queue("queue2") | prefixed("backbone.", resnet())
    for encoder in ("encoder_q.", "encoder_k."):
        shapes |= prefixed(f"{encoder}0.", resnet())
        shapes |= projection(f"{encoder}1.", "mlp") | projection(f"{encoder}1.", "mlp2", 1, 1)
    return shapes


def mmselfsup() -> Shapes:
    """DenseCL in mmselfsup 1 and mmpretrain."""
    shapes = queue("queue") | queue("queue2") | {"encoder_k.steps": ()}
    for body, neck in (("backbone.", "neck."), ("encoder_k.module.0.", "encoder_k.module.1.")):
        shapes |= prefixed(body, resnet())
        shapes |= projection(neck, "mlp") | projection(neck, "mlp2", 1, 1)
    return shapes


KINDS = {"solo": "solo", "decoupled": "decoupled-solo", "decoupled_light": "decoupled-solo-light",
         "solov2": "solov2"}  # fmt: skip

# A file of every layout, by the layout's name and what it shows.
STATES: dict[tuple[str, str], Shapes] = {
    ("torchvision", "with its classifier"): resnet() | layer("fc", 10, 32),
    ("torchvision", "ResNeXt"): resnet(depth=50, group_width=2),
    ("openmmlab-backbone", "plain"): prefixed("backbone.", resnet()) | layer("head.fc", 10, 32),
    ("detectron2", "plain"): detectron2_resnet(depth=50),
    ("caffe2", "gamma"): caffe2_resnet(),
    ("caffe2", "s"): caffe2_resnet(("s", "b", "rm", "riv")),
    ("adelaidet", "plain"): adelaidet(depth=50),
    ("adelaidet", "deformable"): adelaidet(depth=50, offsets=27),
    ("freesolo", "plain"): adelaidet(depth=50, classes=2, embedding=True),
    ("moco", "v1"): moco(1),
    ("moco", "v2"): moco(2),
    ("densecl", "full"): densecl(),
    ("mmselfsup", "full"): mmselfsup(),
    **{
        (f"{key}-{name}", note): openmmlab(kind, names, head, **backbone)
        for key, names in (("mmdet-v1", V1), ("mmdet", V3))
        for kind, name in KINDS.items()
        for note, head, backbone in (
            ("plain", {}, {}),
            ("deformable", {"offsets": 27}, {"depth": 50, "offsets": 27}),
        )
    },
}


def fill(shapes: Shapes, dtype=np.float32) -> dict[str, np.ndarray]:
    """Numbers of its own for every tensor; whole ones for counters and pointers."""
    state = {}
    for name, shape in shapes.items():
        draw = np.random.default_rng(zlib.crc32(name.encode()))
        whole = name.endswith(("num_batches_tracked", "_ptr", "_iter", ".steps"))
        state[name] = (
            draw.integers(0, 1000, shape) if whole else draw.normal(size=shape).astype(dtype)
        )
        state[name] = np.asarray(state[name])
    return state
