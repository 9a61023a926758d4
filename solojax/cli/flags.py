"""Flags that several verbs share, and what they say."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from solojax.errors import InputError

if TYPE_CHECKING:
    from ml_collections import ConfigDict


# Of each process by itself: those of `add_distributed_flags`, and what changes no result.
_OWN_FLAGS = (
    "coordinator",
    "process_id",
    "num_processes",
    "heartbeat_timeout",
    "initialization_timeout",
    "debug",
)


def add_config_flag(
    parser: argparse.ArgumentParser, default: str | None = None, optional: str | None = None
) -> None:
    """Adds `--config`; `--config.key=value` comes with it.

    Args:
      parser: takes the flag.
      default: the config where none is given; without it the flag is required.
      optional: what stands in where none is given, in words; the flag is not required then.
    """
    instead = default or optional
    parser.add_argument(
        "--config",
        metavar="FILE.py[:VARIANT,...]",
        default=default,
        required=instead is None,
        help="the config and its variants, such as configs/solov2.py:r101,1x; single values are "
        "changed by --config.KEY=VALUE, such as --config.optimizer.learning_rate=0.02"
        + (f" (default {instead})" if instead else ""),
    )


def read_config(args: argparse.Namespace) -> ConfigDict:
    """Returns the config that `--config` and the overrides describe.

    Raises:
      InputError: as `solojax.config.load_config`.
    """
    from solojax.config import load_config

    return load_config(args.config, args.overrides)


def read_segmentation_config(args: argparse.Namespace) -> ConfigDict:
    """The same, for verbs that segment.

    Raises:
      InputError: also where the config is of another task.
    """
    from solojax.config.schema import SEGMENTATION_TASKS

    config = read_config(args)
    if config.task not in SEGMENTATION_TASKS:
        raise InputError(
            f"--config {args.config} is for {config.task}, and this verb for instance "
            "segmentation: give another config"
        )
    return config


def config_over(args: argparse.Namespace) -> Callable[[ConfigDict], ConfigDict]:
    """What `--config` and the overrides make of the config that a checkpoint carries."""
    from solojax.config import apply_overrides

    def change(config: ConfigDict) -> ConfigDict:
        if args.config is not None:
            return read_segmentation_config(args)
        apply_overrides(config, args.overrides)
        return config

    return change


def add_workdir_flag(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Adds `--workdir`."""
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        type=local_path,
        required=required,
        help="folder for all that is written; a run that finds its own checkpoints there goes on",
    )


def make_workdir(path: Path, flag: str = "--workdir") -> Path:
    """Creates the folder, unless it is there, and returns it.

    Raises:
      InputError: a file is in its way, or it cannot be made for another reason.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(
            f"{flag} {path}: a file is in the way: give the path of a folder"
        ) from error
    except OSError as error:
        raise InputError(
            f"{flag} {path}: the folder cannot be made ({error.strerror}): give another path"
        ) from error
    return path


def check_output_file(path: Path | None, flag: str) -> None:
    """Finds out before long work whether its result can be written.

    Raises:
      InputError: the path is a folder, or below a file.
      OSError: it cannot be written for another reason.
    """
    if path is None:
        return
    if path.is_dir():
        raise InputError(f"{flag} {path}: this is a folder: give the path of a file in it")
    make_workdir(path.parent, flag)
    existed = path.exists()
    path.open("ab").close()
    if not existed:
        path.unlink()


def local_path(text: str) -> Path:
    """The type of flags that name a file or a folder, which has to be in a file system."""
    return Path(local_name(text))


def local_name(text: str) -> str:
    """The same where other words may stand in the path's place.

    A URL is refused: a `Path` of gs://bucket/run is a folder `gs:` in the current one.
    """
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"{text} is no path: mount the bucket (such as with Cloud Storage FUSE) and give the "
            "mounted path, or use other storage that all hosts share"
        )
    return text


def probability(text: str) -> float:
    """The type of flags that take a number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to 1")
    return value


def canvas(text: str) -> tuple[int, int]:
    """The canvas of a flag: 800x1216 to (800, 1216), both positive multiples of 32."""
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: give HEIGHTxWIDTH, as 800x1216")
    size = int(height), int(width)
    if min(size) == 0 or any(side % 32 for side in size):
        raise argparse.ArgumentTypeError(f"{text}: both sides must be multiples of 32")
    return size


def add_checkpoint_flag(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """Adds `--checkpoint`."""
    parser.add_argument(
        "--checkpoint",
        metavar="PATH",
        type=local_path,
        required=required,
        help="the weights: a checkpoint, the workdir of a run for its newest one, or a PyTorch "
        "file of a published system (.pth, .pt, .pkl, .safetensors)",
    )


def add_step_flag(parser: argparse.ArgumentParser) -> None:
    """Adds `--step`."""
    parser.add_argument(
        "--step",
        metavar="N|best",
        type=lambda text: int(text) if text.isdigit() else text,
        help="which checkpoint of a run: a step, or 'best' (default: the newest)",
    )


def start_distributed(args: argparse.Namespace, *, preemption: bool = False) -> None:
    """Joins the other processes, if there are any; process 0 alone goes on with its log.

    Args:
      args: with the flags of `add_distributed_flags`.
      preemption: see `solojax.train.distributed.start`.

    Raises:
      InputError: flags or environment do not make sense, or process 0 cannot listen.
    """
    arguments = read_distributed(args)
    from solojax.train import distributed
    from solojax.train.cluster import Cluster, detect_cluster

    if arguments is None:
        cluster = detect_cluster(args.initialization_timeout)
    else:
        cluster = Cluster(**arguments)
    if cluster is None or cluster.num_processes == 1:
        return
    distributed.start(
        cluster,
        heartbeat_timeout=args.heartbeat_timeout,
        initialization_timeout=args.initialization_timeout,
        preemption=preemption,
    )
    if cluster.process_id != 0:
        logging.getLogger("solojax").setLevel(logging.WARNING)
        for handler in logging.getLogger().handlers:
            prefix = f"process {cluster.process_id}: "
            handler.setFormatter(logging.Formatter(f"{prefix}%(message)s"))


def check_start(args: argparse.Namespace) -> None:
    """Compares programs, flags and devices of the processes, before anything is read.

    Raises:
      Disagreement: on every process, if one differs from process 0.
    """
    from solojax.train import start_checks

    shared = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(args).items()
        if name not in _OWN_FLAGS
    }
    start_checks.check_start(shared, "flag")


def check_checkpoint(title: str, variables: Mapping) -> None:
    """Compares what the processes have loaded, since each finds the newest checkpoint by itself.

    Args:
      title: path and step.
      variables: nested mappings of arrays.

    Raises:
      Disagreement: on every process, if one differs from process 0.
    """
    from solojax.data.label_file import fingerprint
    from solojax.train import distributed

    if distributed.process_id() is None:
        return
    facts = {"checkpoint": title, "weights": fingerprint(variables, {})}
    distributed.require_same(
        facts, "give every host the same checkpoint, by --step while its run still saves others"
    )


def add_distributed_flags(parser: argparse.ArgumentParser) -> None:
    """Adds `--coordinator`, `--process_id`, `--num_processes` and the two time-outs."""
    group = parser.add_argument_group(
        "several processes",
        "Run the same command in every process, with --workdir on storage that they share. Under\n"
        "Slurm (srun), Open MPI and on TPU pods nothing else is needed; elsewhere give the first\n"
        "three flags, or the environment variables JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID and\n"
        "JAX_NUM_PROCESSES. An error of one process ends all of them, with its exit code and its\n"
        "line; where one falls silent the others end with code 3 and name it.",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="an address of process 0")
    group.add_argument("--process_id", metavar="N", type=int, help="this process, from 0")
    group.add_argument("--num_processes", metavar="N", type=int, help="how many there are")
    group.add_argument(
        "--heartbeat_timeout",
        metavar="SECONDS",
        type=_seconds,
        default=100,
        help="silence after which a process is given up and the others end (default 100; reading "
        "a large annotation file may hold a process up for tens of seconds)",
    )
    group.add_argument(
        "--initialization_timeout",
        metavar="SECONDS",
        type=_seconds,
        default=300,
        help="how long the processes wait for each other at the start (default 300)",
    )


def _seconds(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 86400:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of seconds from 1 to 86400")
    return int(text)


def read_distributed(
    args: argparse.Namespace, environment: Mapping[str, str] = os.environ
) -> dict[str, str | int] | None:
    """Returns the fields of `train.cluster.Cluster`, or None where neither flags nor JAX's
    environment variables say anything.

    Raises:
      InputError: some of the three are given and others are not, or they make no sense.
    """
    values = {
        "coordinator": args.coordinator or environment.get("JAX_COORDINATOR_ADDRESS"),
        "process_id": _number(args.process_id, "JAX_PROCESS_ID", environment),
        "num_processes": _number(args.num_processes, "JAX_NUM_PROCESSES", environment),
    }
    flag_of = dict(zip(values, ("--coordinator", "--process_id", "--num_processes"), strict=True))
    absent = [flag_of[name] for name, value in values.items() if value is None]
    if len(absent) == len(values):
        return None
    if absent:
        raise InputError(f"several processes need {' and '.join(absent)} too: give it")
    host, _, port = values["coordinator"].rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"--coordinator is '{values['coordinator']}': give HOST:PORT of process 0")
    if not 0 <= values["process_id"] < values["num_processes"]:
        raise InputError(
            f"--process_id is {values['process_id']} of {values['num_processes']} processes: "
            "count from 0 to one below --num_processes"
        )
    return values


def _number(flag: int | None, variable: str, environment: Mapping[str, str]) -> int | None:
    text = environment.get(variable)
    if flag is not None or not text:
        return flag
    if not text.isdigit():
        raise InputError(f"environment variable {variable} is '{text}': give a whole number")
    return int(text)
