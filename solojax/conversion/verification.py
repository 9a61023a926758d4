"""A network's outputs stage by stage, to be compared with those of another system."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable, Collection, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from solojax.interop.parity import (
    TOLERANCE,
    StageReport,
    check_stages,
    compare_instances,
    compare_stages,
)
from solojax.interop.recordings import RecordedInstances, Recording, read_recording
from solojax.ops.images import normalize_image
from solojax.ops.mask_decoding import count_cells, mask_logits
from solojax.postprocess.detections import category_scores, detect
from solojax.postprocess.rescale import resize_masks
from solojax.structures import (
    Array,
    DecoupledMasks,
    Detections,
    DirectMasks,
    DynamicMasks,
    Masks,
    PyTree,
    SegmenterOutputs,
)
from solojax.tasks.instance_segmentation import InstanceSegmentation

Stages = dict[str, Callable[[], Array]]

_logger = logging.getLogger(__name__)


def verify(
    task: InstanceSegmentation,
    variables: PyTree,
    path: str | os.PathLike,
    tolerance: float = TOLERANCE,
) -> list[StageReport]:
    """Compares a network with a recording, see `read_recording` and `network_stages`.

    Args:
      task: the network, with the settings by which it detects.
      variables: its weights.
      path: an .npz file.
      tolerance: allowed difference as a part of a recorded array's largest absolute value; final
        objects have allowances of their own, see `compare_instances`.

    Raises:
      InputError: the file is no recording, or one of another network.
    """
    recording = read_recording(path)
    inputs = recording.image, recording.image_size, recording.pyramid
    with jax.enable_x64(True) if recording.float64 else contextlib.nullcontext():
        if recording.float64:
            task, variables = in_float64(task, variables)
        shapes = _stage_shapes(task, variables, *inputs)
        check_stages(recording.stages, shapes)

        def run(variables, *inputs):
            stages, outputs = network_stages(task, variables, *inputs, names=recording.stages)
            found = detect(outputs, task.grid, task.detection) if recording.instances else None
            return stages, found

        stages, detections = jax.device_get(jax.jit(run)(variables, *inputs))
    stages = {name: stages[name] for name in shapes if name in stages}
    reports = compare_stages(recording.stages, stages, tolerance)
    for row, recorded in recording.instances.items():
        ours = final_instances(task, detections, recording, row)
        reports += compare_instances(f"image{row}", recorded, ours)
    return reports


def network_stages(
    task: InstanceSegmentation,
    variables: PyTree,
    image: Array,
    image_size: Array,
    pyramid: Sequence[Array] = (),
    names: Collection[str] | None = None,
) -> tuple[dict[str, Array], SegmenterOutputs]:
    """Every stage of a network at inference, in order, channels last; and its outputs.

    input             (B, H, W, 3) normalised
    c2, c3, ...       the backbone's stages
    p2, p3, ...       the pyramid
    category_l0, ...  (B, S, S, K) logits of each level, and category_logits (B, G, K) of all
    scores_l0, ...    (B, S, S, K) probabilities of each level after points-NMS
    SOLOv2            kernels_l0, ... (B, S, S, E), kernels (B, G, E), mask_features (B, h, w, E)
    SOLO              features_l0, ... (B, h, w, C), which the 1x1 convolutions read, and
                      masks_l0, ... (B, h, w, S^2) logits, cells in row-major order
    Decoupled SOLO    x_l0, y_l0, ... (B, h, w, S) logits

    Args:
      task: the network.
      variables: its weights.
      image: (B, H, W, 3) uint8 RGB.
      image_size: (B, 2) valid (height, width).
      pyramid: (B, h, w, C) maps that the heads read in the place of the neck's; () for the neck's.
      names: stages that are wanted; None: all.
    """
    x = normalize_image(image, image_size, task.pixel_mean, task.pixel_std, task.dtype)
    with _pyramid_in_place([level.astype(task.dtype) for level in pyramid]):
        outputs, state = task.model.apply(
            variables, x, capture_intermediates=_is_part, mutable=["intermediates"]
        )
    parts = state["intermediates"]
    stages: Stages = {"input": lambda: x}
    for name, letter in (("backbone", "c"), ("neck", "p")):
        maps = parts[name]["__call__"][0]
        stages |= {f"{letter}{i}": lambda each=each: each for i, each in enumerate(maps, start=2)}
    stages |= _output_stages(task, outputs)
    wanted = stages if names is None else [name for name in stages if name in names]
    return {name: stages[name]() for name in wanted}, outputs


def _stage_shapes(task: InstanceSegmentation, *inputs) -> dict[str, tuple[int, ...]]:
    """Shape of every stage, in order, which dictionaries that JAX returns have not."""
    shapes = {}

    def note(*inputs):
        stages, _ = network_stages(task, *inputs)
        shapes.update((name, array.shape) for name, array in stages.items())

    jax.eval_shape(note, *inputs)
    return shapes


def in_float64(
    task: InstanceSegmentation, variables: PyTree
) -> tuple[InstanceSegmentation, PyTree]:
    """A network and its weights in double precision, for use where JAX permits it."""
    double = jnp.float64
    parts = {
        field.name: part.clone(dtype=double)
        for field in dataclasses.fields(task.model)
        if isinstance(part := getattr(task.model, field.name), nn.Module) and hasattr(part, "dtype")
    }
    task = dataclasses.replace(task, model=task.model.clone(**parts), dtype=double)
    return task, jax.tree.map(lambda x: np.asarray(x, np.float64), variables)


def final_instances(
    task: InstanceSegmentation, detections: Detections, recording: Recording, row: int
) -> RecordedInstances:
    """The objects of one image of a batch, masks at the original size."""
    if detections.overflow[row]:
        _logger.warning(
            "%d candidates of image %d found no room among evaluation.max_candidates: raise it",
            detections.overflow[row],
            row,
        )
    valid = detections.valid[row]
    masks = resize_masks(
        detections.masks[row, valid],
        recording.image_size[row],
        recording.original_size[row],
        task.detection.mask_threshold,
    )
    return RecordedInstances(
        detections.scores[row, valid], detections.labels[row, valid], masks.astype(bool)
    )


def _pyramid_in_place(pyramid: Sequence[Array]):
    """Within it, a network's neck gives this pyramid, whatever the backbone found."""

    def give(call, args, kwargs, context):
        if context.module.path == ("neck",) and context.method_name == "__call__":
            return list(pyramid)
        return call(*args, **kwargs)

    return nn.intercept_methods(give) if pyramid else contextlib.nullcontext()


def _is_part(module, method: str) -> bool:
    """Whether a call is one of the network's direct parts."""
    return method == "__call__" and len(module.path) == 1


def _output_stages(task: InstanceSegmentation, outputs: SegmenterOutputs) -> Stages:
    grid, logits = task.grid, outputs.category_logits
    scores = category_scores(logits, grid)
    stages = _by_level("category", logits, grid.num_grids)
    stages |= {"category_logits": lambda: logits}
    stages |= _by_level("scores", scores, grid.num_grids)
    for level, masks in enumerate(outputs.masks):
        suffix = f"_l{level}" if len(outputs.masks) > 1 else ""
        stages |= _mask_stages(masks, suffix, grid.num_grids)
    return stages


def _mask_stages(masks: Masks, suffix: str, sides: tuple[int, ...]) -> Stages:
    if isinstance(masks, DecoupledMasks):
        return {f"x{suffix}": lambda: masks.x, f"y{suffix}": lambda: masks.y}
    if isinstance(masks, DirectMasks):
        return {
            f"features{suffix}": lambda: masks.features,
            f"masks{suffix}": lambda: _all_logits(masks),
        }
    assert isinstance(masks, DynamicMasks)
    stages = {} if suffix else _by_level("kernels", masks.kernels, sides)
    return stages | {
        f"kernels{suffix}": lambda: masks.kernels,
        f"mask_features{suffix}": lambda: masks.features,
    }


def _all_logits(masks: DirectMasks) -> Array:
    """Every cell's mask, (B, h, w, S^2)."""
    cells = jnp.arange(count_cells(masks))
    cells = jnp.broadcast_to(cells, (masks.features.shape[0], len(cells)))
    return jnp.moveaxis(mask_logits(masks, cells), 1, -1)


def _by_level(name: str, cells: Array, sides: tuple[int, ...]) -> Stages:
    """(B, G, C) as one (B, S, S, C) for every level."""
    stages, start = {}, 0
    for level, side in enumerate(sides):

        def part(start=start, side=side):
            return cells[:, start : start + side**2].reshape(cells.shape[0], side, side, -1)

        stages[f"{name}_l{level}"] = part
        start += side * side
    return stages
