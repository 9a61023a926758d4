"""The run that the determinism checks make where no config is given: small, whole and real.

`configs/quickstart.py` or, with `--task densecl`, `configs/densecl.py:tiny`, either with a
ResNet-18 of a quarter of the width, on made-up 64 x 64 images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from solojax.config import load_config
from solojax.data.synthetic import write_synthetic_dataset

CONFIG = "configs/quickstart.py"
IMAGE_SIDE = 96  # of the files; the least that a scene is drawn at
OVERRIDES = (
    "--config.model.backbone.width=16",
    "--config.train.batch_size=8",
    "--config.data.short_sides=(64,)",
    "--config.data.long_side=64",
    "--config.data.threads=2",
    "--config.model.grid.num_grids=(12,10,8,6,4)",
    "--config.model.grid.scale_ranges=((1,12),(6,24),(12,48),(24,64),(48,128))",
    "--config.evaluation.short_side=64",
    "--config.evaluation.long_side=64",
    "--config.evaluation.batch_size=2",
    # A model of so few steps is sure of nothing: without low thresholds it would find nothing.
    "--config.evaluation.score_threshold=0.01",
    "--config.evaluation.update_threshold=0.001",
    "--config.evaluation.max_candidates=100",
    "--config.evaluation.nms_pre=100",
    "--config.evaluation.max_detections=20",
)
CONTRASTIVE_CONFIG = "configs/densecl.py:tiny"
CONTRASTIVE_OVERRIDES = (
    "--config.data.train_images=train",
    "--config.model.backbone.width=16",
    # Up to eight devices, on which a group is that of two.
    "--config.train.batch_size=16",
    "--config.optimizer.reference_batch=16",
    "--config.model.backbone.norm_group_images=4",
    "--config.data.threads=2",
    "--config.model.hidden_channels=32",
    "--config.model.embedding=16",
    "--config.model.grid=(2,2)",
    "--config.contrast.queue_length=64",
)
_CONFIGS = {
    "instance_segmentation": (CONFIG, OVERRIDES),
    "densecl": (CONTRASTIVE_CONFIG, CONTRASTIVE_OVERRIDES),
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds `--config` and `--workdir`; `parse` reads `--config.KEY=VALUE` too."""
    parser.add_argument(
        "--config",
        metavar="FILE.py[:VARIANT,...]",
        help="what to check; by default a tiny model on made-up images. Single values are changed "
        "by --config.KEY=VALUE",
    )
    parser.add_argument(
        "--task",
        choices=tuple(_CONFIGS),
        default="instance_segmentation",
        help="what the tiny model learns where no --config is given (default "
        "instance_segmentation; densecl is pre-training, queues and key encoder included)",
    )
    parser.add_argument("--workdir", type=Path, required=True, help="takes all that is written")


def parse(parser: argparse.ArgumentParser, argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the flags; those that begin with `--config.` become `args.overrides`."""
    args, others = parser.parse_known_args(argv)
    unknown = [word for word in others if not word.startswith("--config.") or "=" not in word]
    if unknown:
        parser.error(f"unknown flag {unknown[0]}")
    args.overrides = others
    return args


def config_flags(
    args: argparse.Namespace, tiny_overrides: tuple[str, ...] = ()
) -> tuple[str, list[str]]:
    """The config file and the overrides of a check.

    Where the user names no config, they are the tiny run's, and its images are drawn.

    Args:
      args: from `parse`.
      tiny_overrides: what the check changes in the tiny run, before the user's own overrides.
    """
    if args.config is not None:
        return args.config, args.overrides
    data = args.workdir / "data"
    write_synthetic_dataset(
        data, seed=0, num_train=48, num_val=11, image_sizes=[(IMAGE_SIDE, IMAGE_SIDE)]
    )
    root = f"--config.data.root={data.absolute()}"
    config, own = _CONFIGS[args.task]
    overrides = [root, *own, *tiny_overrides, *args.overrides]
    load_config(config, overrides)  # a mistake is found here rather than in a subprocess
    return config, overrides
