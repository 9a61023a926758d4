"""Containers of fixed shape that the rest of the package passes around.

Axis letters, used in every docstring and einsum of the project:

    B batch; H, W image; h, w feature map; C channels; K categories; L levels; S grid side;
    G = sum of S^2 over the levels, all cells; N instances; P positive (cell, instance) pairs;
    M candidates; E kernel or embedding width; Q queue length.

Arrays are NHWC. Boxes are (x1, y1, x2, y2) floats in pixels of the canvas. Every padded axis has a
validity mask; what lies in invalid places is never read.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from flax import struct

from solojax.errors import InputError

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class GridSpec:
    """Levels, grids and scale ranges: the one object that model, targets and post-processing share.

    Attributes:
      num_grids: S of every level, finest level first.
      strides: pixels per feature cell of every level (a mask is kept whose area is above that).
      scale_ranges: (low, high) per level, inclusive, on sqrt(box width * box height) in pixels.
      center_sigma: the centre region's size as a fraction of the box (thesis 3.2.3).
    """

    num_grids: tuple[int, ...] = (40, 36, 24, 16, 12)
    strides: tuple[int, ...] = (8, 8, 16, 32, 32)
    scale_ranges: tuple[tuple[float, float], ...] = (
        (1, 96), (48, 192), (96, 384), (192, 768), (384, 2048),
    )  # fmt: skip
    center_sigma: float = 0.2

    def __post_init__(self):
        lengths = {len(self.num_grids), len(self.strides), len(self.scale_ranges)}
        if len(lengths) != 1 or not self.num_grids:
            raise InputError(
                f"num_grids {self.num_grids}, strides {self.strides} and scale_ranges "
                f"{self.scale_ranges} must name the same levels; give each one entry per level"
            )

    @property
    def num_levels(self) -> int:
        """L."""
        return len(self.num_grids)

    @property
    def cells_per_level(self) -> tuple[int, ...]:
        """S^2 of every level."""
        return tuple(s * s for s in self.num_grids)

    @property
    def num_cells(self) -> int:
        """G, the cells of all levels together."""
        return sum(self.cells_per_level)

    @property
    def level_offsets(self) -> tuple[int, ...]:
        """Index of every level's first cell in the flattened G axis."""
        offsets, total = [], 0
        for cells in self.cells_per_level:
            offsets.append(total)
            total += cells
        return tuple(offsets)


@struct.dataclass
class Instances:
    """Ground-truth objects, padded to N, in annotation order.

    The masks are at 1/4 of the canvas, bit-packed along the width (`np.packbits`: eight pixels a
    byte, the leftmost in the highest bit), because they are the bulk of what a host sends. The
    centres come from the masks at full resolution, which never leave the host.
    """

    boxes: Array  # (B, N, 4) float32, xyxy, canvas pixels
    labels: Array  # (B, N) int32 in [0, K)
    centers: Array  # (B, N, 2) float32, centre of mass (x, y) in pixel indices of the canvas
    masks: Array  # (B, N, H/4, W/32) uint8, bit-packed
    valid: Array  # (B, N) bool
    # The same at 1/8, 1/16, ..., as far as the network predicts masks so coarse.
    coarse_masks: tuple[Array, ...] = ()  # (B, N, H/8, W/64), (B, N, H/16, W/128 rounded up), ...
    # Whose masks the mask branch learns from; None: all valid ones. The others train categories.
    mask_valid: Array | None = None  # (B, N) bool
    # What Free Mask or an earlier round says the objects look like; None where labels have none.
    embeddings: Array | None = None  # (B, N, E) float32


@struct.dataclass
class Batch:
    """What a training or evaluation step reads."""

    image: Array  # (B, H, W, 3) uint8 RGB, zero beyond image_size
    image_size: Array  # (B, 2) int32, (height, width) of the valid part
    original_size: Array  # (B, 2) int32, (height, width) of the file
    valid: Array  # (B,) bool, False for padding rows and unreadable images
    image_index: Array  # (B,) int32, position in the data set
    seed: Array  # (B,) uint32, the row's own random seed
    dropped_instances: Array  # (B,) int32, objects beyond N that were left out
    instances: Instances


@struct.dataclass
class ViewBatch:
    """What a step of contrastive pre-training reads: two views of every image.

    The views are crops of the image, resized and perhaps mirrored by the host; what happens to
    their colours happens on the device.
    """

    views: Array  # (B, 2, H, W, 3) uint8 RGB
    valid: Array  # (B,) bool, False for unreadable images
    image_index: Array  # (B,) int32, position in the data set
    seed: Array  # (B,) uint32, the row's own random seed


@struct.dataclass
class GridTargets:
    """Which cell learns what (thesis 3.2.3).

    `cells[b, p]` and `instances[b, p]` are the p-th positive pair of image b: level by level,
    object by object, cells in row-major order, as the published code appends them. One cell may
    occur with several instances. `category` holds the label of the last instance that claimed a
    cell, or K.
    """

    category: Array  # (B, G) int32 in [0, K], K is background
    owner: Array  # (B, G) int32, the last instance that claimed the cell, -1 for background
    cells: Array  # (B, P) int32 in [0, G)
    instances: Array  # (B, P) int32 in [0, N)
    valid: Array  # (B, P) bool
    overflow: Array  # (B,) int32, pairs beyond P that were left out


@struct.dataclass
class DynamicMasks:
    """Masks as dynamic convolutions: each cell's kernel over common features (SOLOv2)."""

    kernels: Array  # (B, S^2 or G, E), or 9 E for 3x3 kernels: row-major taps, E innermost
    features: Array  # (B, h, w, E)


@struct.dataclass
class DirectMasks:
    """Masks as channels of a 1x1 convolution, one a cell (SOLO).

    The convolution's weights stand here instead of its S^2 output maps, of which only some are
    ever needed.
    """

    features: Array  # (B, h, w, C)
    kernel: Array  # (C, S^2)
    bias: Array  # (S^2,)


@struct.dataclass
class DecoupledMasks:
    """The mask of cell (i, j) is the product of the j-th x map and the i-th y map (thesis 3.4)."""

    x: Array  # (B, h, w, S) logits
    y: Array  # (B, h, w, S) logits


Masks = DynamicMasks | DirectMasks | DecoupledMasks


@struct.dataclass
class SegmenterOutputs:
    """Plain logits of a network.

    The groups of `masks` cover the cells in order: one for all of them, or one for each level. A
    group's maps have its own resolution; the first group's is that of detections, H/4 x W/4.
    """

    category_logits: Array  # (B, G, K)
    masks: tuple[Masks, ...]
    # What every cell's object looks like; None where the network does not say.
    embeddings: Array | None = None  # (B, G, E)


@struct.dataclass
class Detections:
    """Predicted instances, score-descending, padded to a fixed number M."""

    scores: Array  # (B, M) float32
    labels: Array  # (B, M) int32
    boxes: Array  # (B, M, 4) float32 xyxy in canvas pixels, tight around the mask at 1/4 scale
    masks: Array  # (B, M, H/4, W/4) float32 probabilities
    valid: Array  # (B, M) bool
    overflow: Array  # (B,) int32, candidates over the score threshold that were left out
    # What each looks like, of length 1, 0 where not valid; None where the network does not say.
    embeddings: Array | None = None  # (B, M, E) float32


PyTree = Any
