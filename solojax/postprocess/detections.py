"""From network outputs to a fixed number of scored masks, in one jitted program.

Published order: sigmoid, points-NMS, score threshold, masks, binary at 0.5, drop small masks, score
times maskness, the best `nms_pre`, Matrix NMS, score threshold, the best `max_detections`.
Candidates are padded to a fixed number and handled a chunk at a time; chunks that hold no candidate
are not computed, so an image with few candidates is cheap whatever the padding.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from solojax.errors import InputError
from solojax.ops.boxes import boxes_from_masks
from solojax.ops.mask_decoding import (
    count_cells,
    groups_with_offsets,
    map_size,
    mask_probabilities,
)
from solojax.ops.masks import (
    iou_from_intersection,
    mask_area,
    mask_intersection,
    maskness,
    pack_masks,
    unpack_masks,
)
from solojax.ops.nms import fast_nms, hard_nms, matrix_nms, points_nms, soft_nms
from solojax.ops.picking import pick_rows
from solojax.ops.vectors import l2_normalize
from solojax.structures import Array, Detections, GridSpec, Masks, SegmenterOutputs

CHUNK = 64


@dataclasses.dataclass(frozen=True)
class DetectionSettings:
    """Inference settings; the defaults are the published ones.

    Attributes:
      score_threshold: candidates must be above it before masks are made.
      max_candidates: M, (cell, class) candidates whose masks are made, best scores first. The
        published code has no such bound; those beyond it are counted in `Detections.overflow`.
      mask_threshold: probability above which a pixel is foreground.
      nms_pre: masks that enter Matrix NMS.
      nms: "matrix", "soft", "hard" or "fast".
      nms_threshold: overlap above which hard and fast NMS suppress, and soft NMS with the linear
        kernel decays.
      nms_kernel: of matrix and soft NMS, "gaussian" or "linear".
      nms_sigma: of the Gaussian kernel, in exp(-sigma iou^2).
      update_threshold: least score that survives Matrix NMS.
      max_detections: detections per image.
    """

    score_threshold: float = 0.1
    max_candidates: int = 1024
    mask_threshold: float = 0.5
    nms_pre: int = 500
    nms: str = "matrix"
    nms_threshold: float = 0.5
    nms_kernel: str = "gaussian"
    nms_sigma: float = 2.0
    update_threshold: float = 0.05
    max_detections: int = 100

    def __post_init__(self):
        if not self.max_detections <= self.nms_pre <= self.max_candidates:
            raise InputError(
                f"evaluation: max_detections {self.max_detections} <= nms_pre {self.nms_pre} <= "
                f"max_candidates {self.max_candidates} must hold; raise the later ones"
            )


def category_scores(category_logits: Array, grid: GridSpec) -> Array:
    """Sigmoid scores after points-NMS on every level: (B, G, K) logits to (B, G, K) float32."""
    scores = jax.nn.sigmoid(category_logits.astype(jnp.float32))
    batch, _, classes = scores.shape
    levels = []
    for offset, side in zip(grid.level_offsets, grid.num_grids, strict=True):
        level = scores[:, offset : offset + side * side]
        level = points_nms(level.reshape(batch, side, side, classes))
        levels.append(level.reshape(batch, side * side, classes))
    return jnp.concatenate(levels, axis=1)


def detect(outputs: SegmenterOutputs, grid: GridSpec, settings: DetectionSettings) -> Detections:
    """Detections of a batch, at fixed shapes.

    Args:
      outputs: logits of the network.
      grid: the levels that the cells belong to.
      settings: thresholds and sizes.

    Returns:
      Detections padded to `settings.max_detections`, score-descending.
    """
    scores, cells, labels, overflow = _candidates(outputs, grid, settings)
    packed, areas, quality = _candidate_masks(outputs.masks, cells, scores > 0, settings)
    strides = np.repeat(np.asarray(grid.strides, np.float32), grid.cells_per_level)
    scores = jnp.where(areas > jnp.asarray(strides)[cells], scores * quality, 0.0)

    scores, order = jax.lax.top_k(scores, settings.nms_pre)
    pick = functools.partial(pick_rows, index=order)
    labels, cells, packed, areas = map(pick, (labels, cells, packed, areas))
    valid = scores > 0
    iou = _packed_iou(packed, areas, valid)
    scores = _suppress(iou, labels, scores, valid, settings)

    scores = jnp.where(scores >= settings.update_threshold, scores, 0.0)
    scores, order = jax.lax.top_k(scores, settings.max_detections)
    valid = scores > 0
    cells = pick_rows(cells, order)
    probabilities = _detected_masks(outputs.masks, cells, valid)
    return Detections(
        scores=scores,
        labels=jnp.where(valid, pick_rows(labels, order), 0),
        boxes=_canvas_boxes(probabilities > settings.mask_threshold, valid),
        masks=probabilities,
        valid=valid,
        overflow=overflow,
        embeddings=_detected_embeddings(outputs.embeddings, cells, valid),
    )


def _suppress(
    iou: Array, labels: Array, scores: Array, valid: Array, settings: DetectionSettings
) -> Array:
    kernel, sigma, threshold = settings.nms_kernel, settings.nms_sigma, settings.nms_threshold
    methods = {
        "matrix": functools.partial(matrix_nms, kernel=kernel, sigma=sigma),
        "soft": functools.partial(soft_nms, kernel=kernel, sigma=1.0 / sigma, threshold=threshold),
        "hard": functools.partial(hard_nms, threshold=threshold),
        "fast": functools.partial(fast_nms, threshold=threshold),
    }
    if settings.nms not in methods:
        raise InputError(f"nms {settings.nms!r} is unknown; use one of {', '.join(methods)}")
    return methods[settings.nms](iou, labels, scores, valid)


def _candidates(
    outputs: SegmenterOutputs, grid: GridSpec, settings: DetectionSettings
) -> tuple[Array, Array, Array, Array]:
    """Best (cell, class) pairs above the threshold: scores, cells, labels (B, M), overflow (B,)."""
    scores = category_scores(outputs.category_logits, grid)
    batch, _, classes = scores.shape
    flat = scores.reshape(batch, -1)
    flat = jnp.where(flat > settings.score_threshold, flat, 0.0)
    total = jnp.sum(flat > 0, axis=1, dtype=jnp.int32)
    size = min(settings.max_candidates, flat.shape[1])
    best, index = jax.lax.top_k(flat, size)
    short = ((0, 0), (0, settings.max_candidates - size))
    best, index = jnp.pad(best, short), jnp.pad(index, short)
    overflow = jnp.maximum(total - settings.max_candidates, 0)
    return best, index // classes, index % classes, overflow


def _candidate_masks(
    masks: tuple[Masks, ...], cells: Array, valid: Array, settings: DetectionSettings
) -> tuple[Array, Array, Array]:
    """Packed binary masks (B, M, h, w/8), areas (B, M) and maskness (B, M) of the candidates."""
    height, width = map_size(masks[0])
    shape = cells.shape

    def describe(probabilities):
        binary = probabilities > settings.mask_threshold
        return pack_masks(binary), mask_area(binary), maskness(probabilities, binary)

    buffers = (
        jnp.zeros((*shape, height, -(-width // 8)), jnp.uint8),
        jnp.zeros(shape, jnp.float32),
        jnp.zeros(shape, jnp.float32),
    )
    return _over_groups(describe, masks, cells, valid, buffers)


def _detected_masks(masks: tuple[Masks, ...], cells: Array, valid: Array) -> Array:
    """Mask probabilities (B, M, h, w) of cells, 0 where not valid."""
    buffers = (jnp.zeros((*cells.shape, *map_size(masks[0])), jnp.float32),)
    (probabilities,) = _over_groups(
        lambda x: (x.astype(jnp.float32),), masks, cells, valid, buffers
    )
    return probabilities


def _detected_embeddings(embeddings: Array | None, cells: Array, valid: Array) -> Array | None:
    """Embeddings (B, M, E) of cells, of length 1, 0 where not valid.

    The published code mixes cells and channels here.
    """
    if embeddings is None:
        return None
    unit = l2_normalize(pick_rows(embeddings, cells)).astype(jnp.float32)
    return jnp.where(valid[..., None], unit, 0.0)


def _over_groups(
    compute: Callable, masks: tuple[Masks, ...], cells: Array, valid: Array, buffers: tuple
) -> tuple:
    """Fills the buffers' axis 1 with `compute` of the valid cells' mask probabilities.

    Every group of masks serves its own cells, at the resolution of the first group. Its members
    are brought to the front, so that only chunks with members are computed.
    """
    size = map_size(masks[0])
    for offset, group in groups_with_offsets(masks):
        count = count_cells(group)
        member = valid & (cells >= offset) & (cells < offset + count)
        order = jnp.argsort(~member, axis=1, stable=True)
        local = jnp.take_along_axis(cells, order, axis=1) - offset

        def chunk(start, length, group=group, local=local):
            chosen = jax.lax.dynamic_slice_in_dim(local, start, length, axis=1)
            # Cells of other groups come along at the end; their values are not used.
            chosen = jnp.clip(chosen, 0, count_cells(group) - 1)
            return compute(mask_probabilities(group, chosen, size))

        filled = _over_chunks(chunk, buffers, jnp.take_along_axis(member, order, axis=1))
        rank = jnp.argsort(order, axis=1)
        buffers = tuple(
            jnp.where(_expand(member, new.ndim), pick_rows(new, rank), old)
            for new, old in zip(filled, buffers, strict=True)
        )
    return buffers


def _expand(rows: Array, ndim: int) -> Array:
    return rows.reshape(rows.shape + (1,) * (ndim - rows.ndim))


def _packed_iou(masks: Array, areas: Array, valid: Array) -> Array:
    """Pairwise IoU (B, M, M) of packed masks (B, M, h, w/8), a chunk of rows at a time."""
    batch, count = areas.shape
    everything = unpack_masks(masks)

    def chunk_rows(start, size):
        part = jax.lax.dynamic_slice_in_dim(masks, start, size, axis=1)
        return (mask_intersection(unpack_masks(part), everything),)

    empty = (jnp.zeros((batch, count, count), jnp.float32),)
    (intersection,) = _over_chunks(chunk_rows, empty, valid)
    return iou_from_intersection(intersection, areas, areas)


def _over_chunks(compute, buffers, valid: Array):
    """Fills the buffers' axis 1 chunk by chunk, as far as any row of the batch is valid.

    Valid candidates come first. `compute(start, size)` returns one part per buffer. The last chunk
    is moved back so as not to pass the end; what it computes twice is equal.
    """
    count = valid.shape[1]
    size = min(CHUNK, count)
    needed = jnp.max(jnp.sum(valid, axis=1))

    def fill(carry):
        index, filled = carry
        start = jnp.minimum(index * size, count - size)
        filled = tuple(
            jax.lax.dynamic_update_slice_in_dim(whole, part, start, axis=1)
            for whole, part in zip(filled, compute(start, size), strict=True)
        )
        return index + 1, filled

    return jax.lax.while_loop(
        lambda carry: carry[0] * size < needed, fill, (jnp.int32(0), buffers)
    )[1]


def _canvas_boxes(binary: Array, valid: Array, scale: int = 4) -> Array:
    """Tight boxes in canvas pixels around masks at 1/4 scale, 0 where invalid."""
    return jnp.where(valid[..., None], boxes_from_masks(binary) * scale, 0.0)
