"""A network's outputs stage by stage, to be compared with those of another system."""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
import numpy as np

from solojax.interop.parity import TOLERANCE, StageReport, compare_stages, read_recording
from solojax.ops.images import normalize_image
from solojax.structures import DecoupledMasks, DynamicMasks, Masks, PyTree
from solojax.tasks.instance_segmentation import InstanceSegmentation


def verify(
    task: InstanceSegmentation,
    variables: PyTree,
    path: str | os.PathLike,
    tolerance: float = TOLERANCE,
) -> list[StageReport]:
    """Compares a network with a recording, see `read_recording` and `network_stages`.

    Args:
      task: the network.
      variables: its weights.
      path: an .npz file.
      tolerance: allowed difference as a part of a recorded array's largest absolute value.

    Raises:
      InputError: the file is no recording, or one of another network.
    """
    recording = read_recording(path)
    ours = network_stages(task, variables, recording.image, recording.image_size)
    return compare_stages(recording.stages, ours, tolerance)


def network_stages(
    task: InstanceSegmentation, variables: PyTree, image: np.ndarray, image_size: np.ndarray
) -> dict[str, np.ndarray]:
    """Every stage of a network at inference, in order, channels last.

    input             (B, H, W, 3) normalised
    c2, c3, ...       the backbone's stages
    p2, p3, ...       the pyramid
    category_l0, ...  (B, S, S, K) logits of each level, and category_logits (B, G, K) of all
    SOLOv2            kernels_l0, ... (B, S, S, E), kernels (B, G, E), mask_features (B, h, w, E)
    SOLO              features_l0, ... (B, h, w, C), which the 1x1 convolutions read
    Decoupled SOLO    x_l0, y_l0, ... (B, h, w, S) logits

    Args:
      task: the network.
      variables: its weights.
      image: (B, H, W, 3) uint8 RGB.
      image_size: (B, 2) valid (height, width).
    """

    def run(variables, image, image_size):
        x = normalize_image(image, image_size, task.pixel_mean, task.pixel_std, task.dtype)
        outputs, state = task.model.apply(
            variables, x, capture_intermediates=_is_part, mutable=["intermediates"]
        )
        parts = state["intermediates"]
        stages = {"input": x}
        for name, letter in (("backbone", "c"), ("neck", "p")):
            maps = parts[name]["__call__"][0]
            stages |= {f"{letter}{index}": each for index, each in enumerate(maps, start=2)}
        sides = task.grid.num_grids
        stages |= _by_level("category", outputs.category_logits, sides)
        stages["category_logits"] = outputs.category_logits
        for level, masks in enumerate(outputs.masks):
            suffix = f"_l{level}" if len(outputs.masks) > 1 else ""
            stages |= _mask_stages(masks, suffix, sides)
        return stages

    return jax.device_get(jax.jit(run)(variables, jnp.asarray(image), jnp.asarray(image_size)))


def _is_part(module, method: str) -> bool:
    """Whether a call is one of the network's direct parts."""
    return method == "__call__" and len(module.path) == 1


def _mask_stages(masks: Masks, suffix: str, sides: tuple[int, ...]) -> dict[str, jax.Array]:
    if isinstance(masks, DecoupledMasks):
        return {f"x{suffix}": masks.x, f"y{suffix}": masks.y}
    if not isinstance(masks, DynamicMasks):
        return {f"features{suffix}": masks.features}
    stages = {} if suffix else _by_level("kernels", masks.kernels, sides)
    return stages | {f"kernels{suffix}": masks.kernels, f"mask_features{suffix}": masks.features}


def _by_level(name: str, cells: jax.Array, sides: tuple[int, ...]) -> dict[str, jax.Array]:
    """(B, G, C) as one (B, S, S, C) for every level."""
    stages, start = {}, 0
    for level, side in enumerate(sides):
        part = cells[:, start : start + side * side]
        stages[f"{name}_l{level}"] = part.reshape(part.shape[0], side, side, -1)
        start += side * side
    return stages
