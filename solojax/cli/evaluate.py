"""`solojax evaluate`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from solojax.cli import flags
from solojax.errors import InputError
from solojax.train import distributed

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from solojax.data.instances import InstanceDataset

_ONLY_FOR_CHECKPOINTS = ("checkpoint", "step", "config", "images", "save_predictions")

HELP = """Mask and box average precision (COCO's figures, as fractions).

Of a checkpoint, on the validation set of the config it was trained with:

  solojax evaluate --checkpoint runs/r50 --output evaluation.json
  solojax evaluate --checkpoint runs/r50 --annotations other.json --images photos/

Of a results file that exists already, by whatever made it:

  solojax evaluate --predictions results.json --annotations instances_val2017.json

Of masks that were found without labels, with categories really ignored and CorLoc beside the boxes'
figures:

  solojax evaluate --class-agnostic --predictions masks.json --annotations instances_val2017.json

Annotations without any segmentation, as VOC's, score the boxes alone: those of --predictions, and
with --class-agnostic those of a checkpoint.

On several processes, as in `solojax train`: the figures are those of one process.

How much of the error lies in the masks (thesis Table 3.7): with --replace-masks-with-gt."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's flags."""
    flags.add_checkpoint_flag(parser)
    flags.add_step_flag(parser)
    flags.add_config_flag(parser, optional="the config that the checkpoint carries")
    parser.add_argument(
        "--annotations", metavar="GT.json", type=flags.local_path, help="COCO annotations"
    )
    parser.add_argument(
        "--images", metavar="DIR", type=flags.local_path, help="folder of their images"
    )
    parser.add_argument(
        "--predictions",
        metavar="RESULTS.json",
        type=flags.local_path,
        help="score this results or label file instead of a model",
    )
    parser.add_argument(
        "--output", metavar="FILE", type=flags.local_path, help="json file for the figures"
    )
    parser.add_argument(
        "--save_predictions",
        metavar="FILE",
        type=flags.local_path,
        help="json file for the COCO results",
    )
    parser.add_argument(
        "--class_agnostic",
        "--class-agnostic",
        action="store_true",
        help="ignore categories altogether: all objects and detections are of one class",
    )
    parser.add_argument(
        "--replace-masks-with-gt",
        action="store_true",
        help="error analysis: every mask becomes the ground-truth mask that it overlaps most",
    )
    parser.add_argument(
        "--backend",
        choices=("fast", "reference"),
        help="fast: faster-coco-eval; reference: pycocotools (the same figures)",
    )

    flags.add_distributed_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluates; process 0 prints the table."""
    flags.start_distributed(args)
    flags.check_start(args)
    from solojax.inference.evaluation import figures_table, write_json

    if _is_first():
        flags.check_output_file(args.output, "--output")
        flags.check_output_file(args.save_predictions, "--save_predictions")
    figures = _score_file(args) if args.predictions else _score_checkpoint(args)
    _say(figures_table(figures))
    if args.output:
        write_json(figures, args.output)
    distributed.finish()
    return 0


def _is_first() -> bool:
    return distributed.process_id() in (None, 0)


def _say(text: str) -> None:
    if _is_first():
        print(text)


def _score_file(args: argparse.Namespace) -> dict:
    from solojax.inference.evaluation import score_file

    if args.annotations is None:
        raise InputError("--predictions needs --annotations GT.json to be scored against")
    useless = [f"--{flag}" for flag in _ONLY_FOR_CHECKPOINTS if getattr(args, flag) is not None]
    useless += args.overrides
    if useless:
        raise InputError(
            f"--predictions scores a file that exists already: {', '.join(useless)} has no part in "
            "that; leave it out, or --predictions"
        )
    return score_file(
        args.predictions,
        args.annotations,
        backend=args.backend or "fast",
        class_agnostic=args.class_agnostic,
        perfect_masks=args.replace_masks_with_gt,
    )


def _score_checkpoint(args: argparse.Namespace) -> dict:
    from solojax.builders.segmentation import check_same_classes
    from solojax.config.schema import flatten
    from solojax.evaluators.error_analysis import replace_masks_with_gt
    from solojax.inference.evaluation import Evaluation, write_json
    from solojax.inference.segmenter import load
    from solojax.interop.published import unnamed_classes
    from solojax.train.start_checks import check_data, check_values

    if args.checkpoint is None:
        raise InputError("give --checkpoint, or --predictions and --annotations")
    if (args.annotations is None) != (args.images is None):
        raise InputError("--annotations and --images belong together; give both or neither")
    model = load(args.checkpoint, step=args.step, config=flags.config_over(args))
    flags.check_checkpoint(f"{args.checkpoint} at step {model.step}", model.variables)
    config = model.config.copy_and_resolve_references()
    if args.backend:
        config.evaluation.backend = args.backend
    config.evaluation.class_agnostic |= args.class_agnostic
    check_values(flatten(config))
    dataset, kinds = _data_to_score(args, config)
    check_data(validation=dataset)
    names = tuple(name for _, name in model.categories)
    by_class = not config.evaluation.class_agnostic
    if names == unnamed_classes(len(dataset.category_names)):
        names = dataset.category_names
        if by_class or args.save_predictions:
            _say("the checkpoint does not name its classes: they are taken in the data set's order")
    elif by_class:
        check_same_classes(names, dataset)
    evaluation = Evaluation(model.task, config, dataset, names, kinds)
    _say(
        f"step {model.step} of {args.checkpoint} on {evaluation.num_images} images of "
        f"{dataset.annotation_path}"
    )
    results = evaluation.predict(model.variables)
    if args.replace_masks_with_gt:
        results = replace_masks_with_gt(results, dataset.annotation_path)
    if args.save_predictions:
        write_json(results, args.save_predictions)
    return evaluation.score(results)


def _data_to_score(
    args: argparse.Namespace, config: ConfigDict
) -> tuple[InstanceDataset, tuple[str, ...]]:
    """The images, and the kinds of figures that their annotations allow.

    Where classes are ignored, annotations of boxes alone will do; a data set has masks otherwise.
    """
    from solojax.builders.segmentation import load_dataset, load_val_set, readable
    from solojax.data.coco import load_coco_images
    from solojax.evaluators.results import KINDS
    from solojax.inference.evaluation import kinds_to_score

    if not args.images:
        return load_val_set(config), KINDS
    if config.evaluation.class_agnostic:
        kinds = kinds_to_score(args.annotations)
        if kinds != KINDS and args.replace_masks_with_gt:
            raise InputError(f"--replace-masks-with-gt: {args.annotations} has boxes alone")
        if kinds != KINDS:
            return readable(load_coco_images(args.annotations, args.images)), kinds
    return load_dataset(args.annotations, args.images), KINDS
