"""`solojax train`."""

from __future__ import annotations

import argparse
import sys

from solojax.cli import flags

HELP = """Trains a model, or goes on with a run that was stopped: the same command again is enough.

  solojax train --config configs/solov2.py:r50,1x --workdir runs/r50 --config.data.root=data/coco
  solojax train --config configs/solov2.py:mushrooms --workdir runs/m --config.seed=1

Written to the work directory: config.json, metrics.jsonl (a json object a line), TensorBoard
events, checkpoints/ (the newest ones and the best). SIGTERM, which a machine that is about to be
taken away gets, lets the step finish, saves a checkpoint and ends with code 143; a second one ends
at once. Afterwards:

  solojax evaluate --checkpoint runs/r50
  solojax predict --checkpoint runs/r50 --images photo.jpg --output out"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's flags."""
    flags.add_config_flag(parser)
    flags.add_workdir_flag(parser)
    flags.add_distributed_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Trains."""
    # First of all, so that the other processes hear of whatever is wrong here.
    flags.start_distributed(args, preemption=True)
    config = flags.read_config(args)
    workdir = flags.make_workdir(args.workdir)
    from solojax.config.schema import flatten
    from solojax.runs.training import run_training
    from solojax.train import distributed
    from solojax.train.preemption import EXIT_CODE, Preempted
    from solojax.train.start_checks import check_start, check_workdir

    check_start(flatten(config))
    check_workdir(workdir)
    code = 0
    try:
        run_training(config, workdir)
    except Preempted as notice:
        print(f"solojax train{distributed.name_suffix()}: {notice}", file=sys.stderr)
        code = EXIT_CODE
    distributed.finish()
    return code
