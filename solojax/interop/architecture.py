"""Which network a set of weights belongs to, as the config keys that describe it.

Read off the shapes of our own variables, so that every layout is served by the same rules.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from solojax.interop.layout import PyTree
from solojax.interop.lazy_arrays import BrokenFile
from solojax.interop.trees import flatten

BLOCKS = {
    ((2, 2, 2, 2), False): 18,
    ((3, 4, 6, 3), False): 34,
    ((3, 4, 6, 3), True): 50,
    ((3, 4, 23, 3), True): 101,
    ((3, 8, 36, 3), True): 152,
}
OFFSET_CHANNELS = {18: "v1", 27: "v2"}  # of a 3x3 convolution with one offset group

Shapes = Mapping[str, tuple[int, ...]]


def param_shapes(variables: PyTree) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter by its path with slashes."""
    leaves = flatten(variables["params"])
    return {"/".join(path): tuple(leaf.shape) for path, leaf in leaves.items()}


def backbone_settings(shapes: Shapes) -> dict[str, Any]:
    """The keys of `model.backbone` that the parameters determine.

    Raises:
      BrokenFile: they are of no ResNet that is known here.
    """
    found = [re.fullmatch(r"backbone/layer(\d+)_(\d+)/conv1/kernel", path) for path in shapes]
    blocks = {(int(match[1]), int(match[2])) for match in found if match}
    counts = tuple(sum(stage == wanted for stage, _ in blocks) for wanted in (1, 2, 3, 4))
    bottleneck = is_bottleneck(shapes)
    if (counts, bottleneck) not in BLOCKS or "backbone/conv1/kernel" not in shapes:
        known = ", ".join(str(depth) for depth in BLOCKS.values())
        raise BrokenFile(
            f"its backbone has {counts} {'bottlenecks' if bottleneck else 'blocks'} in its stages; "
            f"ResNets of depth {known} are known"
        )
    width = shapes["backbone/conv1/kernel"][-1]
    settings: dict[str, Any] = {
        "model.backbone.depth": BLOCKS[counts, bottleneck],
        "model.backbone.width": width,
        "model.backbone.deformable": _deformable(shapes, "backbone/"),
    }
    if bottleneck:
        _, _, group_width, channels = shapes["backbone/layer1_0/conv2/kernel"]
        settings["model.backbone.groups"] = channels // group_width
        settings["model.backbone.base_width"] = group_width * 64 // width
    stages = {int(match[1]) for path in shapes if (match := _OFFSET.match(path))}
    if stages:
        settings["model.backbone.deformable_stages"] = tuple(sorted(stages))
    return settings


_OFFSET = re.compile(r"backbone/layer(\d+)_\d+/conv2/offset/kernel")


def is_bottleneck(shapes: Shapes) -> bool:
    """Whether the backbone's blocks have three convolutions."""
    return "backbone/layer1_0/conv3/kernel" in shapes


def head_settings(shapes: Shapes) -> dict[str, Any]:
    """The keys of neck, head, mask features and grid that the parameters determine.

    Raises:
      BrokenFile: a part is missing.
    """
    kind = _head_kind(shapes)
    tower = _out_channels(shapes, "head/category_tower_0/conv/kernel")
    settings: dict[str, Any] = {
        "model.head.kind": kind,
        "model.head.num_convs": _count(shapes, "head/category_tower_"),
        "model.head.channels": tower,
        "model.num_classes": _out_channels(shapes, "head/category_pred/kernel"),
        "model.head.num_coordinate_convs": _coordinate_convs(shapes, kind),
        "model.head.deformable": _deformable(shapes, "head/"),
    }
    if "neck/lateral_0/kernel" in shapes:
        settings["model.neck.channels"] = _out_channels(shapes, "neck/lateral_0/kernel")
    if kind == "solov2":
        settings |= _mask_feature_settings(shapes)
    else:
        settings["model.grid.num_grids"] = _grids(shapes, kind)
    deformable = sum(
        f"head/category_tower_{i}/conv/offset/kernel" in shapes
        for i in range(settings["model.head.num_convs"])
    )
    if deformable > 1:  # one, the last, goes without saying
        settings["model.head.deformable_convs"] = deformable
    return settings


def _head_kind(shapes: Shapes) -> str:
    marks = {
        "head/kernel_pred/kernel": "solov2",
        "head/mask_pred_0/kernel": "solo",
        "head/x_tower_0/conv/kernel": "decoupled",
        "head/x_pred_0/kernel": "decoupled_light",
    }
    for path, kind in marks.items():
        if path in shapes:
            return kind
    raise BrokenFile("it holds no head of SOLO, Decoupled SOLO or SOLOv2")


def _mask_feature_settings(shapes: Shapes) -> dict[str, Any]:
    first = "mask_features/level0_conv0/conv/kernel"
    coarsest = "mask_features/level3_conv0/conv/kernel"
    out = _out_channels(shapes, "mask_features/pred/conv/kernel")
    taps = _out_channels(shapes, "head/kernel_pred/kernel") // out
    settings = {
        "model.mask_features.kind": "unified",
        "model.mask_features.channels": _out_channels(shapes, first),
        "model.mask_features.out_channels": out,
        "model.mask_features.kernel_size": round(taps**0.5),
        "model.mask_features.coordinates": (
            _in_channels(shapes, coarsest) != _in_channels(shapes, first)
        ),
        "model.mask_features.deformable": _deformable(shapes, "mask_features/"),
    }
    if "mask_features/pred/conv/offset/kernel" in shapes:
        settings["model.mask_features.deformable_pred"] = True
    return settings


def _grids(shapes: Shapes, kind: str) -> tuple[int, ...]:
    name = "mask_pred_" if kind == "solo" else "x_pred_"
    channels = [
        _out_channels(shapes, f"head/{name}{level}/kernel")
        for level in range(_count(shapes, f"head/{name}"))
    ]
    return tuple(round(c**0.5) if kind == "solo" else c for c in channels)


def _coordinate_convs(shapes: Shapes, kind: str) -> int:
    """How many first blocks of the mask (or kernel) tower take more channels than they would."""
    name = {"solov2": "kernel_tower_", "decoupled": "x_tower_"}.get(kind, "mask_tower_")
    plain = [
        _in_channels(shapes, f"head/category_tower_{i}/conv/kernel")
        for i in range(_count(shapes, "head/category_tower_"))
    ]
    actual = [
        _in_channels(shapes, f"head/{name}{i}/conv/kernel")
        for i in range(_count(shapes, f"head/{name}"))
    ]
    return sum(more > usual for more, usual in zip(actual, plain, strict=False))


def _deformable(shapes: Shapes, prefix: str) -> str:
    """The version of the deformable 3x3 convolutions below a prefix, "none" if there are none."""
    channels = {
        shape[-1]
        for path, shape in shapes.items()
        if path.startswith(prefix) and path.endswith("/offset/kernel") and shape[0] == 3
    }
    if not channels:
        return "none"
    if len(channels) > 1 or not channels <= OFFSET_CHANNELS.keys():
        raise BrokenFile(
            f"its deformable convolutions have {sorted(channels)} offset channels; 18 (v1) or 27 "
            "(v2, modulated) are known"
        )
    return OFFSET_CHANNELS[channels.pop()]


def _count(shapes: Shapes, prefix: str) -> int:
    """How many modules there are whose names are the prefix and a number."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)/")
    return len({match[1] for path in shapes if (match := pattern.match(path))})


def _out_channels(shapes: Shapes, path: str) -> int:
    if path not in shapes:
        raise BrokenFile(f"it lacks {path}, by which its network would be known")
    return shapes[path][-1]


def _in_channels(shapes: Shapes, path: str) -> int:
    if path not in shapes:
        raise BrokenFile(f"it lacks {path}, by which its network would be known")
    return shapes[path][-2]
