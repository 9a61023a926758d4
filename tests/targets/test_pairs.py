"""solojax.targets.pairs against loops over random pairs."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solojax.structures import GridTargets
from solojax.targets.pairs import group_pairs

GROUPS = ((0, 9), (9, 4), (13, 1))
NUM_CELLS, PLACES = 14, 12


@functools.cache
def compiled(limit):
    return jax.jit(
        lambda targets: [group_pairs(targets, start, count, limit) for start, count in GROUPS]
    )


@st.composite
def pairs_of_an_image(draw):
    """Distinct (cell, instance) pairs, by level and instance as targets have them."""
    pairs = draw(
        st.sets(st.tuples(st.integers(0, NUM_CELLS - 1), st.integers(0, 3)), max_size=PLACES)
    )
    return sorted(pairs, key=lambda pair: (pair[0] >= 9, pair[0] >= 13, pair[1], pair[0]))


def as_targets(images) -> GridTargets:
    """Targets whose unused places hold what must not be read."""
    shape = (len(images), PLACES)
    rng = np.random.default_rng(0)
    cells = rng.integers(0, NUM_CELLS, shape).astype(np.int32)
    instances = rng.integers(0, 4, shape).astype(np.int32)
    valid = np.zeros(shape, bool)
    owner = np.full((len(images), NUM_CELLS), -1, np.int32)
    for b, pairs in enumerate(images):
        for p, (cell, instance) in enumerate(pairs):
            cells[b, p], instances[b, p], valid[b, p] = cell, instance, True
            owner[b, cell] = max(owner[b, cell], instance)
    return GridTargets(
        category=np.zeros_like(owner),
        owner=owner,
        cells=cells,
        instances=instances,
        valid=valid,
        overflow=np.zeros(len(images), np.int32),
    )


def members(pairs, start, count):
    return [(cell - start, n) for cell, n in pairs if start <= cell < start + count]


@settings(deadline=None, max_examples=20)
@given(st.lists(pairs_of_an_image(), min_size=2, max_size=2))
def test_a_group_has_its_pairs_in_their_order(images):
    for group, (start, count) in zip(compiled(PLACES)(as_targets(images)), GROUPS, strict=True):
        for b, pairs in enumerate(images):
            kept = np.asarray(group.valid[b])
            found = zip(
                group.cells[b][kept].tolist(), group.instances[b][kept].tolist(), strict=True
            )
            assert list(found) == members(pairs, start, count)
            assert not np.asarray(group.cells[b])[~kept].any()
            assert not np.asarray(group.instances[b])[~kept].any()


@settings(deadline=None, max_examples=20)
@given(st.lists(pairs_of_an_image(), min_size=2, max_size=2))
def test_pairs_of_distinct_cells_fit_into_as_many_places_as_cells(images):
    images = [list({cell: (cell, n) for cell, n in pairs}.values()) for pairs in images]
    for start, count in GROUPS:
        group = jax.device_get(group_pairs(as_targets(images), start, count, count))
        assert group.cells.shape == (2, min(count, PLACES))
        for b, pairs in enumerate(images):
            kept = group.valid[b]
            cells, instances = group.cells[b][kept].tolist(), group.instances[b][kept].tolist()
            assert list(zip(cells, instances, strict=True)) == members(pairs, start, count)


@pytest.mark.parametrize("limit", [PLACES, 4])
def test_no_pair_at_all(limit):
    for group in compiled(limit)(as_targets([[], []])):
        assert group.valid.shape == (2, limit) and not np.asarray(group.valid).any()
