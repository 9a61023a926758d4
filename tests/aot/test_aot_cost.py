"""The arithmetic of a step's cost, on numbers made by hand."""

from __future__ import annotations

import types

import pytest

from solojax.aot.chips import CHIPS, Chip
from solojax.aot.cost import StepCost, TooLarge, estimate_largest_batch, measure
from solojax.aot.traffic import Traffic
from solojax.train.collectives import Collective

GIB = 2**30
TOY = Chip("toy", 10 * GIB, peak_flops=100.0, hbm_bandwidth=20.0, sides=2, slices=(), most_chips=1)


def make_cost(**changes) -> StepCost:
    values = {
        "per_chip_batch": 2,
        "argument_bytes": 1 * GIB,
        "temp_bytes": 4 * GIB,
        "peak_bytes": 6 * GIB,
        "hbm_bytes": 60.0,
        "flops": 500.0,
        "traffic": (Traffic("neck", 30, "f32[4]"), Traffic("head", 10, "f32[2]")),
        "collectives": (Collective("all-reduce", 3, 1000),),
        "compile_s": 12.345,
    }
    return StepCost(**(values | changes))


def test_the_entry_of_a_report():
    assert make_cost().to_dict(TOY) == {
        "per_chip_batch": 2,
        "fits": True,
        "argument_bytes": GIB,
        "temp_bytes": 4 * GIB,
        "peak_bytes": 6 * GIB,
        "hbm_bytes_per_image": 30.0,
        "off_chip_bytes_per_image": 20.0,
        "flops_per_image": 250.0,
        "roofline_s": {"compute": 5.0, "hbm": 3.0},
        "collectives": [{"op": "all-reduce", "count": 3, "bytes": 1000}],
        "largest_traffic": [
            {"operation": "neck", "bytes": 30, "largest": "f32[4]"},
            {"operation": "head", "bytes": 10, "largest": "f32[2]"},
        ],
        "compile_s": 12.3,
    }


def test_the_roofline_of_a_known_step():
    # 52 GB an image and two images a chip over 819 GB/s; 1.97 TFLOP over 197 TFLOP/s.
    roofline = make_cost(hbm_bytes=104e9, flops=1.97e12).roofline_s(CHIPS["v5e"])
    assert roofline["hbm"] == pytest.approx(0.12698, abs=1e-5)
    assert roofline["compute"] == pytest.approx(0.01)


def test_a_step_fits_up_to_the_last_byte():
    assert make_cost(peak_bytes=10 * GIB).fits(TOY)
    assert not make_cost(peak_bytes=10 * GIB + 1).fits(TOY)
    assert not TooLarge(4, "Ran out of memory", 1.0).fits(TOY)


def test_the_entry_of_what_the_compiler_refused():
    assert TooLarge(4, "Used 20G of 15.75G hbm.", 1.26).to_dict(TOY) == {
        "per_chip_batch": 4,
        "fits": False,
        "reason": "Used 20G of 15.75G hbm.",
        "compile_s": 1.3,
    }


@pytest.mark.parametrize(
    "changes, expected",
    [
        # 2 GiB stay and every image takes 2 more: 4 images in 10 GiB.
        ({}, 4),
        ({"peak_bytes": 7 * GIB}, 3),
        ({"per_chip_batch": 4}, 8),
        ({"peak_bytes": 13 * GIB}, 0),
        ({"peak_bytes": 30 * GIB}, 0),
    ],
)
def test_the_estimate_of_a_batch_that_fits(changes, expected):
    assert estimate_largest_batch(make_cost(**changes), TOY) == expected


class FakeProgram:
    """A compiled program with the attributes that are read."""

    def __init__(self, peak: int):
        self.peak = peak

    def memory_analysis(self):
        return types.SimpleNamespace(
            argument_size_in_bytes=100,
            output_size_in_bytes=90,
            temp_size_in_bytes=50,
            alias_size_in_bytes=80,
            generated_code_size_in_bytes=7,
            peak_memory_in_bytes=self.peak,
        )

    def cost_analysis(self):
        return {"flops": 8.0, "bytes accessed": 6.0, "bytes accessed0{}": 5.0}

    def as_text(self):
        return """
ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %sum = f32[8]{0} all-reduce(%x), replica_groups={{0,1}}, metadata={op_name="jit(f)/sum/add"}
}
"""


def test_a_cost_is_read_off_the_program():
    cost = measure(FakeProgram(peak=170), per_chip_batch=2, compile_s=3.0)
    assert cost == StepCost(
        per_chip_batch=2,
        argument_bytes=100,
        temp_bytes=50,
        peak_bytes=170,
        hbm_bytes=6.0,
        flops=8.0,
        traffic=(Traffic("sum", 32 + 32, "f32[8]{0}"),),
        collectives=(Collective("all-reduce", 1, 32),),
        compile_s=3.0,
    )


def test_a_compiler_that_gives_no_peak():
    # Arguments, temporaries, the program, and those outputs that lie in no argument's place.
    assert measure(FakeProgram(peak=0), 2, 3.0).peak_bytes == 100 + 50 + 7 + (90 - 80)
