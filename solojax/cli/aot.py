"""`solojax aot`."""

from __future__ import annotations

import argparse

from solojax.cli import flags
from solojax.errors import InputError

HELP = """Compiles the training and prediction steps for a TPU slice, on any Linux host without one.

  solojax aot --config configs/solov2.py:r50,3x --config.model.dtype=bfloat16 --topology v5e:4x4
  solojax aot --config configs/solov2.py:r101,3x --topology v5p:2x2x4 --per-chip-batch 4 \\
      --canvas 800x1344 --output report.json
  solojax aot --config configs/densecl.py:imagenet --config.train.batch_size=4096 \\
      --config.model.dtype=bfloat16 --topology v5e:16x16

Says what memory a chip needs, what it computes and moves, what chips send each other, and which
batch fits. Figures are the TPU compiler's own, of one chip; the two times of a step are what its
operations and its memory traffic would take at the chip's peak. Traffic is an upper bound, since
the compiler counts what it keeps in on-chip memory too; a second figure leaves that out. No data is
read; compilation takes minutes a step. Needs libtpu: pip install "solojax[aot]"."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's flags."""
    flags.add_config_flag(parser)
    parser.add_argument(
        "--topology",
        metavar="KIND:SHAPE",
        required=True,
        help="the slice: v4, v5e, v5p or v6e and its chips along every side, as v5e:4x4 (2 sides; "
        "v6e too) or v4:2x2x4 (3 sides; v5p too)",
    )
    parser.add_argument(
        "--per-chip-batch",
        metavar="B",
        type=int,
        help="images of a chip, of which a contrastive config has two views each (default: the "
        "config's batch over all chips, at least 1)",
    )
    parser.add_argument(
        "--canvas",
        metavar="HxW",
        type=flags.canvas,
        help="of the images, as 800x1344 (default: the largest of the config's recipe)",
    )
    parser.add_argument(
        "--steps",
        metavar="STEP,...",
        help="what to compile (default train,predict; of a contrastive config train)",
    )
    parser.add_argument(
        "--find-batch",
        action="store_true",
        help="double the batch until it no longer fits, a compilation each",
    )
    parser.add_argument(
        "--output", metavar="FILE.json", type=flags.local_path, help="the report as json"
    )


def run(args: argparse.Namespace) -> int:
    """Prints the table."""
    import json

    from solojax.aot.chips import parse_topology
    from solojax.aot.devices import prepare_environment, require_compiler

    topology = parse_topology(args.topology)
    if args.per_chip_batch is not None and args.per_chip_batch < 1:
        raise InputError(f"--per-chip-batch {args.per_chip_batch}: give 1 or more")
    flags.check_output_file(args.output, "--output")
    require_compiler()
    prepare_environment()  # before anything imports JAX

    from solojax.aot.compiling import check_steps
    from solojax.aot.report import make_report
    from solojax.aot.table import report_lines

    config = flags.read_config(args)
    steps = None if args.steps is None else args.steps.split(",")
    check_steps(config, steps)  # before the compiler is asked for the slice
    report = make_report(
        config,
        topology,
        name=args.config,
        steps=steps,
        per_chip_batch=args.per_chip_batch,
        canvas=args.canvas,
        find_batch=args.find_batch,
    )
    for line in report_lines(report):
        print(line)
    if args.output is not None:
        args.output.write_text(json.dumps(report.to_dict(), indent=2) + "\n")
        print(f"the report is in {args.output}")
    return 0
