"""The report, as a dict and as a table, of costs made by hand."""

from __future__ import annotations

import json

import pytest

from solojax.aot.chips import parse_topology
from solojax.aot.compiling import CompiledStep
from solojax.aot.cost import StepCost, TooLarge
from solojax.aot.report import Report, largest_batch
from solojax.aot.table import report_lines
from solojax.aot.traffic import Traffic
from solojax.train.collectives import Collective

GIB = 2**30
SLICE = parse_topology("v5e:4x4")


def make_cost(batch: int, peak_gib: float, temp_gib: float = 5.0) -> StepCost:
    return StepCost(
        per_chip_batch=batch,
        argument_bytes=GIB // 2,
        temp_bytes=int(temp_gib * GIB),
        peak_bytes=int(peak_gib * GIB),
        hbm_bytes=batch * 52e9,
        flops=batch * 1.5e12,
        traffic=tuple(Traffic(f"part {n}", batch * n * 10**9, "f32[8]") for n in (6, 4, 1)),
        collectives=(Collective("all-reduce", 7, 184_600_000), Collective("all-gather", 1, 64)),
        compile_s=93.4,
    )


def make_report(*steps: CompiledStep) -> Report:
    return Report(
        config="solov2.py:r50,3x",
        dtype="bfloat16",
        topology=SLICE,
        facts={"num_classes": 80},
        facts_in_words="80 classes (COCO's)",
        steps=steps,
        versions={"jax": "1", "libtpu": "2"},
    )


def train_step(*costs) -> CompiledStep:
    return CompiledStep("train", (800, 1344), costs or (make_cost(2, 6.0),))


def predict_step(*costs) -> CompiledStep:
    return CompiledStep("predict", (800, 1344), costs or (make_cost(1, 2.0, 1.0),))


def test_the_report_as_json():
    report = json.loads(json.dumps(make_report(train_step(), predict_step()).to_dict()))
    assert report["topology"] == "v5e:4x4" and report["chip"] == "v5e" and report["chips"] == 16
    assert report["num_classes"] == 80
    assert report["hbm_bytes_per_chip"] == 16 * GIB and report["fits"] is True
    train = report["train"]
    assert train["hbm_bytes_per_image"] == 52e9 and train["flops_per_image"] == 1.5e12
    assert train["off_chip_bytes_per_image"] == 11e9
    assert train["roofline_s"]["hbm"] == pytest.approx(104 / 819)
    assert train["roofline_s"]["compute"] == pytest.approx(3 / 197)
    assert train["collectives"][0] == {"op": "all-reduce", "count": 7, "bytes": 184_600_000}
    assert train["canvas"] == [800, 1344] and train["further_batches"] == []
    # 1 GiB stays and each image takes 2.5: 6 in 16 GiB.
    assert train["largest_batch"] == {"per_chip_batch": 6, "estimate": True}
    assert report["predict"]["per_chip_batch"] == 1


def test_a_report_fits_if_all_its_steps_do():
    assert not make_report(train_step(make_cost(2, 17.0)), predict_step()).fits


@pytest.mark.parametrize(
    "costs, expected",
    [
        ([make_cost(4, 12.0), make_cost(8, 20.0)], (4, False)),
        ([make_cost(4, 12.0), TooLarge(8, "", 0.0)], (4, False)),
        ([TooLarge(8, "", 0.0), make_cost(4, 12.0)], (4, False)),
        ([TooLarge(2, "", 0.0), TooLarge(1, "", 0.0)], None),
        ([TooLarge(2, "", 0.0)], None),
        # Too much for a chip, though the compiler took it: 17 GiB, of which 5 are the images'.
        ([make_cost(2, 17.0)], (1, True)),
        ([make_cost(1, 30.0)], None),
    ],
)
def test_the_largest_batch(costs, expected):
    found = largest_batch(train_step(*costs), SLICE)
    assert found == (expected and dict(zip(("per_chip_batch", "estimate"), expected, strict=True)))


def test_the_table():
    lines = list(report_lines(make_report(train_step(), predict_step())))
    assert lines[0] == (
        "solov2.py:r50,3x in bfloat16 on v5e:4x4: 16 chips with 16 GiB each, 197 TFLOP/s "
        "(bfloat16), 819 GB/s"
    )
    assert lines[1] == "80 classes (COCO's)"
    rows = {line[:40].strip(): line[40:].split("  ") for line in lines[3:16]}
    cells = {row: [cell.strip() for cell in parts if cell.strip()] for row, parts in rows.items()}
    assert cells["of one chip"] == ["train", "predict"]
    assert cells["images"] == ["2", "1"]
    assert cells["canvas"] == ["800x1344", "800x1344"]
    assert cells["temporaries"] == ["5.00 GiB", "1.00 GiB"]
    assert cells["peak"] == ["6.00 GiB", "2.00 GiB"]
    assert cells["HBM traffic an image, compiler's count"] == ["52.00 GB", "52.00 GB"]
    assert cells["the same without on-chip memory"] == ["11.00 GB", "11.00 GB"]
    assert cells["operations an image"] == ["1500.00 GFLOP", "1500.00 GFLOP"]
    assert cells["a step, by HBM traffic"] == ["126.98 ms", "63.49 ms"]
    assert cells["a step, by operations"] == ["15.23 ms", "7.61 ms"]
    assert cells["fits"] == ["yes", "yes"] and cells["compilation"] == ["93 s", "93 s"]
    assert "train: all-reduce, 7 a step, 184.60 MB a chip" in lines
    assert "      6000.0 MB  part 6  (the largest: f32[8])" in lines
    assert lines[-2].startswith("train: 2 images a chip fit; about 6 would, an estimate")


def test_the_table_of_what_does_not_fit():
    refused = TooLarge(8, "Used 20.33G of 15.75G hbm.", 40.0)
    lines = list(report_lines(make_report(train_step(refused), predict_step())))
    (peak,) = [line for line in lines if line.startswith("peak")]
    assert peak.split()[1] == "-"
    (fits,) = [line for line in lines if line.startswith("fits")]
    assert fits.split()[1:] == ["NO", "yes"]
    assert lines[-2] == (
        "train: 8 do not fit (Used 20.33G of 15.75G hbm.); --find-batch compiles less"
    )


def test_the_table_after_a_search():
    step = train_step(make_cost(2, 6.0), make_cost(4, 11.0), TooLarge(8, "Used 20G", 1.0))
    (line,) = [line for line in report_lines(make_report(step)) if line.startswith("train: 2")]
    assert line == ("train: 2 images a chip fit; 4 images a chip fit; 8 do not fit (Used 20G)")


def test_chips_that_send_nothing():
    quiet = StepCost(1, 1, 1, 1, 1.0, 1.0, (), (), 1.0)
    assert "predict: chips send each other nothing" in list(
        report_lines(make_report(predict_step(quiet)))
    )
