"""`solojax export`."""

from __future__ import annotations

import argparse
import logging

from solojax.cli import flags

HELP = """Writes the prediction step as one file that JAX runs without this project.

  solojax export --checkpoint runs/r50 --output model.jaxexport
  solojax export --checkpoint SOLOv2_R50_3x.pth --canvas 1344x800 --output portrait.jaxexport

Written: the program with its weights (jax.export), for all --platforms at once, and beside it
model.json: how images are resized, the categories, shapes and types. The program takes images
(B, H, W, 3) uint8 RGB on a canvas and their sizes (B, 2) int32 (height, width), and returns a dict:
scores, classes, boxes, masks (probabilities at 1/4 of the canvas), valid, overflow. Matrix NMS and
the choice of the best are in it; scripts/run_exported.py resizes images and masks, and writes COCO
results:

  python scripts/run_exported.py model.jaxexport --images photo.jpg --output results.json

A program has one canvas. The network sees all of it, so results vary a little with the canvas:
`solojax predict` takes the smallest for every image, unless --config.evaluation.canvas=buckets and
--config.data.buckets name those that were exported. For images of several shapes export several;
the script gives every image the smallest that holds it."""

_logger = logging.getLogger(__name__)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's flags."""
    flags.add_checkpoint_flag(parser, required=True)
    flags.add_step_flag(parser)
    flags.add_config_flag(parser, optional="the config that the checkpoint carries")
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=flags.local_path,
        required=True,
        help="the program, such as model.jaxexport; its settings go to model.json",
    )
    parser.add_argument(
        "--canvas",
        metavar="HxW",
        type=flags.canvas,
        help="that images are placed on (default: what holds wide images of the model's "
        "evaluation.short_side and long_side, 800x1344 for the published ones)",
    )
    parser.add_argument(
        "--batch",
        metavar="B|symbolic",
        type=_batch,
        default=1,
        help="images of a call; symbolic: any number (default 1)",
    )
    parser.add_argument(
        "--platforms",
        metavar="NAME,...",
        type=lambda text: [name.strip() for name in text.split(",") if name.strip()],
        default=["cpu", "cuda", "tpu"],
        help="cpu, cuda, rocm, tpu: that the program will run on (default cpu,cuda,tpu)",
    )


def run(args: argparse.Namespace) -> int:
    """Exports."""
    from solojax.conversion import exporting
    from solojax.inference.segmenter import load

    platforms = exporting.check_platforms(args.platforms)
    exporting.require_flatbuffers()
    for path in (args.output, exporting.settings_path(args.output)):
        flags.check_output_file(path, "--output")
    model = load(args.checkpoint, step=args.step, config=flags.config_over(args))
    canvas = args.canvas or exporting.default_canvas(model)
    if max(canvas) < min(model.short_side, model.long_side):
        _logger.warning(
            "no image fits canvas %dx%d once it is resized to evaluation.short_side %d",
            *canvas,
            model.short_side,
        )
    settings = exporting.write_export(model, args.output, canvas, platforms, args.batch)
    size = args.output.stat().st_size / 2**20
    count = "any number of images" if args.batch == exporting.SYMBOLIC else f"{args.batch} image(s)"
    print(f"{args.output}: {size:.1f} MiB, {count} of {canvas[0]}x{canvas[1]}, ", end="")
    print(f"for {', '.join(platforms)}")
    print(f"{settings}: what a caller has to know")
    return 0


def _batch(text: str) -> int | str:
    if text == "symbolic":
        return text
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give 1 or more, or 'symbolic' for any number")
    return int(text)
