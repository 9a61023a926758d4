"""`solojax train`."""

from __future__ import annotations

import argparse

from solojax.cli import flags

HELP = """Trains a model, or goes on with a run that was stopped: the same command again is enough.

  solojax train --config configs/solov2.py:r50,1x --workdir runs/r50 --config.data.root=data/coco
  solojax train --config configs/solov2.py:mushrooms --workdir runs/m --config.seed=1

Written to the work directory: config.json, metrics.jsonl (a json object a line), TensorBoard
events, checkpoints/ (the newest ones and the best). Afterwards:

  solojax evaluate --checkpoint runs/r50
  solojax predict --checkpoint runs/r50 --images photo.jpg --output out"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's flags."""
    flags.add_config_flag(parser)
    flags.add_workdir_flag(parser)
    flags.add_distributed_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Trains."""
    config = flags.read_config(args)
    workdir = flags.make_workdir(args.workdir)
    flags.start_distributed(args)
    from solojax.training import run_training

    run_training(config, workdir)
    return 0
