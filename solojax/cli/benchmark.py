"""`solojax benchmark`."""

from __future__ import annotations

import argparse

from solojax.cli import flags
from solojax.errors import InputError

HELP = """How long the phases of inference and a training step take, on random weights and images.

  solojax benchmark --config configs/solov2.py:r50,3x --canvas 800x1216
  solojax benchmark --config configs/solo.py:decoupled --train_batch 4 --train_canvas 512x512

Of contrastive pre-training it times the phases of a step: views on the host, colours, both
encoders, losses, and the whole step. The steps of two configs take turns, so that what else the
machine does falls on both:

  solojax benchmark --config configs/densecl.py:imagenet --against configs/densecl.py:imagenet,moco

Compilation is timed apart; operations and temporary memory are what XLA says of the compiled
program, in which the body of a loop counts once. Post-processing costs what the candidates cost:
--candidates sets their number."""

_TRAINING = (2, (512, 512))  # images of a step and their size, of a config that segments
_INFERENCE = {"canvas": (800, 1216), "candidates": 100}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's flags."""
    flags.add_config_flag(parser)
    parser.add_argument(
        "--against",
        metavar="FILE.py[:VARIANT,...]",
        help="another config, with the same changes, whose training step takes turns with this one",
    )
    size = {"metavar": "HxW", "type": flags.canvas}
    parser.add_argument("--canvas", help="of inference (default 800x1216)", **size)
    parser.add_argument(
        "--train_canvas", help="of training (default 512x512, or the config's views)", **size
    )
    parser.add_argument(
        "--train_batch",
        metavar="B",
        type=int,
        help="images a step (default 2, or a contrastive config's own); 0 leaves the step out",
    )
    parser.add_argument(
        "--candidates", metavar="M", type=int, help="above the score threshold (default 100)"
    )
    parser.add_argument("--repeats", metavar="N", type=int, default=5, help="of every phase")


def run(args: argparse.Namespace) -> int:
    """Prints a line per phase."""
    config, other = _configs(args)
    import resource

    import jax

    from solojax.costs.timing import table

    print(f"{jax.default_backend()}, {jax.device_count()} device(s)")
    remarks: list[str] = []
    for line in table(_timings(args, config, other, remarks)):
        print(line, flush=True)
    for line in remarks:
        print(line)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of the process {peak:.2f} GiB")
    return 0


def _configs(args: argparse.Namespace):
    """The config and the one to compare it with, or None.

    Raises:
      InputError: a flag makes no sense, or has no part in the config's task.
    """
    if args.repeats < 1 or (args.candidates or 1) < 1 or (args.train_batch or 0) < 0:
        raise InputError("--repeats and --candidates must be 1 or more, --train_batch 0 or more")
    config = flags.read_config(args)
    if not _segments(config):
        useless = [f"--{name}" for name in _INFERENCE if getattr(args, name) is not None]
        if useless:
            raise InputError(f"{', '.join(useless)} has no part in {config.task}: leave it out")
    if args.against is None:
        return config, None
    if args.train_batch == 0:
        raise InputError("--against compares training steps: leave --train_batch 0 out")
    from solojax.config import load_config

    return config, load_config(args.against, args.overrides)


def _timings(args: argparse.Namespace, config, other, remarks: list[str]):
    """Yields phase after phase; what is to be said at the end goes into the remarks."""
    from solojax.costs.step_benchmark import compare_training, comparison_lines, time_training

    size = _training_size(args, config)
    yield from _phases(args, config, size)
    if other is not None:
        sizes = (size, _training_size(args, other))
        comparison = compare_training((config, other), sizes, repeats=args.repeats)
        yield from comparison.timings
        remarks += comparison_lines(comparison, (args.config, args.against))
    elif size[0]:
        yield time_training(config, *size, repeats=args.repeats)


def _phases(args: argparse.Namespace, config, size: tuple[int, tuple[int, int]]):
    if _segments(config):
        from solojax.costs.inference_benchmark import time_inference

        chosen = {name: getattr(args, name) or value for name, value in _INFERENCE.items()}
        return time_inference(config, **chosen, repeats=args.repeats)
    from solojax.costs.contrast_benchmark import time_phases

    rows, canvas = size
    return time_phases(config, rows or config.train.batch_size, canvas, repeats=args.repeats)


def _training_size(args: argparse.Namespace, config) -> tuple[int, tuple[int, int]]:
    own = (config.train.batch_size, tuple(config.views.size)) if not _segments(config) else None
    rows, canvas = own or _TRAINING
    return rows if args.train_batch is None else args.train_batch, args.train_canvas or canvas


def _segments(config) -> bool:
    from solojax.config.schema import SEGMENTATION_TASKS

    return config.task in SEGMENTATION_TASKS
