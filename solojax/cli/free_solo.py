"""`solojax free-solo`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from solojax.cli import flags
from solojax.errors import InputError
from solojax.train import distributed

if TYPE_CHECKING:
    from ml_collections import ConfigDict

PRETRAINING = "configs/densecl.py:tiny"

HELP = """From a folder of images to a segmenter of its objects, without a label (FreeSOLO).

  solojax free-solo --images photos/ --workdir runs/photos
  solojax free-solo --images photos/ --workdir runs/r50 --backbone densecl_r50.pth \\
      --config configs/freesolo.py:r50
  solojax free-solo --images photos/ --workdir runs/many \\
      --config configs/freesolo.py:tiny,many --pretraining configs/densecl.py:tiny,close

The last is for photos of many small objects that look alike.

Stages: a backbone (given, or DenseCL pre-trained on the images), Free Mask, a first training on
its masks, labels from that, a second training on them, predictions. What is done already is
skipped, and what was stopped goes on; for other settings give another workdir. Written:
W/backbone/, W/masks.json, W/round0/, W/labels1.json, W/round1/, W/predictions.json (COCO: images,
masks, boxes, scores, embeddings) and W/overlays/ (what has a score from
--config.self_training.picture_threshold on, by default that of labels, in pictures of up to 1000
images, evenly spread over more; `solojax predict` draws any). Rounds and filters are keys of the
config, such as --config.self_training.rounds=2. --config.KEY=VALUE changes the segmenter; for
another pre-training give a config by --pretraining, or the workdir of your own
`solojax train --config configs/densecl.py:tiny --config.KEY=VALUE ...` by --backbone.
--config.evaluation.KEY=VALUE makes the predictions of a chain that is done again.

In the first training the target of the semantic loss is the embedding that Free Mask gave a mask,
in later ones the embedding that the segmenter before predicted for it.

The segmenter is then used like any other:

  solojax predict --checkpoint W/round1 --images 'other/*.jpg' --output out
  solojax evaluate --checkpoint W/round1 --class-agnostic --images DIR --annotations labels.json

--annotations takes the images of a COCO json with their ids, so that W/masks.json, W/labels1.json
and W/predictions.json can be scored by `solojax evaluate --class-agnostic --predictions`. Files
that are no images are named and left out. Masks that another checkpoint, other settings or other
images made are refused, and so are trainings with other settings or from other weights; --masks
takes a label file as it is. Several processes: as in `solojax train`."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's flags."""
    parser.add_argument(
        "--images",
        metavar="DIR",
        type=flags.local_path,
        required=True,
        help="the images, at any depth",
    )
    parser.add_argument(
        "--annotations",
        metavar="FILE",
        type=flags.local_path,
        help="COCO json that lists the images to take; its ids, not its objects, are used",
    )
    parser.add_argument(
        "--masks",
        metavar="FILE",
        type=flags.local_path,
        help="a label file of the images made elsewhere, to learn from in place of Free Mask's",
    )
    flags.add_workdir_flag(parser)
    flags.add_config_flag(parser, default="configs/freesolo.py:tiny")
    parser.add_argument(
        "--backbone",
        metavar="PATH",
        type=flags.local_name,
        help="to start from: a workdir of `solojax train` or a PyTorch file; it has to fit the "
        "config (default: one is pre-trained on the images)",
    )
    parser.add_argument(
        "--pretraining",
        metavar="FILE.py[:VARIANT,...]",
        default=PRETRAINING,
        help=f"the config of that (default {PRETRAINING})",
    )
    flags.add_distributed_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the chain; images that cannot be read are reported and left out."""
    # First of all, so that the other processes hear of whatever is wrong here.
    flags.start_distributed(args, preemption=True)
    flags.check_start(args)
    config, pretraining = _configs(args)

    from solojax.config.schema import flatten
    from solojax.free_solo.chain import run_free_solo
    from solojax.free_solo.free_masks import load_photos
    from solojax.free_solo.stages import Stages, check_outside, recipe
    from solojax.train.preemption import EXIT_CODE, Preempted
    from solojax.train.start_checks import check_values, check_workdir

    if args.annotations is None:
        check_outside(args.workdir, args.images)
    check_values(flatten(config))
    check_values(flatten(pretraining) if pretraining is not None else {}, "pre-training config")
    # Before there is a workdir: without images there need be none.
    dataset, unread = load_photos(args.images, args.annotations, config.data.threads)
    flags.make_workdir(args.workdir)
    check_workdir(args.workdir)
    first = distributed.process_id() in (None, 0)
    stages = Stages(args.workdir, config.self_training.rounds, args.masks)
    if first:
        print(
            recipe(
                config,
                args.images,
                stages,
                annotations=args.annotations,
                spec=args.config,
                overrides=args.overrides,
                backbone=args.backbone,
                pretraining=args.pretraining,
            )
        )
    code = 0
    try:
        summary = run_free_solo(
            config,
            dataset,
            stages,
            unread=unread,
            backbone=args.backbone,
            pretraining=pretraining,
        )
        if first:
            print(_report(summary, stages))
    except Preempted as notice:
        print(f"solojax free-solo{distributed.name_suffix()}: {notice}", file=sys.stderr)
        code = EXIT_CODE
    distributed.finish()
    return code


def _configs(args: argparse.Namespace) -> tuple[ConfigDict, ConfigDict | None]:
    """The chain's config, and that of pre-training unless there is a backbone."""
    from solojax.config import free_solo_config, load_config
    from solojax.free_solo.stages import check_same_backbone

    config = flags.read_config(args)
    if config.task != "free_solo":
        raise InputError(
            f"--config {args.config} is for {config.task}: give one of configs/freesolo.py"
        )
    # They would be passed over in silence, and a training that trusts them kept.
    labels = config.data.train_annotations
    if labels != free_solo_config().data.train_annotations:
        raise InputError(
            f"--config {args.config} names labels to learn from (data.train_annotations={labels}), "
            "which a chain makes itself: use it with `solojax train`, or leave the labels out"
        )
    if args.backbone is not None:
        if args.pretraining != PRETRAINING:
            raise InputError("--pretraining has no part where a --backbone is given: leave it out")
        return config, None
    pretraining = load_config(args.pretraining)
    if pretraining.task != "densecl":
        raise InputError(
            f"--pretraining {args.pretraining} is for {pretraining.task}: give one of "
            "configs/densecl.py"
        )
    check_same_backbone(config, pretraining)
    return config, pretraining


def _report(summary, stages) -> str:
    """What a person wants to know at the end."""
    lines = []
    for number, labels in enumerate(summary.labels):
        lines.append(
            f"round {number} learned from {labels.objects} masks in {labels.images} images "
            f"({labels.without_objects} without any): {stages.labels(number)}"
        )
    found = summary.predictions
    lines.append(f"{found.objects} objects found in {found.images} images: {stages.predictions}")
    drawn = f"{found.likely} of them with a score from {found.score_threshold:g} on"
    spread = f" (pictures of {found.pictures} images)" if found.pictures < found.images else ""
    lines.append(f"{drawn}: {stages.overlays}{spread}")
    if summary.unread:
        shown = ", ".join(summary.unread[:5]) + (", ..." if len(summary.unread) > 5 else "")
        lines.append(f"{len(summary.unread)} files could not be read: {shown}")
    return "\n".join(lines)
