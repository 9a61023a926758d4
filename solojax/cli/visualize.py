"""`solojax visualize`."""

from __future__ import annotations

import argparse
from pathlib import Path

from solojax.cli import flags

HELP = """Pictures of what a network does inside.

The soft mask of every cell of one level's grid, before any suppression (thesis Figure 3.4):

  solojax visualize grid --checkpoint runs/demo --images photo.jpg --level 2 --output cells.png"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's flags."""
    parser.add_argument("what", choices=("grid",), help="grid: the masks of all cells of a level")
    flags.add_checkpoint_flag(parser, required=True)
    flags.add_step_flag(parser)
    flags.add_config_flag(parser, optional="the config that the checkpoint carries")
    parser.add_argument("--images", metavar="FILE", type=Path, required=True, help="one image")
    parser.add_argument(
        "--level", metavar="L", type=int, default=0, help="of the grid, the finest is 0 (default)"
    )
    parser.add_argument("--output", metavar="FILE.png", type=Path, required=True, help="picture")


def run(args: argparse.Namespace) -> int:
    """Draws the picture."""
    from solojax.data.image_io import read_image
    from solojax.grid_picture import draw_grid
    from solojax.inference import load
    from solojax.prediction import write_png

    flags.check_output_file(args.output, "--output")
    image = read_image(args.images)
    model = load(args.checkpoint, step=args.step, config=flags.config_over(args))
    write_png(args.output, draw_grid(model, image, args.level))
    print(f"{model.task.grid.num_grids[args.level] ** 2} masks: {args.output}")
    return 0
