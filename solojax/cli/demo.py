"""`solojax demo`."""

from __future__ import annotations

import argparse

from solojax.cli import flags

HELP = """Shows that everything works: draws a data set, trains on it, evaluates, draws the results.

  solojax demo --workdir runs/demo
  solojax demo --workdir runs/demo2 --seed 7

Written: W/data/{train,val}.json and their images, the files of `solojax train`, W/evaluation.json
(figures on images the model has never seen) and W/overlays/. The model is then used like any
other: solojax predict --checkpoint W --images W/data/val --output out"""

NUM_OVERLAYS = 12


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's flags."""
    flags.add_workdir_flag(parser)
    flags.add_config_flag(parser, default="configs/quickstart.py")
    parser.add_argument(
        "--seed", metavar="N", type=int, help="of the data and of the weights (default 0)"
    )
    parser.add_argument(
        "--num_train",
        metavar="N",
        type=int,
        default=2000,
        help="images to draw for training (default 2000)",
    )
    parser.add_argument(
        "--num_val",
        metavar="N",
        type=int,
        default=100,
        help="images to draw for evaluation (default 100)",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the demo."""
    config = flags.read_segmentation_config(args)
    workdir = flags.make_workdir(args.workdir)
    if args.seed is not None:
        config.seed = args.seed

    from solojax.inference.evaluation import figures_table
    from solojax.runs.demo import run_demo

    figures, baseline = run_demo(
        config, workdir, num_train=args.num_train, num_val=args.num_val, num_overlays=NUM_OVERLAYS
    )
    print(figures_table(figures))
    print(f"thresholding and connected components, for comparison: mask AP {baseline:.3f}")
    print(f"pictures: {workdir}/overlays, figures: {workdir}/evaluation.json")
    return 0
