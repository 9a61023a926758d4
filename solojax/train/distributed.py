"""Several processes, one run: joining, checking that all are alike, and ending together.

    start(cluster, ...)       before anything else of JAX
    require_same(facts, ...)  as often as there is something to compare
    exchange(text)            what all of them say, for other comparisons
    finish()                  when the work is done
    stop(line, code)          when it cannot be

In a run of one process, which `start` was not called for, the others do nothing (`exchange` gives
back what that one says).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import sys
import threading
import traceback
from collections.abc import Mapping
from typing import Any

from solojax.errors import InputError
from solojax.train.cluster import Cluster, local_device_ids
from solojax.train.process_watch import ProcessWatch

_logger = logging.getLogger(__name__)

HEARTBEAT_TIMEOUT = 100
INITIALIZATION_TIMEOUT = 300
_BAD_INPUT = 2
_NEVER = 7 * 24 * 3600 * 1000  # milliseconds; the watch ends what waits for a process that is gone
_CONNECTION = re.compile(
    r"gloo|nccl|coordination service|connection (reset|closed|refused)|socket closed|barrier",
    re.IGNORECASE,
)
_watch: ProcessWatch | None = None
_cluster: Cluster | None = None
_exchanges = 0


class Disagreement(InputError):
    """Processes that differ in something; every one of them raises the same line."""


def start(
    cluster: Cluster,
    *,
    heartbeat_timeout: int = HEARTBEAT_TIMEOUT,
    initialization_timeout: int = INITIALIZATION_TIMEOUT,
    preemption: bool = False,
) -> None:
    """Joins the other processes; returns when all are there.

    From then on an error, or the loss, of any process ends every process, see `ProcessWatch`.

    Args:
      cluster: this process and the others.
      heartbeat_timeout: seconds of silence after which a process is lost.
      initialization_timeout: seconds to wait for the others. Where that is not enough this process
        ends with code 2 and a line, for JAX's attempt cannot be broken off.
      preemption: SIGTERM to any process is a notice, for `preemption.preemption_notices`, and not
        the end.

    Raises:
      InputError: this is process 0 and its port is taken.
    """
    global _watch, _cluster
    import jax
    from jax._src import distributed  # its client's key-value store has no public name

    if cluster.process_id == 0:
        _check_port(cluster.coordinator)
    jax.config.update("jax_enable_preemption_service", preemption)
    given_up = threading.Timer(initialization_timeout, _give_up, (cluster, initialization_timeout))
    given_up.daemon = True
    given_up.start()
    jax.distributed.initialize(
        cluster.coordinator,
        cluster.num_processes,
        cluster.process_id,
        local_device_ids=local_device_ids(),
        cluster_detection_method="deactivate",
        # JAX aborts the process where it gives up: it must not come first.
        initialization_timeout=initialization_timeout + 60,
        heartbeat_timeout_seconds=2 * heartbeat_timeout + 10,
    )
    given_up.cancel()
    _watch = ProcessWatch(
        distributed.global_state.client,
        process_id=cluster.process_id,
        num_processes=cluster.num_processes,
        coordinator=cluster.coordinator,
        timeout=heartbeat_timeout,
    )
    _watch.start()
    _cluster = cluster


def process_id() -> int | None:
    """The number of this process among several; None for a single one."""
    return None if _cluster is None else _cluster.process_id


def name_suffix() -> str:
    """What sets apart the lines of this process: " (process 1)", or nothing for a single one."""
    return "" if _cluster is None else f" (process {_cluster.process_id})"


def require_same(facts: Mapping[str, Any], remedy: str) -> None:
    """Compares what each process knows, by the coordination service alone: no device is touched.

    All processes call it in the same order.

    Args:
      facts: {what: value}; values become text.
      remedy: what to do where one differs.

    Raises:
      Disagreement: on every process, about the first fact in which one differs from process 0.
    """
    told = exchange(json.dumps({name: str(value) for name, value in facts.items()}))
    problem = first_difference([json.loads(each) for each in told])
    if problem is not None:
        raise Disagreement(f"{problem}: {remedy}")


def exchange(text: str) -> list[str]:
    """What every process says, by its number, through the coordination service alone.

    All processes call it in the same order. Process 0 keeps all of it in memory to the end.
    """
    global _exchanges
    if _watch is None:
        return [text]
    from jax._src import distributed

    client, _exchanges = distributed.global_state.client, _exchanges + 1
    folder = f"solojax/facts/{_exchanges}"
    client.key_value_set(f"{folder}/{process_id()}", text)
    client.wait_at_barrier(folder, _NEVER)
    found = {int(key.rpartition("/")[2]): v for key, v in client.key_value_dir_get(folder)}
    return [found[process] for process in sorted(found)]


def first_difference(told: list[dict[str, str]]) -> str | None:
    """The first fact in which a process differs from process 0, in words; None if all agree.

    Args:
      told: the facts of every process, by its number.
    """
    names = list(dict.fromkeys(name for facts in told for name in facts))
    for name in names:
        expected = told[0].get(name, "nothing")
        for process, facts in enumerate(told):
            found = facts.get(name, "nothing")
            if found != expected:
                return f"process {process} has {name} {found}, process 0 has {expected}"
    return None


def finish() -> None:
    """Waits until all processes are done, and parts from them."""
    global _watch, _cluster
    if _watch is None:
        return
    import jax
    from jax._src import distributed

    distributed.global_state.client.wait_at_barrier("solojax/finished", _NEVER)
    _watch.close()
    _watch = _cluster = None
    jax.distributed.shutdown()


def stop(line: str, code: int) -> None:
    """Ends every process: this one with `code`, the others with `code` too and the line."""
    if _watch is not None:
        _watch.stop_all(line, code)


def stop_alike(code: int) -> None:
    """Ends this process, which the others need not hear of: they end for the same reason."""
    if _watch is not None:
        _watch.leave(code)


def stop_because(error: Exception) -> None:
    """Ends every process after an error that no one foresaw, with code 1 and a traceback."""
    if _watch is None:
        return
    traceback.print_exception(error)
    stop(" ".join(f"{type(error).__name__}: {error}".split())[:1000], 1)


def wait_for_cause(error: BaseException) -> None:
    """Where an error is most likely the consequence of a lost process: lets the watch say so.

    What a collective, or a save that all processes take part in, says when one of them is gone
    helps nobody. The watch ends this process if it finds one gone; otherwise this returns. Want of
    memory is no such consequence.
    """
    while _watch is not None and error is not None:
        if _is_of_connection(error):
            _watch.wait_for_cause()
            return
        error = error.__cause__ or error.__context__


def _is_of_connection(error: BaseException) -> bool:
    """By its words too: Orbax passes on errors of its threads as those of other types."""
    from jax.errors import JaxRuntimeError

    text = str(error)
    if isinstance(error, JaxRuntimeError):
        return not text.startswith("RESOURCE_EXHAUSTED")
    return _CONNECTION.search(text) is not None


def _check_port(address: str) -> None:
    """JAX crashes where the port is taken."""
    port = int(address.rpartition(":")[2])
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
    except OSError as error:
        raise InputError(
            f"process 0 cannot listen at port {port} ({error.strerror}): give another free port in "
            "--coordinator, the same to every process"
        ) from error


def _give_up(cluster: Cluster, seconds: int) -> None:
    """Ends this process, whose main thread waits inside JAX."""
    host, _, port = cluster.coordinator.rpartition(":")
    reached = cluster.process_id == 0
    if not reached:
        with contextlib.suppress(OSError):
            socket.create_connection((host.strip("[]"), int(port)), timeout=2.0).close()
            reached = True
    problem = (
        f"not all of the {cluster.num_processes} processes have come to {cluster.coordinator}: see "
        "which has not started, and that each has a --process_id of its own"
        if reached
        else f"the coordinator {cluster.coordinator} does not answer: see that process 0 is "
        "started and that its host and port can be reached from here"
    )
    print(
        f"solojax (process {cluster.process_id}): after {seconds} s, {problem}",
        file=sys.stderr,
        flush=True,
    )
    os._exit(_BAD_INPUT)
