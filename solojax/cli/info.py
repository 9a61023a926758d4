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
once).

  solojax info --config configs/densecl.py:imagenet

counts the encoder and the training step of contrastive pre-training with a dense head (DenseCL) and
without (MoCo-v2), whichever the config has, in the program before it is compiled."""

_CANVAS, _CLASSES = (800, 1216), 80


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's flags."""
    flags.add_config_flag(parser)
    parser.add_argument(
        "--canvas",
        metavar="HxW",
        type=flags.canvas,
        help="of the image (default 800x1216, or the size of a contrastive config's views)",
    )
    parser.add_argument(
        "--classes", metavar="K", type=int, help="classes (default 80, as COCO has them)"
    )


def run(args: argparse.Namespace) -> int:
    """Prints the table."""
    if args.classes is not None and args.classes < 1:
        raise InputError(f"--classes {args.classes}: give 1 or more")
    config = flags.read_config(args)
    for line in _lines(args, config):
        print(line)
    return 0


def _lines(args: argparse.Namespace, config):
    from solojax.config.schema import SEGMENTATION_TASKS

    if config.task in SEGMENTATION_TASKS:
        from solojax.costs.network_info import describe_network, info_lines

        info = describe_network(config, args.canvas or _CANVAS, args.classes or _CLASSES)
        return info_lines(info)
    if args.classes is not None:
        raise InputError(f"--classes has no part in {config.task}: leave it out")
    from solojax.costs.contrast_info import contrast_info_lines, describe_contrast

    return contrast_info_lines(describe_contrast(config, args.canvas or tuple(config.views.size)))
