"""`solojax info`."""

from __future__ import annotations

import argparse

from solojax.cli import flags
from solojax.errors import InputError

HELP = """Parameters, operations and memory of a config's network, nothing being run.

  solojax info --config configs/solov2.py:r101,3x
  solojax info --config configs/solo.py:decoupled --canvas 512x864 --classes 3

Operations are those of one image at --canvas, as XLA counts them in the compiled program (a
multiplication and an addition are two; the body of a loop, as in deformable convolutions, counts
once)."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's flags."""
    flags.add_config_flag(parser)
    parser.add_argument(
        "--canvas",
        metavar="HxW",
        type=flags.canvas,
        default=(800, 1216),
        help="of the image (default 800x1216)",
    )
    parser.add_argument(
        "--classes", metavar="K", type=int, default=80, help="classes (default 80, as COCO)"
    )


def run(args: argparse.Namespace) -> int:
    """Prints the table."""
    from solojax.network_info import describe_network, info_lines

    if args.classes < 1:
        raise InputError(f"--classes {args.classes}: give 1 or more")
    config = flags.read_segmentation_config(args)
    for line in info_lines(describe_network(config, args.canvas, args.classes)):
        print(line)
    return 0
