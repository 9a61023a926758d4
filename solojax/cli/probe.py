"""`solojax probe`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from solojax.cli import flags
from solojax.errors import InputError

if TYPE_CHECKING:
    from solojax.features.frozen_backbone import FrozenBackbone

HELP = """What a frozen backbone knows of classes: nearest neighbours and linear SVMs on its output.

Images in class folders, one class each: accuracy.

  solojax probe --checkpoint runs/densecl --train-images data/photos/train \\
      --test-images data/photos/test --output probes.json
  solojax probe --checkpoint random --config configs/densecl.py:imagenet ...

Images of a COCO json, several classes each: mean average precision. PASCAL VOC 2007 has to be made
a COCO json first, with trainval's images for training and its difficult objects as "iscrowd": 1;
published VOC07 SVM figures are the column mAP_area, mAP is the eleven-point figure of VOC 2007.

  solojax probe --checkpoint densecl_r50_imagenet_200ep.pth --train-images VOC2007/JPEGImages \\
      --train-annotations voc07_trainval.json --test-images VOC2007/JPEGImages \\
      --test-annotations voc07_test.json --shots 1,2,4,8,16,32,64,96

The checkpoint is a run of any task, one checkpoint in it, or a PyTorch file with a backbone. Images
are resized by the short side, their middle is cut out, as large as the views that a run of
pre-training had. On several processes, as in `solojax train`:
all extract features, process 0 trains the classifiers. The SVMs need scikit-learn:
`pip install 'solojax[probe]'`."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's flags."""
    flags.add_checkpoint_flag(parser, required=True)
    flags.add_step_flag(parser)
    flags.add_config_flag(parser, optional="what the checkpoint carries; for --checkpoint random")
    _add_image_flags(parser)
    _add_feature_flags(parser)
    _add_probe_flags(parser)
    parser.add_argument(
        "--output", metavar="FILE.json", type=flags.local_path, help="json for the figures"
    )
    parser.add_argument(
        "--features-output",
        metavar="FILE.npz",
        type=flags.local_path,
        help="npz for features and targets",
    )
    flags.add_distributed_flags(parser)


def _add_image_flags(parser: argparse.ArgumentParser) -> None:
    for name in ("train", "test"):
        parser.add_argument(
            f"--{name}-images",
            metavar="DIR",
            type=flags.local_path,
            required=True,
            help=f"{name} images: class folders, or what --{name}-annotations refers to",
        )
        parser.add_argument(
            f"--{name}-annotations",
            metavar="FILE.json",
            type=flags.local_path,
            help="their COCO json",
        )


def _add_feature_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--stage",
        choices=("c2", "c3", "c4", "c5"),
        default="c5",
        help="feature map of the backbone (default c5, the last)",
    )
    _add_number(parser, "--pool", 1, "side of the grid that the map is averaged to (default 1)")
    _add_number(
        parser,
        "--short-side",
        None,
        "pixels, images are resized to it (default: 8/7 of --crop, 256 for 224)",
    )
    _add_number(
        parser,
        "--crop",
        None,
        "pixels of both sides of the middle (default: of the views that the checkpoint was "
        "pre-trained on; 224 where that is not known)",
    )
    _add_number(parser, "--batch-size", 128, "images of a step, on all devices (default 128)")
    _add_number(parser, "--threads", 8, "that read images, in each process (default 8)")


def _add_probe_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--probes", metavar="knn,svm", type=_words, default=("knn", "svm"), help="which (both)"
    )
    _add_number(parser, "--k", 20, "neighbours that vote (default 20)")
    parser.add_argument(
        "--temperature",
        metavar="T",
        type=float,
        default=0.07,
        help="a neighbour of cosine similarity s votes with weight exp(s/T) (default 0.07)",
    )
    parser.add_argument(
        "--costs",
        metavar="C,...",
        type=_floats,
        help="costs of the SVM, chosen among by cross-validation: for each class, or with class "
        "folders for all at once (default: 1e-7, 1e-6, ... 100 and 2^-4 ... 2^-19, as published)",
    )
    _add_number(parser, "--folds", 3, "of the cross-validation (default 3)")
    parser.add_argument(
        "--shots",
        metavar="N,...",
        type=_integers,
        default=(),
        help="also SVMs trained with N images of each class; of the costs the one that is best on "
        "the test images is shown, as published (the json has all)",
    )
    _add_number(parser, "--repeats", 5, "draws of those images (default 5)")
    _add_number(parser, "--seed", 0, "of those draws and of random weights (default 0)")


def _add_number(parser: argparse.ArgumentParser, flag: str, default: int | None, text: str) -> None:
    parser.add_argument(flag, metavar="N", type=int, default=default, help=text)


def run(args: argparse.Namespace) -> int:
    """Probes; process 0 prints the table."""
    flags.start_distributed(args)
    from solojax.evaluators.linear_svm import COSTS
    from solojax.evaluators.probes import ProbeSettings
    from solojax.features import probing
    from solojax.features.extraction import FeatureExtraction, image_sizes
    from solojax.inference.evaluation import write_json
    from solojax.train import distributed

    first = distributed.process_id() in (None, 0)
    settings = ProbeSettings(
        probes=args.probes,
        neighbors=args.k,
        temperature=args.temperature,
        costs=COSTS if args.costs is None else args.costs,
        folds=args.folds,
        shots=args.shots,
        repeats=args.repeats,
        seed=args.seed,
    )
    if first:
        flags.check_output_file(args.output, "--output")
        flags.check_output_file(args.features_output, "--features-output")
    train = probing.load_labelled(args.train_images, args.train_annotations)
    test = probing.load_labelled(args.test_images, args.test_annotations)
    backbone = _backbone(args)
    extraction = FeatureExtraction(
        stage=int(args.stage[1:]),
        pool=args.pool,
        **image_sizes(backbone, args.short_side, args.crop),
        batch_size=args.batch_size,
        threads=args.threads,
    )
    outcome = probing.probe(backbone, train, test, extraction, settings)
    if first:
        print(probing.probe_table(outcome.figures))
    if args.output:
        write_json(outcome.figures, args.output)
    if args.features_output:
        probing.write_features(outcome, args.features_output)
    distributed.finish()
    return 0


def _backbone(args: argparse.Namespace) -> FrozenBackbone:
    from solojax.features import frozen_backbone

    given = [*(["--config"] if args.config else []), *args.overrides]
    if str(args.checkpoint) != frozen_backbone.RANDOM:
        if given:
            raise InputError(
                f"{given[0]} describes the network of --checkpoint random: {args.checkpoint} tells "
                "its own, leave it out"
            )
        return frozen_backbone.load_backbone(args.checkpoint, args.step)
    if args.config is None:
        raise InputError("--checkpoint random needs --config: give one that names the backbone")
    if args.step is not None:
        raise InputError(f"--checkpoint random has no step {args.step}: leave --step out")
    return frozen_backbone.untrained_backbone(flags.read_config(args), args.seed)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _integers(text: str) -> tuple[int, ...]:
    return _converted(text, int, "whole numbers")


def _floats(text: str) -> tuple[float, ...]:
    return _converted(text, float, "numbers")


def _converted(text: str, kind: type, what: str) -> tuple:
    try:
        return tuple(kind(word) for word in _words(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give {what} with commas between") from None
