"""`solojax benchmark`."""

from __future__ import annotations

import argparse

from solojax.cli import flags
from solojax.errors import InputError

HELP = """How long the phases of inference and a training step take, on random weights and images.

  solojax benchmark --config configs/solov2.py:r50,3x --canvas 800x1216
  solojax benchmark --config configs/solo.py:decoupled --train_batch 4 --train_canvas 512x512

Compilation is timed apart; operations and temporary memory are what XLA says of the compiled
program. Post-processing costs what the candidates cost: --candidates sets their number."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's flags."""
    flags.add_config_flag(parser)
    size = {"metavar": "HxW", "type": flags.canvas}
    parser.add_argument(
        "--canvas", default=(800, 1216), help="of inference (default 800x1216)", **size
    )
    parser.add_argument(
        "--train_canvas", default=(512, 512), help="of training (default 512x512)", **size
    )
    parser.add_argument(
        "--train_batch", metavar="B", type=int, default=2, help="images a step; 0 leaves it out"
    )
    parser.add_argument(
        "--candidates", metavar="M", type=int, default=100, help="above the score threshold"
    )
    parser.add_argument("--repeats", metavar="N", type=int, default=5, help="of every phase")


def run(args: argparse.Namespace) -> int:
    """Prints a line per phase."""
    import resource

    import jax

    from solojax.benchmarking import table, time_inference, time_training

    if args.repeats < 1 or args.candidates < 1 or args.train_batch < 0:
        raise InputError("--repeats and --candidates must be 1 or more, --train_batch 0 or more")
    config = flags.read_segmentation_config(args)
    print(f"{jax.default_backend()}, {jax.device_count()} device(s)")

    def timings():
        yield from time_inference(
            config, args.canvas, candidates=args.candidates, repeats=args.repeats
        )
        if args.train_batch:
            yield time_training(config, args.train_batch, args.train_canvas, repeats=args.repeats)

    for line in table(timings()):
        print(line, flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of the process {peak:.2f} GiB")
    return 0
