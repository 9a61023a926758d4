"""`solojax predict`."""

from __future__ import annotations

import argparse

from solojax.cli import flags

HELP = """Finds the objects in images: COCO results with masks, and pictures to look at.

  solojax predict --checkpoint runs/demo --images photo.jpg --output out
  solojax predict --checkpoint runs/r50 --images 'photos/*.jpg' --output out --score_threshold 0.5

Written: OUTPUT/predictions.json (COCO results: the file's name, the data set's own category ids,
boxes x y width height, masks as RLE at the image's size) and OUTPUT/overlays/NAME.png. A mask that
has no pixel at the image's size is left out; `solojax evaluate --checkpoint` counts it, as an
error."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's flags."""
    flags.add_checkpoint_flag(parser, required=True)
    flags.add_step_flag(parser)
    flags.add_config_flag(parser, optional="the config that the checkpoint carries")
    parser.add_argument(
        "--images",
        metavar="FILE|DIR|GLOB",
        required=True,
        help="an image, a folder of images, or a pattern in quotes",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=flags.local_path,
        required=True,
        help="folder for what is found; made if it is absent",
    )
    parser.add_argument(
        "--score_threshold",
        metavar="X",
        type=flags.probability,
        default=0.3,
        help="least score of what overlays show; predictions.json holds all (default 0.3)",
    )


def run(args: argparse.Namespace) -> int:
    """Predicts; images that cannot be read are reported and left out."""
    from solojax.data.image_files import find_images
    from solojax.inference.prediction import predict_files
    from solojax.inference.segmenter import load

    paths = find_images(args.images)
    flags.make_workdir(args.output, "--output")
    model = load(args.checkpoint, step=args.step, config=flags.config_over(args))
    results, skipped = predict_files(model, paths, args.output, args.score_threshold)
    drawn = sum(result["score"] >= args.score_threshold for result in results)
    print(f"{len(results)} objects in {len(paths) - len(skipped)} images: ", end="")
    print(f"{args.output}/predictions.json")
    print(f"{drawn} of them with a score from {args.score_threshold:g} on: {args.output}/overlays")
    if skipped:
        rest = ", ..." if len(skipped) > 5 else ""
        print(f"{len(skipped)} images could not be read: {', '.join(skipped[:5])}{rest}")
    return 0
