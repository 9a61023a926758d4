"""`solojax free-mask`."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from solojax.cli import flags
from solojax.errors import InputError
from solojax.train import distributed

if TYPE_CHECKING:
    from solojax.features.frozen_backbone import FrozenBackbone
    from solojax.postprocess.free_mask_labels import FreeMaskFilters

HELP = """Object masks from a folder of images without any label (Free Mask, thesis 6.2.2).

  solojax free-mask --checkpoint runs/densecl --images photos/ --output masks.json
  solojax free-mask --checkpoint densecl_r50.pth --images train2017/ --output masks.json \\
      --annotations instances_train2017.json
  solojax free-mask --checkpoint runs/photos/backbone --images photos/ --output masks.json \\
      --stage 3 --scales 0.25 --short_side 768 --long_side 1152 --canvas buckets \\
      --components --min_piece_area 64 --max_masks 40 --max_width 0.3 --min_center off

The last is for photos of many small objects that look alike, as configs/freesolo.py:tiny,many
searches them.

The checkpoint is any whose backbone this project can read, pre-trained with labels or without: the
workdir of `solojax train` for either task, a PyTorch file, or `random` for an untrained network.
The output is a COCO json with masks, boxes, scores and embeddings ("emb") of one class; file names
are those below the folder. With --annotations the images of a COCO json and their ids are taken
(its objects are not), so that the masks can be scored by

  solojax evaluate --class-agnostic --predictions masks.json --annotations labels.json

A run that was stopped goes on when it is started again. On several processes, as in
`solojax train`."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's flags."""
    parser.add_argument(
        "--checkpoint",
        metavar="PATH|random",
        type=flags.local_name,
        required=True,
        help="whose backbone: a workdir, a checkpoint in one, a PyTorch file, or 'random'",
    )
    flags.add_step_flag(parser)
    flags.add_config_flag(parser, optional="a ResNet-50; for --checkpoint random alone")
    parser.add_argument(
        "--images", metavar="DIR", type=flags.local_path, required=True, help="the images"
    )
    parser.add_argument(
        "--annotations",
        metavar="FILE",
        type=flags.local_path,
        help="COCO json that lists the images to take",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=flags.local_path,
        required=True,
        help="json file for the masks",
    )
    _add_search_flags(parser)
    _add_filter_flags(parser)
    parser.add_argument(
        "--batch_size", metavar="N", type=_count, help="images of a step (default one a device)"
    )
    parser.add_argument(
        "--threads", metavar="N", type=_count, default=8, help="that read images (default 8)"
    )
    flags.add_distributed_flags(parser)


def _add_search_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the search")
    sides = (("short_side", 800), ("long_side", 1333))
    for name, pixels in sides:
        group.add_argument(
            f"--{name}",
            metavar="PIXELS",
            type=_count,
            default=pixels,
            help=f"images are resized to it, keeping their shape (default {pixels})",
        )
    group.add_argument(
        "--stage",
        type=int,
        choices=(2, 3, 4, 5),
        default=5,
        help="n of the backbone's map Cn that is searched; earlier ones have finer cells, of 2^n "
        "pixels, for small objects (default 5). With 2 or 3 give fewer queries, by --scales 0.25: "
        "memory grows with their number times that of the cells",
    )
    group.add_argument(
        "--scales",
        metavar="X,...",
        type=_numbers,
        default=(1.0, 0.5, 0.25),
        help="of the maps that queries come from (default 1,0.5,0.25)",
    )
    group.add_argument(
        "--mask_threshold",
        metavar="X",
        type=flags.probability,
        default=0.5,
        help="from which on a cell belongs to a mask (default 0.5)",
    )
    group.add_argument(
        "--max_masks", metavar="N", type=_count, default=20, help="of an image (default 20)"
    )
    group.add_argument(
        "--embedding",
        metavar="N",
        type=_count,
        default=128,
        help="numbers of a mask's embedding, model.embedding of a training on them (default 128)",
    )
    group.add_argument(
        "--canvas",
        choices=("multiple_of_32", "buckets"),
        default="multiple_of_32",
        help="how images are padded: each as by itself (default), or to few sizes, which compiles "
        "less and changes the masks slightly",
    )
    group.add_argument(
        "--semantics",
        choices=("thesis", "release"),
        default="thesis",
        help="release: as the published code, which stretches masks over the padding",
    )


def _add_filter_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("which masks are kept (a number, or 'off')")
    filters = (
        ("min_maskness", 0.7, "least score"),
        ("min_center", 0.2, "the box's centre lies below this share of the height"),
        ("max_width", 0.95, "the box is narrower than this share of the width"),
    )
    for name, default, meaning in filters:
        group.add_argument(
            f"--{name}",
            metavar="X|off",
            type=_number_or_off,
            default=default,
            help=f"{meaning} (default {default})",
        )
    group.add_argument(
        "--components",
        action="store_true",
        help="every connected piece of a mask is an object of its own, for photos of many objects "
        "that look alike; scores and filters are of the pieces, --max_masks of which remain",
    )
    group.add_argument(
        "--min_piece_area",
        metavar="PIXELS",
        type=_count,
        help="with --components: pieces of fewer pixels of the file are dropped (default none)",
    )


def run(args: argparse.Namespace) -> int:
    """Finds masks; images that cannot be read are reported and left out."""
    flags.start_distributed(args)
    flags.check_start(args)
    from solojax.free_solo.free_masks import FreeMaskRun, find_masks, load_photos
    from solojax.postprocess.free_masks import FreeMaskSettings

    first = distributed.process_id() in (None, 0)
    if first:
        flags.check_output_file(args.output, "--output")
    how = FreeMaskRun(
        settings=FreeMaskSettings(
            scales=args.scales,
            mask_threshold=args.mask_threshold,
            max_masks=args.max_masks,
            embedding_size=args.embedding,
        ),
        stage=args.stage,
        filters=_filters(args),
        short_side=args.short_side,
        long_side=args.long_side,
        canvas=args.canvas,
        semantics=args.semantics,
        batch_size=args.batch_size,
        threads=args.threads,
    )
    dataset, broken = load_photos(args.images, args.annotations, args.threads)
    backbone = _backbone(args)
    flags.check_checkpoint(backbone.title, backbone.variables)
    logging.getLogger("solojax").info(
        "%d images, backbone of %s", len(dataset.images), backbone.title
    )
    summary = find_masks(backbone, dataset, args.output, how, broken)
    if first:
        print(_report(summary, args.output))
    distributed.finish()
    return 0


def _filters(args: argparse.Namespace) -> FreeMaskFilters:
    from solojax.postprocess.free_mask_labels import FreeMaskFilters

    if args.min_piece_area is not None and not args.components:
        raise InputError("--min_piece_area is of the pieces that --components makes: add that flag")
    return FreeMaskFilters(
        min_maskness=args.min_maskness,
        min_center=args.min_center,
        max_width=args.max_width,
        components=args.components,
        min_piece_area=args.min_piece_area or 0,
    )


def _backbone(args: argparse.Namespace) -> FrozenBackbone:
    from solojax.features.frozen_backbone import RANDOM, load_backbone

    described = args.config is not None or args.overrides
    if args.checkpoint != RANDOM:
        if described:
            raise InputError(
                "--config describes the network of --checkpoint random; a checkpoint brings its "
                "own: leave it out"
            )
        return load_backbone(args.checkpoint, args.step)
    if args.step is not None:
        raise InputError("--checkpoint random has no --step: leave it out")
    return _random_backbone(args)


def _random_backbone(args: argparse.Namespace) -> FrozenBackbone:
    """Of the config's network and seed, or of a ResNet-50's."""
    from solojax.config import apply_overrides, base_config
    from solojax.features.frozen_backbone import untrained_backbone

    if args.config is not None:
        config = flags.read_config(args)
    else:
        config = base_config()
        apply_overrides(config, args.overrides)
    return untrained_backbone(config, config.seed)


def _report(summary, output: Path) -> str:
    """What a person wants to know at the end."""
    if summary is None:
        return f"{output} is there already, of the same backbone, settings and images"
    rate = summary.computed / max(summary.seconds, 1e-9)
    lines = [f"{summary.objects} masks in {summary.images} images: {output}"]
    if summary.computed:
        lines.append(f"{summary.computed} images in {summary.seconds:.0f} s: {rate:.3g} images/s")
    if summary.without_objects:
        lines.append(f"{summary.without_objects} images without any mask")
    if summary.unread:
        shown = ", ".join(summary.unread[:5]) + (", ..." if len(summary.unread) > 5 else "")
        lines.append(f"{len(summary.unread)} images could not be read: {shown}")
    return "\n".join(lines)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _number_or_off(text: str) -> float | None:
    return None if text == "off" else flags.probability(text)
