"""The report of `solojax aot` as lines for a person."""

from __future__ import annotations

from collections.abc import Iterator

from solojax.aot.chips import Topology
from solojax.aot.compiling import CompiledStep
from solojax.aot.cost import StepCost
from solojax.aot.report import Report, largest_batch

_GIB = 2**30
_HEAD, _COLUMN = 40, 16
_MOST_SHOWN = 10  # operations by traffic


def report_lines(report: Report) -> Iterator[str]:
    """The report for a person."""
    topology, chip = report.topology, report.topology.chip
    yield (
        f"{report.config} in {report.dtype} on {topology}: {topology.num_chips} chips with "
        f"{chip.hbm_bytes / _GIB:g} GiB each, {chip.peak_flops / 1e12:g} TFLOP/s (bfloat16), "
        f"{chip.hbm_bandwidth / 1e9:g} GB/s"
    )
    yield report.facts_in_words
    yield ""
    columns = [_column(step, topology) for step in report.steps]
    yield f"{'of one chip':{_HEAD}}" + "".join(f"{step.name:>{_COLUMN}}" for step in report.steps)
    for row in columns[0]:
        yield f"{row:{_HEAD}}" + "".join(f"{column[row]:>{_COLUMN}}" for column in columns)
    yield ""
    for step in report.steps:
        yield from _collective_lines(step)
    for step in report.steps:
        yield from _traffic_lines(step)
    yield (
        "the compiler counts on-chip memory too, and loops once; what is without on-chip memory "
        "has loops as often as they run"
    )
    yield ""
    for step in report.steps:
        yield _batch_line(step, topology)


def _column(step: CompiledStep, topology: Topology) -> dict[str, str]:
    """Row to figure, of a step."""
    cost, chip = step.costs[0], topology.chip
    known = isinstance(cost, StepCost)
    roofline = cost.roofline_s(chip) if known else {}
    height, width = step.canvas

    def per_image(amount: float, unit: str) -> str:
        return f"{amount / cost.per_chip_batch:.2f} {unit}"

    figures = {
        "arguments": lambda: f"{cost.argument_bytes / _GIB:.2f} GiB",
        "temporaries": lambda: f"{cost.temp_bytes / _GIB:.2f} GiB",
        "peak": lambda: f"{cost.peak_bytes / _GIB:.2f} GiB",
        "HBM traffic an image, compiler's count": lambda: per_image(cost.hbm_bytes / 1e9, "GB"),
        "the same without on-chip memory": lambda: per_image(cost.off_chip_bytes / 1e9, "GB"),
        "operations an image": lambda: per_image(cost.flops / 1e9, "GFLOP"),
        "a step, by operations": lambda: f"{roofline['compute'] * 1e3:.2f} ms",
        "a step, by HBM traffic": lambda: f"{roofline['hbm'] * 1e3:.2f} ms",
    }
    return (
        {"images": str(cost.per_chip_batch), "canvas": f"{height}x{width}"}
        | {row: figure() if known else "-" for row, figure in figures.items()}
        | {
            "fits": "yes" if cost.fits(chip) else "NO",
            "compilation": f"{cost.compile_s:.0f} s",
        }
    )


def _collective_lines(step: CompiledStep) -> Iterator[str]:
    cost = step.costs[0]
    if not isinstance(cost, StepCost):
        return
    if not cost.collectives:
        yield f"{step.name}: chips send each other nothing"
    for each in cost.collectives:
        yield f"{step.name}: {each.op}, {each.count} a step, {each.bytes / 1e6:.2f} MB a chip"


def _traffic_lines(step: CompiledStep) -> Iterator[str]:
    cost = step.costs[0]
    if not isinstance(cost, StepCost):
        return
    yield f"{step.name}: most traffic without on-chip memory, by operation, an image:"
    for each in cost.traffic[:_MOST_SHOWN]:
        amount = each.bytes / cost.per_chip_batch / 1e6
        yield f"{amount:12.1f} MB  {each.operation}  (the largest: {each.largest})"


def _batch_line(step: CompiledStep, topology: Topology) -> str:
    """Which batch fits, and how that is known."""
    largest, chip = largest_batch(step, topology), topology.chip
    count = largest["per_chip_batch"] if largest else 0
    said = []
    for cost in step.costs:
        if cost.fits(chip):
            said.append(f"{cost.per_chip_batch} images a chip fit")
        else:
            reason = getattr(cost, "reason", "the peak is more than the chip has")
            said.append(f"{cost.per_chip_batch} do not fit ({reason})")
    if largest is None and len(step.costs) == 1:
        said.append("--find-batch compiles less")
    elif largest and largest["estimate"]:
        said.append(
            f"about {count} would, an estimate from the temporaries of an image (--find-batch "
            "compiles other batches)"
        )
    return f"{step.name}: {'; '.join(said)}"
