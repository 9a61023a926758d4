"""Several processes of one command on this machine, as on as many hosts: for the scripts here."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

HEARTBEAT_SECONDS = 10


@dataclasses.dataclass
class ProcessGroup:
    """The processes of one run, by their number."""

    processes: list[subprocess.Popen]

    def poll(self) -> int | None:
        """None while one of them runs; then the first exit code that is not 0, or 0."""
        codes = [process.poll() for process in self.processes]
        return None if None in codes else next((code for code in codes if code), 0)

    def wait(self) -> int:
        """As `poll`, once all have ended."""
        for process in self.processes:
            process.wait()
        return self.poll()

    def kill(self) -> None:
        """SIGKILL to those that still run."""
        for process in self.processes:
            process.kill()
            process.wait()

    def send(self, number: int, which: Sequence[int]) -> None:
        """A signal to some of them."""
        for index in which:
            self.processes[index].send_signal(number)

    def seconds_to_end(self, limit: float) -> float | None:
        """Waits for all to end; how long that took, None where it takes longer than `limit`."""
        start = time.perf_counter()
        while self.poll() is None:
            if time.perf_counter() - start > limit:
                return None
            time.sleep(0.02)
        return time.perf_counter() - start

    @property
    def codes(self) -> list[int | None]:
        """The exit code of each; negative is a signal, None still runs."""
        return [process.poll() for process in self.processes]


def start_group(
    command: Sequence[str], *, count: int, devices: int | None = None, log: Path
) -> ProcessGroup:
    """Starts a `solojax` command in `count` processes.

    Args:
      command: without the flags that say which process it is.
      count: of processes; a single one gets no such flags.
      devices: simulated CPU devices of all together; None leaves it to the environment.
      log: what they say is added to this file, and to LOG.1, LOG.2, ... of processes 1, 2, ...
    """
    environment = dict(os.environ)
    if devices is not None:
        environment["JAX_NUM_CPU_DEVICES"] = str(devices // count)
    port, processes = free_port(), []
    for index in range(count):
        flags = [
            f"--coordinator=127.0.0.1:{port}",
            f"--process_id={index}",
            f"--num_processes={count}",
            f"--heartbeat_timeout={HEARTBEAT_SECONDS}",
        ]
        path = log.with_name(f"{log.name}.{index}") if index else log
        with path.open("ab") as file:
            processes.append(
                subprocess.Popen(
                    [*command, *(flags if count > 1 else ())],
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=environment,
                )
            )
    return ProcessGroup(processes)


def free_port() -> int:
    """A port that nobody listens at right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
