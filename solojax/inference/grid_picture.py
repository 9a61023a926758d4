"""The soft mask of every cell of one level, for one image and one model (thesis Figure 3.4)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from solojax.errors import InputError
from solojax.inference.segmenter import Segmenter
from solojax.ops.mask_decoding import (
    count_cells,
    groups_with_offsets,
    map_size,
    mask_probabilities,
)
from solojax.structures import Array, Batch, GridSpec, SegmenterOutputs
from solojax.visualize.grid import draw_grid_activations


def draw_grid(model: Segmenter, image: np.ndarray, level: int) -> np.ndarray:
    """Draws the masks of all cells of a level beside the image.

    Args:
      model: a trained model.
      image: (H, W, 3) uint8 RGB.
      level: of the grid; 0 is the finest.

    Returns:
      (H', W', 3) uint8 RGB, see `draw_grid_activations`.

    Raises:
      InputError: there is no such level.
    """
    grid = model.task.grid
    if not 0 <= level < grid.num_levels:
        raise InputError(f"level {level}: the model has {grid.num_levels}, counted from 0")
    batch = model.batch_of(image)
    maps = jax.jit(functools.partial(_level_maps, model, level))(model.variables, batch)
    height, width = (int(side) for side in batch.image_size[0])
    rows, columns = -(-height // 4), -(-width // 4)
    masks = np.asarray(maps)[:, :rows, :columns]
    return draw_grid_activations(np.asarray(batch.image)[0, :height, :width], masks)


def _level_maps(model: Segmenter, level: int, variables, batch: Batch) -> Array:
    return level_masks(model.task.forward(variables, batch), model.task.grid, level)[0]


def level_masks(outputs: SegmenterOutputs, grid: GridSpec, level: int) -> Array:
    """Mask probabilities (B, S^2, H/4, W/4) of all cells of a level."""
    first = grid.level_offsets[level]
    wanted = first + jnp.arange(grid.cells_per_level[level])
    for offset, masks in groups_with_offsets(outputs.masks):
        if offset <= first < offset + count_cells(masks):
            rows = outputs.category_logits.shape[0]
            cells = jnp.tile(wanted - offset, (rows, 1))
            return mask_probabilities(masks, cells, map_size(outputs.masks[0]))
    covered = sum(map(count_cells, outputs.masks))
    raise InputError(f"the masks cover {covered} cells and not those of level {level}")
