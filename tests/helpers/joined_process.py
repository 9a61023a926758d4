"""One of several processes that join and do something small: python joined_process.py WHAT flags.

No device is touched unless it says so, and nothing is compiled: it takes seconds.
"""

from __future__ import annotations

import argparse
import sys
import time

from helpers.processes import HEARTBEAT

from solojax.cli import main as main_module
from solojax.errors import InputError
from solojax.train import distributed
from solojax.train.cluster import Cluster


def sleep(args) -> None:
    """Works for ever."""
    print("joined", flush=True)
    time.sleep(600)


def native_wait(args) -> None:
    """Waits outside Python, as in a collective that another process will never join."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    multihost_utils.process_allgather(np.ones(3))  # compiled once
    print("joined", flush=True)
    if jax.process_index() == 0:  # which the others wait for
        time.sleep(600)
    multihost_utils.process_allgather(np.ones(3))


def compare(args) -> None:
    """Compares a fact."""
    distributed.require_same({"colour": "red", "jax": args.value}, "install the same everywhere")


def fail(args) -> None:
    """One process cannot go on."""
    print("joined", flush=True)
    if args.value == "input":
        raise InputError("photo.jpg is broken; mend it")
    if args.value == "consequence":
        lose_connection()
    if args.value == "bug":
        raise KeyError("a mistake")
    time.sleep(600)


def lose_connection() -> None:
    """What a save says when the process that it waits for is killed: bad input, caused by JAX."""
    from jax.errors import JaxRuntimeError

    try:
        raise JaxRuntimeError("UNKNOWN: Gloo all-reduce failed: Connection reset by peer")
    except JaxRuntimeError as error:
        raise InputError("checkpoint 25 could not be saved; free space") from error


def steps(args) -> None:
    """Counts steps until it is asked to end."""
    from solojax.train.preemption import preemption_notices

    with preemption_notices() as is_due:
        for step in range(1, 10_000):
            if step == 3:
                print("joined", flush=True)
            time.sleep(0.02)
            if is_due(step):
                print(f"stops after {step}", flush=True)
                break
    distributed.finish()


def finish(args) -> None:
    """All is well; one is slow."""
    time.sleep(2.0 if args.value == "slow" else 0.0)
    distributed.finish()


def run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("what")
    parser.add_argument("--value", default="")
    parser.add_argument("--coordinator")
    parser.add_argument("--process_id", type=int)
    parser.add_argument("--num_processes", type=int)
    parser.add_argument("--initialization_timeout", type=int, default=200)
    args = parser.parse_args(argv)
    distributed.start(
        Cluster(args.coordinator, args.process_id, args.num_processes),
        heartbeat_timeout=HEARTBEAT,
        initialization_timeout=args.initialization_timeout,
        preemption=args.what == "steps",
    )
    globals()[args.what](args)
    print("done", flush=True)
    return 0


if __name__ == "__main__":
    # What the command line does with errors is part of what is tested.
    main_module._run = run
    sys.exit(main_module.main(sys.argv[1:]))
