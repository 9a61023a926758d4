"""Target assignment as a loop over levels, objects and cells (thesis 3.2.3, "Label Assignment")."""

from __future__ import annotations

import numpy as np


def cell_of(coordinate, size, num_grid):
    """Cell of a coordinate, in the published float32 arithmetic (floor of a rounded quotient)."""
    ratio = np.float32(coordinate) / np.float32(size)
    return int(ratio // np.float32(1.0 / num_grid))


def center_region(center, half, size, num_grid):
    """First and last cell along one axis: the centre region's, at most one from the centre's."""
    own = cell_of(center, size, num_grid)
    first = max(cell_of(np.float32(center) - np.float32(half), size, num_grid), 0)
    last = min(cell_of(np.float32(center) + np.float32(half), size, num_grid), num_grid - 1)
    return max(first, own - 1), min(last, own + 1)


def assign(boxes, labels, centers, valid, grid, canvas, num_classes):
    """Category and owner of every cell, and all positive pairs (cell, instance) in order."""
    height, width = canvas
    category = np.full(grid.num_cells, num_classes)
    owner = np.full(grid.num_cells, -1)
    pairs = []
    offset = 0
    for side, (low, high) in zip(grid.num_grids, grid.scale_ranges, strict=True):
        for n in range(len(boxes)):
            box_width, box_height = boxes[n][2] - boxes[n][0], boxes[n][3] - boxes[n][1]
            scale = np.sqrt(np.float32(box_width * box_height))
            if not valid[n] or not np.float32(low) <= scale <= np.float32(high):
                continue
            sigma = np.float32(grid.center_sigma)
            half_width, half_height = 0.5 * box_width * sigma, 0.5 * box_height * sigma
            left, right = center_region(centers[n][0], half_width, width, side)
            top, bottom = center_region(centers[n][1], half_height, height, side)
            for row in range(top, bottom + 1):
                for column in range(left, right + 1):
                    cell = offset + row * side + column
                    category[cell], owner[cell] = labels[n], n
                    pairs.append((cell, n))
        offset += side * side
    return category, owner, pairs
