"""Which grid cells learn which objects (thesis 3.2.3, "Label Assignment")."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from solojax.structures import Array, GridSpec, GridTargets, Instances

REACH = 1  # cells on each side of the centre cell that may be positive: at most 3x3


@functools.lru_cache(maxsize=1024)
def cell_edges(size: int, num_grid: int) -> np.ndarray:
    """Smallest float32 coordinates that fall into cell 1, 2, ..., num_grid - 1.

    The published cell of a coordinate c is int((c / size) // (1 / num_grid)) in float32, where a
    centre that lies exactly on a border may fall one cell lower. XLA rounds that division
    differently, so the edges are found here with NumPy, which agrees with the published systems,
    and the device only compares.

    Args:
      size: side of the canvas in pixels.
      num_grid: S.

    Returns:
      (num_grid - 1,) float32, ascending.
    """
    wanted = np.arange(1, num_grid)
    low = np.zeros(num_grid - 1, np.float32)
    high = np.full(num_grid - 1, size, np.float32)
    # Bisection over the bit patterns: non-negative floats are ordered as their bits are.
    low_bits, high_bits = low.view(np.int32).astype(np.int64), high.view(np.int32).astype(np.int64)
    while np.any(high_bits - low_bits > 1):
        middle_bits = (low_bits + high_bits) // 2
        middle = middle_bits.astype(np.int32).view(np.float32)
        inside = _published_cell(middle, size, num_grid) >= wanted
        high_bits = np.where(inside, middle_bits, high_bits)
        low_bits = np.where(inside, low_bits, middle_bits)
    return high_bits.astype(np.int32).view(np.float32)


def _published_cell(coordinate: np.ndarray, size: int, num_grid: int) -> np.ndarray:
    ratio = coordinate / np.float32(size)
    return np.floor_divide(ratio, np.float32(1.0 / num_grid)).astype(np.int64)


@functools.lru_cache(maxsize=256)
def scale_bounds(low: float, high: float) -> tuple[np.float32, np.float32]:
    """The float32 areas between which sqrt(area) lies in [low, high], both inclusive.

    Square roots round, on some devices more than on others; comparing areas does not.
    """
    low_area, high_area = np.float32(low) ** 2, np.float32(high) ** 2
    below = np.nextafter(low_area, np.float32(0))
    while np.sqrt(below) >= np.float32(low):
        low_area, below = below, np.nextafter(below, np.float32(0))
    above = np.nextafter(high_area, np.float32(np.inf))
    while np.sqrt(above) <= np.float32(high):
        high_area, above = above, np.nextafter(above, np.float32(np.inf))
    return low_area, high_area


def grid_targets(
    instances: Instances,
    grid: GridSpec,
    canvas: tuple[int, int],
    num_classes: int,
    max_positives: int,
    *,
    one_mask_per_cell: bool = False,
) -> GridTargets:
    """Assigns every object to the cells of its centre region on the levels of its scale.

    The cells are those of the centre region (`grid.center_sigma` of the box around the mask's
    centre of mass) that lie within one cell of the centre's own. The box decides scale and region,
    the mask the place. A later object takes a shared cell's category; both remain in the pairs.

    Args:
      instances: padded ground truth, batch axis first.
      grid: levels, grids and scale ranges.
      canvas: (H, W) of the padded images.
      num_classes: K.
      max_positives: P, pairs kept per image.
      one_mask_per_cell: keep of each cell the pair with its last object alone (SOLO, Decoupled
        SOLO), which takes the earlier one's mask too; otherwise the cell learns both (SOLOv2).

    Returns:
      GridTargets; `overflow` counts the pairs beyond P.
    """
    per_image = functools.partial(
        _image_targets,
        grid=grid,
        canvas=canvas,
        num_classes=num_classes,
        max_positives=max_positives,
        one_mask_per_cell=one_mask_per_cell,
    )
    return jax.vmap(per_image)(
        instances.boxes, instances.labels, instances.centers, instances.valid
    )


def _cells_of(coordinate: Array, size: int, num_grid: int) -> Array:
    edges = jnp.asarray(cell_edges(size, num_grid))
    return jnp.sum(coordinate[..., None] >= edges, axis=-1, dtype=jnp.int32)


def _half(box_side: Array, grid: GridSpec) -> Array:
    """Half the side of the centre region, from box sides (N,) that are not negative."""
    # The maximum keeps the product's rounding: compilers would fuse it with the sum that follows,
    # and a corner on a border could fall into another cell than published.
    return jnp.maximum(0.5 * box_side * jnp.float32(grid.center_sigma), 0.0)


def _axis_range(center: Array, half: Array, size: int, num_grid: int) -> tuple[Array, Array]:
    """First and last positive cell along one axis, (N,) int32 each."""
    own = _cells_of(center, size, num_grid)
    first = jnp.maximum(_cells_of(center - half, size, num_grid), own - REACH)
    last = jnp.minimum(_cells_of(center + half, size, num_grid), own + REACH)
    return first, last


def _level_cells(
    boxes: Array, centers: Array, valid: Array, grid: GridSpec, level: int, canvas: tuple[int, int]
) -> tuple[Array, Array]:
    """Candidate cells of one level: global cell indices and validity, (N, 9) each."""
    height, width = canvas
    side = grid.num_grids[level]
    low, high = scale_bounds(*grid.scale_ranges[level])
    box_width, box_height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area = box_width * box_height
    in_scale = valid & (area >= low) & (area <= high)
    left, right = _axis_range(centers[:, 0], _half(box_width, grid), width, side)
    top, bottom = _axis_range(centers[:, 1], _half(box_height, grid), height, side)
    steps = jnp.arange(2 * REACH + 1, dtype=jnp.int32)
    rows, columns = top[:, None] + steps, left[:, None] + steps
    inside = (rows <= bottom[:, None])[:, :, None] & (columns <= right[:, None])[:, None, :]
    cells = grid.level_offsets[level] + rows[:, :, None] * side + columns[:, None, :]
    keep = inside & in_scale[:, None, None]
    count = boxes.shape[0]
    return cells.reshape(count, -1), keep.reshape(count, -1)


def _image_targets(
    boxes: Array,
    labels: Array,
    centers: Array,
    valid: Array,
    *,
    grid: GridSpec,
    canvas: tuple[int, int],
    num_classes: int,
    max_positives: int,
    one_mask_per_cell: bool,
) -> GridTargets:
    levels = [
        _level_cells(boxes, centers, valid, grid, level, canvas) for level in range(grid.num_levels)
    ]
    cells = jnp.stack([c for c, _ in levels]).reshape(-1)
    keep = jnp.stack([k for _, k in levels]).reshape(-1)
    per_instance = levels[0][0].shape[1]
    count = boxes.shape[0]
    index = jnp.repeat(jnp.arange(count, dtype=jnp.int32), per_instance)
    index = jnp.tile(index, grid.num_levels)

    claims = jnp.where(keep, cells, grid.num_cells)
    owner = jnp.full(grid.num_cells + 1, -1, jnp.int32).at[claims].max(index)[:-1]
    category = jnp.where(owner >= 0, labels[jnp.maximum(owner, 0)], num_classes)

    if one_mask_per_cell:
        # Before the pairs are cut to P: the last ones are those that stay.
        keep = keep & (owner[jnp.clip(cells, 0, grid.num_cells - 1)] == index)
    rank = jnp.cumsum(keep, dtype=jnp.int32) - 1
    slot = jnp.where(keep & (rank < max_positives), rank, max_positives)
    chosen = jnp.zeros(max_positives + 1, jnp.int32)
    total = jnp.sum(keep, dtype=jnp.int32)
    return GridTargets(
        category=category.astype(jnp.int32),
        owner=owner,
        cells=chosen.at[slot].set(cells)[:-1],
        instances=chosen.at[slot].set(index)[:-1],
        valid=jnp.arange(max_positives) < total,
        overflow=jnp.maximum(total - max_positives, 0),
    )
