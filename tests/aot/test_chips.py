"""The chips table and the names of slices."""

from __future__ import annotations

import pytest

from solojax.aot.chips import CHIPS, parse_topology
from solojax.errors import InputError


def test_the_table_has_the_published_figures():
    # GiB, TFLOP/s in bfloat16, GB/s: Google Cloud's page of every chip.
    published = {
        "v4": (32, 275, 1228),
        "v5e": (16, 197, 819),
        "v5p": (95, 459, 2765),
        "v6e": (32, 918, 1640),
    }
    found = {
        kind: (chip.hbm_bytes / 2**30, chip.peak_flops / 1e12, chip.hbm_bandwidth / 1e9)
        for kind, chip in CHIPS.items()
    }
    assert found == published


@pytest.mark.parametrize(
    "name, kind, shape, chips",
    [
        ("v5e:1x1", "v5e", (1, 1), 1),
        ("v5e:4x4", "v5e", (4, 4), 16),
        ("v6e:8x16", "v6e", (8, 16), 128),
        ("v4:2x2x1", "v4", (2, 2, 1), 4),
        ("v4:2x2x4", "v4", (2, 2, 4), 16),
        ("v5p:4x4x8", "v5p", (4, 4, 8), 128),
        ("v5p:16x16x24", "v5p", (16, 16, 24), 6144),
    ],
)
def test_slices_that_exist(name, kind, shape, chips):
    topology = parse_topology(name)
    assert topology.chip is CHIPS[kind] and topology.shape == shape
    assert topology.num_chips == chips and str(topology) == name


@pytest.mark.parametrize(
    "name, parts",
    [
        ("", ["no TPU kind ''", "v5e:4x4"]),
        ("v5e", ["'v5e'", "every side", "v5e:4x4"]),
        ("v5:4x4", ["no TPU kind 'v5'", "v4:2x2x4", "v5p:2x2x4", "v6e:4x4"]),
        ("V5E:4x4", ["'V5E'", "did you mean v5e?"]),
        ("v5e:4", ["no such slice", "4x4", "16x16"]),
        ("v5e:3x3", ["'v5e:3x3'", "no such slice", "2x4"]),
        ("v5e:32x32", ["no such slice"]),
        ("v5e:2x2x4", ["no such slice", "2x4"]),
        ("v4:4x4", ["no such slice", "2x2x4", "multiples of 4"]),
        ("v4:3x3x3", ["no such slice"]),
        ("v4:16x16x20", ["no such slice", "4096 chips"]),
        ("v5e:4xx4", ["every side"]),
        ("v5e:0x4", ["every side"]),
        ("v5e:-4x4", ["every side"]),
        ("v5e:4x4x", ["every side"]),
    ],
)
def test_slices_that_do_not(name, parts):
    with pytest.raises(InputError) as refused:
        parse_topology(name)
    message = str(refused.value)
    assert "\n" not in message and all(part in message for part in parts), message
