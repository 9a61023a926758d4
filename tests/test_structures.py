"""The grid that model, targets and post-processing share."""

from __future__ import annotations

import pytest

from solojax.errors import InputError
from solojax.structures import GridSpec


def test_published_grid_has_3872_cells():
    grid = GridSpec()
    assert grid.num_levels == 5
    assert grid.num_cells == 3872
    assert grid.cells_per_level == (1600, 1296, 576, 256, 144)


def test_offsets_are_where_each_level_begins():
    grid = GridSpec(num_grids=(3, 2), strides=(8, 16), scale_ranges=((1, 32), (16, 64)))
    assert grid.level_offsets == (0, 9)
    assert grid.num_cells == 13


@pytest.mark.parametrize(
    "levels",
    [
        {"num_grids": (3, 2), "strides": (8,), "scale_ranges": ((1, 32), (16, 64))},
        {"num_grids": (3, 2), "strides": (8, 16), "scale_ranges": ((1, 32),)},
        {"num_grids": (), "strides": (), "scale_ranges": ()},
    ],
)
def test_levels_that_disagree_are_named(levels):
    with pytest.raises(InputError, match="must name the same levels"):
        GridSpec(**levels)
