"""SOLOv2 in float64 NumPy, from parameters of the package: thesis chapters 3 and 4, layer by layer.

`v` is {"params": ..., "batch_stats": ...} of the part that a function computes.
"""

from __future__ import annotations

import numpy as np
from helpers.plain_layers import (
    batch_norm,
    bilinear,
    conv2d,
    group_norm,
    max_pool,
    relu,
    with_coordinates,
)


def part(v, name):
    """The variables of a submodule."""
    return {kind: tree.get(name, {}) for kind, tree in v.items()}


def _norm(v, x):
    params, stats = v["params"], v.get("batch_stats", {})
    if stats:
        return batch_norm(x, params["scale"], params["bias"], stats["mean"], stats["var"])
    return group_norm(x, params["scale"], params["bias"])


def residual_block(v, x, strides):
    """Convolutions with the given strides and norms between, plus the (projected) input."""
    y = x
    for index, stride in enumerate(strides, start=1):
        y = conv2d(y, v["params"][f"conv{index}"]["kernel"], stride)
        y = _norm(part(v, f"bn{index}"), y)
        y = y if index == len(strides) else relu(y)
    if "downsample_conv" in v["params"]:
        x = conv2d(x, v["params"]["downsample_conv"]["kernel"], np.prod(strides))
        x = _norm(part(v, "downsample_bn"), x)
    return relu(x + y)


def resnet18(v, image):
    """C2 to C5 of the network with two basic blocks a stage."""
    x = relu(_norm(part(v, "bn1"), conv2d(image, v["params"]["conv1"]["kernel"], 2)))
    x = max_pool(x)
    features = []
    for stage in (1, 2, 3, 4):
        x = residual_block(part(v, f"layer{stage}_0"), x, (1 if stage == 1 else 2, 1))
        x = residual_block(part(v, f"layer{stage}_1"), x, (1, 1))
        features.append(x)
    return features


def fpn(v, features, num_outputs):
    """Laterals, top-down sums by repeated pixels, 3x3 outputs, every other pixel of the last."""
    params = v["params"]

    def conv(name, x):
        return conv2d(x, params[name]["kernel"], bias=params[name]["bias"])

    merged = [conv(f"lateral_{i}", x) for i, x in enumerate(features)]
    for level in range(len(merged) - 2, -1, -1):
        merged[level] = merged[level] + merged[level + 1].repeat(2, axis=1).repeat(2, axis=2)
    outputs = [conv(f"output_{i}", x) for i, x in enumerate(merged)]
    while len(outputs) < num_outputs:
        outputs.append(outputs[-1][:, ::2, ::2])
    return outputs


def conv_norm_relu(v, x):
    """The heads' block."""
    params = v["params"]
    y = conv2d(x, params["conv"]["kernel"])
    return relu(group_norm(y, params["norm"]["scale"], params["norm"]["bias"]))


def mask_features(v, pyramid):
    """Every level brought to the first one's size, x2 at a time, summed, and a 1x1 block."""
    total = 0.0
    for level, x in enumerate(pyramid):
        x = with_coordinates(x) if level == len(pyramid) - 1 else x
        for step in range(max(level, 1)):
            x = conv_norm_relu(part(v, f"level{level}_conv{step}"), x)
            if level:
                x = bilinear(x, 2 * x.shape[1], 2 * x.shape[2])
        total = total + x
    return conv_norm_relu(part(v, "pred"), total)


def head_levels(pyramid):
    """The first level at half its size, the last at the size of the one before it."""
    first, *middle, last = pyramid
    half = bilinear(first, first.shape[1] // 2, first.shape[2] // 2)
    return [half, *middle, bilinear(last, *middle[-1].shape[1:3])]


def solov2_head(v, levels, num_grids, num_convs, coordinates_first=True):
    """Category logits and kernels of all cells, level by level, row by row."""
    params = v["params"]
    categories, kernels = [], []
    for x, side in zip(levels, num_grids, strict=True):
        if coordinates_first:
            kernel_x = bilinear(with_coordinates(x), side, side)
        else:
            kernel_x = with_coordinates(bilinear(x, side, side))
        category_x = bilinear(x, side, side)
        for step in range(num_convs):
            category_x = conv_norm_relu(part(v, f"category_tower_{step}"), category_x)
            kernel_x = conv_norm_relu(part(v, f"kernel_tower_{step}"), kernel_x)
        for name, y, out in (
            ("category_pred", category_x, categories),
            ("kernel_pred", kernel_x, kernels),
        ):
            y = conv2d(y, params[name]["kernel"], bias=params[name]["bias"])
            out.append(np.stack([y[:, i, j] for i in range(side) for j in range(side)], axis=1))
    return np.concatenate(categories, axis=1), np.concatenate(kernels, axis=1)
