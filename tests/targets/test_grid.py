"""solojax.targets.grid against a loop over levels, objects and cells, and its properties."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from helpers.plain_targets import assign, cell_of
from helpers.properties import reproducible
from helpers.tiny import (
    CANVAS,
    NUM_CLASSES,
    QUICK_COMPILE,
    assert_same_bits,
    random_batch,
)
from hypothesis import given
from hypothesis import strategies as st

from solojax.errors import InputError
from solojax.structures import GridSpec, Instances
from solojax.targets.grid import cell_edges, grid_targets, scale_bounds

HEIGHT, WIDTH = CANVAS
# In a grid of 24 a centre region may reach 2 cells from the centre, of which only 1 counts.
GRID = GridSpec(
    num_grids=(24, 8, 5), strides=(4, 8, 16), scale_ranges=((1, 48), (16, 64), (32, 128))
)


@functools.cache
def compiled(max_positives=140, **options):
    """A scene of five has at most 5 x 9 x 3 = 135 pairs."""
    return jax.jit(
        functools.partial(
            grid_targets,
            grid=GRID,
            canvas=CANVAS,
            num_classes=NUM_CLASSES,
            max_positives=max_positives,
        ),
        compiler_options=options,
    )


quick = functools.partial(compiled, **QUICK_COMPILE)


def quarters(low, high):
    """Multiples of 1/4: they often lie exactly on a border between cells."""
    return st.integers(4 * low, 4 * high).map(lambda n: n / 4)


@st.composite
def objects(draw):
    width, height = draw(quarters(1, WIDTH)), draw(quarters(1, HEIGHT))
    x, y = draw(quarters(0, WIDTH - 1)), draw(quarters(0, HEIGHT - 1))
    center = draw(quarters(0, WIDTH - 1)), draw(quarters(0, HEIGHT - 1))
    label, valid = draw(st.integers(0, NUM_CLASSES - 1)), draw(st.booleans())
    return (x, y, x + width, y + height), label, center, valid


scenes = st.lists(objects(), min_size=5, max_size=5)


def as_instances(scene, padding=0):
    """A batch of one image; `padding` adds objects that are not valid and hold garbage."""
    rows = list(scene) + [((0, 0, 50, 40), 2, (30, 30), False)] * padding
    boxes, labels, centers, valid = zip(*rows, strict=True)
    return Instances(
        boxes=np.array([boxes], np.float32),
        labels=np.array([labels], np.int32),
        centers=np.array([centers], np.float32),
        masks=np.zeros((1, len(rows), HEIGHT // 4, WIDTH // 32), np.uint8),
        valid=np.array([valid]),
    )


def plain_targets(instances, row=0):
    return assign(
        instances.boxes[row],
        instances.labels[row],
        instances.centers[row],
        instances.valid[row],
        GRID,
        CANVAS,
        NUM_CLASSES,
    )


def check_row(targets, row, expected, max_positives):
    """One image's targets against the loop's."""
    category, owner, pairs = expected
    kept = pairs[:max_positives]
    np.testing.assert_array_equal(targets.category[row], category)
    np.testing.assert_array_equal(targets.owner[row], owner)
    np.testing.assert_array_equal(targets.valid[row], np.arange(max_positives) < len(kept))
    np.testing.assert_array_equal(targets.cells[row][: len(kept)], [cell for cell, _ in kept])
    np.testing.assert_array_equal(targets.instances[row][: len(kept)], [n for _, n in kept])
    assert int(targets.overflow[row]) == len(pairs) - len(kept)


@reproducible
@given(scenes)
def test_assignment_is_the_loop_in_order_and_overflow_is_counted(scene):
    instances = as_instances(scene)
    expected = plain_targets(instances)
    check_row(jax.device_get(compiled()(instances)), 0, expected, 140)
    check_row(jax.device_get(quick(7)(instances)), 0, expected, 7)


def test_images_of_a_batch_with_real_masks():
    instances = random_batch(3, rows=6, max_instances=6).instances
    targets = jax.device_get(quick()(instances))
    total = 0
    for row in range(6):
        expected = plain_targets(instances, row)
        check_row(targets, row, expected, 140)
        total += len(expected[2])
    assert total > 60


@reproducible
@given(scenes)
def test_positive_cells_lie_near_the_centre_and_in_the_centre_region(scene):
    instances = as_instances(scene)
    targets = jax.device_get(compiled()(instances))
    offsets = np.array(GRID.level_offsets)
    for cell, n, valid in zip(
        targets.cells[0], targets.instances[0], targets.valid[0], strict=True
    ):
        if not valid:
            continue
        level = np.flatnonzero(cell >= offsets)[-1]
        side = GRID.num_grids[level]
        place = divmod(int(cell - offsets[level]), side)
        box, center = instances.boxes[0, n], instances.centers[0, n]
        low, high = GRID.scale_ranges[level]
        extent = np.array([box[3] - box[1], box[2] - box[0]], np.float64)
        assert instances.valid[0, n]
        assert low <= np.sqrt(extent.prod()) * (1 + 1e-6) and np.sqrt(extent.prod()) <= high
        for axis, (index, size, middle) in enumerate(
            zip(place, CANVAS, center[::-1].astype(np.float64), strict=True)
        ):
            own = cell_of(middle, size, side)
            assert abs(index - own) <= 1
            # The cell overlaps [middle - 0.1 extent, middle + 0.1 extent], up to rounding.
            half = 0.1 * extent[axis]
            assert index * size / side <= middle + half + 1e-4
            assert (index + 1) * size / side >= middle - half - 1e-4


@reproducible
@given(scenes)
def test_padding_changes_no_bit(scene):
    alone = jax.device_get(compiled()(as_instances(scene)))
    padded = jax.device_get(quick()(as_instances(scene, padding=3)))
    for name in ("category", "owner", "valid", "overflow"):
        assert_same_bits(getattr(padded, name), getattr(alone, name))
    for name in ("cells", "instances"):
        assert_same_bits(getattr(padded, name)[alone.valid], getattr(alone, name)[alone.valid])


@reproducible
@given(scenes)
def test_pairs_go_by_level_then_object_then_row_and_column(scene):
    targets = jax.device_get(compiled()(as_instances(scene)))
    valid = targets.valid[0]
    cells, instances = targets.cells[0][valid], targets.instances[0][valid]
    levels = np.searchsorted(np.array(GRID.level_offsets), cells, side="right")
    keys = list(zip(levels.tolist(), instances.tolist(), cells.tolist(), strict=True))
    assert keys == sorted(set(keys))


def test_a_worked_example():
    """An 80x40 object centred at (x 50, y 20): its scale, 56.6, is that of levels 1 and 2."""
    scene = [((10.0, 0.0, 90.0, 40.0), 1, (50.0, 20.0), True)]
    targets = jax.device_get(compiled()(as_instances(scene + [scene[0][:3] + (False,)] * 4)))
    # The region reaches 8 pixels sideways and 4 up and down: x 42..58, y 16..24.
    # Grid 8: cells are 12 wide and 8 high: columns 3 and 4; row 2, whose edge 16 is, and row 3.
    # Grid 5: cells are 19.2 wide and 12.8 high: columns 2 and 3, row 1.
    cells = [576 + row * 8 + column for row in (2, 3) for column in (3, 4)]
    cells += [576 + 64 + 1 * 5 + column for column in (2, 3)]
    assert targets.cells[0][targets.valid[0]].tolist() == cells
    assert np.flatnonzero(targets.category[0] < NUM_CLASSES).tolist() == cells
    assert set(targets.category[0][cells].tolist()) == {1}


def test_the_region_is_rounded_before_it_is_added_to_the_centre():
    """A corner at 12.8, a border of grid 5: multiplying and adding in one rounding crosses it."""
    scene = [((8.0, 5.0, 75.0, 29.0), 0, (48.8, 15.2), True)]
    scene += [scene[0][:3] + (False,)] * 4
    instances = as_instances(scene)
    half = np.float32(0.5) * np.float32(24) * np.float32(0.2)
    assert np.float32(15.2) - half < np.float32(12.8)
    check_row(jax.device_get(compiled()(instances)), 0, plain_targets(instances), 140)


@pytest.mark.parametrize(
    ("side", "levels"),
    [(15.75, {0}), (16, {0, 1}), (32, {0, 1, 2}), (48, {0, 1, 2}), (48.25, {1, 2}), (64.25, {2})],
)
def test_scale_ranges_hold_both_their_bounds(side, levels):
    scene = [((2.0, 1.0, 2.0 + side, 1.0 + side), 0, (30.0, 30.0), True)]
    scene += [scene[0][:3] + (False,)] * 4
    targets = jax.device_get(compiled()(as_instances(scene)))
    cells = targets.cells[0][targets.valid[0]]
    taken = np.searchsorted(np.array(GRID.level_offsets), cells, side="right") - 1
    assert set(taken.tolist()) == levels


def test_at_most_three_cells_each_way():
    """A wide object's region covers five columns of grid 24, two of which are too far."""
    scene = [((0.0, 20.0, 96.0, 30.0), 0, (50.0, 25.0), True)]
    scene += [scene[0][:3] + (False,)] * 4
    targets = jax.device_get(compiled()(as_instances(scene)))
    cells = targets.cells[0][targets.valid[0]]
    assert (cells[cells < 576] % 24).tolist() == [11, 12, 13] * (np.sum(cells < 576) // 3)
    assert np.any(cells < 576)


def test_a_later_object_takes_a_shared_cell_and_both_stay_in_the_pairs():
    small = ((46.0, 16.0, 54.0, 24.0), 0, (50.0, 20.0), True)
    scene = [small, (*small[:1], 2, *small[2:]), *[small[:3] + (False,)] * 3]
    targets = jax.device_get(compiled()(as_instances(scene)))
    shared = set(targets.cells[0][targets.valid[0]].tolist())
    assert targets.instances[0][targets.valid[0]].tolist() == [0] * len(shared) + [1] * len(shared)
    for cell in shared:
        assert targets.category[0, cell] == 2 and targets.owner[0, cell] == 1


def test_with_one_mask_a_cell_the_last_object_keeps_it_and_no_other_needs_room():
    """Four objects in one place have as many pairs as one, and they are the last one's."""
    small = ((46.0, 16.0, 54.0, 24.0), 0, (50.0, 20.0), True)
    alone = jax.device_get(compiled()(as_instances([small])))
    count = int(alone.valid.sum())
    scene = as_instances([small] * 4)
    run = functools.partial(grid_targets, scene, GRID, CANVAS, NUM_CLASSES, one_mask_per_cell=True)
    targets = jax.device_get(run(max_positives=count))
    assert targets.overflow[0] == 0 and targets.valid[0].all()
    np.testing.assert_array_equal(targets.cells[0], alone.cells[0][:count])
    assert set(targets.instances[0].tolist()) == {3}
    assert jax.device_get(run(max_positives=count - 1)).overflow[0] == 1


def test_no_object_means_background_everywhere():
    targets = jax.device_get(compiled()(as_instances([], padding=5)))
    assert np.all(targets.category == NUM_CLASSES) and np.all(targets.owner == -1)
    assert not targets.valid.any() and targets.overflow.tolist() == [0]


@pytest.mark.parametrize(("size", "side"), [(256, 40), (256, 24), (1344, 36), (800, 12), (96, 8)])
def test_edges_are_where_the_published_quotient_steps(size, side):
    edges = cell_edges(size, side)
    for coordinate in np.arange(0, size, 0.25, dtype=np.float32):
        assert np.sum(coordinate >= edges) == cell_of(coordinate, size, side)
    for cell, edge in enumerate(edges, start=1):
        assert cell_of(edge, size, side) == cell
        assert cell_of(np.nextafter(edge, np.float32(0)), size, side) == cell - 1


def test_a_centre_on_a_border_falls_one_cell_lower_as_published():
    # (128 / 256) // (1 / 40) is 19 in the published float32 arithmetic, not 20.
    assert np.sum(np.float32(128) >= cell_edges(256, 40)) == 19


@pytest.mark.parametrize("bounds", [(1, 96), (48, 192), (384, 2048), (7, 33)])
def test_scale_bounds_are_those_of_the_square_root(bounds):
    low, high = scale_bounds(*bounds)
    for bound in (low, high):
        for area in (np.nextafter(bound, np.float32(0)), bound, np.nextafter(bound, np.inf)):
            area = np.float32(area)
            by_root = np.float32(bounds[0]) <= np.sqrt(area) <= np.float32(bounds[1])
            assert (low <= area <= high) == by_root


def test_a_grid_with_levels_of_different_number_is_an_error():
    with pytest.raises(InputError, match="same levels"):
        GridSpec(num_grids=(8, 5), strides=(4,), scale_ranges=((1, 2), (2, 4)))
