"""`solojax visualize`."""

from __future__ import annotations

import argparse
import math

from solojax.cli import flags
from solojax.errors import InputError

HELP = """Pictures of what a network does inside.

The soft mask of every cell of one level's grid, before any suppression (thesis Figure 3.4):

  solojax visualize grid --checkpoint runs/demo --images photo.jpg --level 2 --output cells.png

What backbones match between two augmented views of an image, mutual nearest neighbours among their
features (thesis Figures 5.4, and 5.5 with --threshold none); a picture of every image, and
correspondence.json with the counts of all:

  solojax visualize correspondence --checkpoint random runs/moco runs/densecl --images photos \\
      --output matches
  solojax visualize correspondence --checkpoint runs/densecl --step 0,last \\
      --images photos --threshold none --output matches"""

# Which flags are of which picture alone, and what stands in where one is not given.
_OWN = {
    "grid": {"config": None, "level": 0},
    "correspondence": {
        "threshold": 0.9,
        "size": None,
        "stage": 5,
        "seed": 0,
        "pictures": 20,
    },
}
_NO_THRESHOLD = "none"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's flags."""
    parser.add_argument(
        "what",
        choices=tuple(_OWN),
        help="grid: the masks of all cells of a level; correspondence: the cells of two views "
        "that a backbone finds alike",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="PATH",
        type=flags.local_name,
        nargs="+",
        required=True,
        help="the weights: a checkpoint, the workdir of a run, or a PyTorch file (.pth, .pt, .pkl, "
        ".safetensors); with correspondence any backbone, several to compare, and 'random' for an "
        "untrained network like the first of the others",
    )
    parser.add_argument(
        "--step",
        metavar="N|best|last[,...]",
        help="which checkpoint of a run: a step, 'best' or 'last' (default); with correspondence "
        "several with commas between them, 0 for how a contrastive run began",
    )
    parser.add_argument(
        "--images",
        metavar="FILE|DIR|PATTERN",
        required=True,
        help="one image; with correspondence a folder or a quoted pattern too",
    )
    parser.add_argument(
        "--output",
        metavar="FILE.png|DIR",
        type=flags.local_path,
        required=True,
        help="picture; with correspondence a folder",
    )
    grid = parser.add_argument_group("grid")
    flags.add_config_flag(grid, optional="the config that the checkpoint carries")
    grid.add_argument(
        "--level", metavar="L", type=int, help="of the grid, the finest is 0 (default)"
    )
    _add_correspondence_flags(parser.add_argument_group("correspondence"))


def _add_correspondence_flags(group) -> None:
    group.add_argument(
        "--threshold",
        metavar="X|none",
        type=_threshold,
        help="least cosine similarity of a match that is kept; none keeps all (default 0.9)",
    )
    group.add_argument(
        "--size",
        metavar="HEIGHTxWIDTH",
        type=flags.canvas,
        help="of the views; twice the size is twice as many cells a side (default: of those that "
        "the first pre-trained checkpoint was trained on; 224x224 where that is not known)",
    )
    group.add_argument(
        "--stage",
        metavar="N",
        type=int,
        choices=(2, 3, 4, 5),
        help="which feature map is matched, C2 to C5 (default 5, as in the thesis)",
    )
    group.add_argument("--seed", metavar="N", type=_count, help="of the views (default 0)")
    group.add_argument(
        "--pictures",
        metavar="N",
        type=_count,
        help="how many images are drawn; all are counted (default 20)",
    )


def run(args: argparse.Namespace) -> int:
    """Draws the picture or pictures."""
    _settle(args)
    return _draw_grid(args) if args.what == "grid" else _draw_correspondence(args)


def _settle(args: argparse.Namespace) -> None:
    """Puts defaults in place; refuses the flags of the other picture."""
    for what, own in _OWN.items():
        for name, default in own.items():
            given = getattr(args, name)
            if what != args.what and given is not None:
                raise InputError(f"--{name} belongs to `solojax visualize {what}`: leave it out")
            if what == args.what and given is None:
                setattr(args, name, default)
    if args.what != "grid" and args.overrides:
        raise InputError(f"{args.overrides[0]} belongs to `solojax visualize grid`: leave it out")


def _draw_grid(args: argparse.Namespace) -> int:
    from solojax.data.image_io import read_image
    from solojax.inference.grid_picture import draw_grid
    from solojax.inference.prediction import write_png
    from solojax.inference.segmenter import load

    steps = _steps(args.step)
    if len(args.checkpoint) > 1 or len(steps) > 1:
        raise InputError("a grid is that of one checkpoint: give one --checkpoint and one --step")
    flags.check_output_file(args.output, "--output")
    image = read_image(args.images)
    model = load(args.checkpoint[0], step=steps[0], config=flags.config_over(args))
    write_png(args.output, draw_grid(model, image, args.level))
    print(f"{model.task.grid.num_grids[args.level] ** 2} masks: {args.output}")
    return 0


def _draw_correspondence(args: argparse.Namespace) -> int:
    from solojax.data.image_files import find_images
    from solojax.features.correspondence_pictures import (
        MatchSettings,
        compare_backbones,
        table,
        view_settings,
    )
    from solojax.inference.evaluation import write_json

    paths = find_images(args.images)
    folder = flags.make_workdir(args.output, "--output")
    threshold = None if args.threshold == _NO_THRESHOLD else args.threshold
    backbones = _backbones(args)
    settings = MatchSettings(
        **view_settings(backbones, args.size),
        stage=args.stage,
        threshold=threshold,
        seed=args.seed,
    )
    report = compare_backbones(backbones, paths, folder, settings, args.pictures)
    write_json(report, folder / "correspondence.json")
    print(table(report))
    count = len(report["images"])
    skipped = f", {len(report['skipped'])} could not be read" if report["skipped"] else ""
    print(f"{min(count, args.pictures)} pictures of {count} images{skipped}: {folder}")
    return 0


def _backbones(args: argparse.Namespace) -> list:
    """Every checkpoint at every step, in the order given."""
    from solojax.features.frozen_backbone import RANDOM, load_backbone, random_backbone

    steps = _steps(args.step)
    trained = {
        path: [load_backbone(path, step) for step in steps]
        for path in args.checkpoint
        if path != RANDOM
    }
    if not trained:
        raise InputError(
            f"--checkpoint {RANDOM} stands for an untrained network like that of another "
            "checkpoint: give that too"
        )
    first = next(iter(trained.values()))[0]
    untrained = {RANDOM: [random_backbone(first, args.seed)]} if RANDOM in args.checkpoint else {}
    found = trained | untrained
    return [backbone for path in dict.fromkeys(args.checkpoint) for backbone in found[path]]


def _steps(text: str | None) -> list[int | str | None]:
    """What `load` and `load_backbone` call the steps of the flag."""
    words = ["last"] if text is None else text.split(",")
    for word in words:
        if not (word.isdigit() or word in ("best", "last")):
            raise InputError(
                f"--step {text}: '{word}' is no step; give numbers, 'best' or 'last' with commas "
                "between them"
            )
    return [int(w) if w.isdigit() else None if w == "last" else w for w in words]


def _threshold(text: str) -> float | str:
    if text == _NO_THRESHOLD:
        return text
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not -1 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no cosine: give -1 to 1, or {_NO_THRESHOLD}")
    return value


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 on")
    return int(text)
