"""Several processes that are to join each other, and what became of them."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from helpers.scripts import load_script

process_group = load_script("process_group")

_FOLDER = Path(__file__).resolve().parent
_LONGEST = 240.0  # seconds; what takes longer hangs
HEARTBEAT = 10  # seconds; what the processes are started with


@dataclasses.dataclass
class Process:
    """One of them, running or ended."""

    popen: subprocess.Popen
    log: Path

    @property
    def text(self) -> str:
        """What it has said so far."""
        return self.log.read_text(errors="replace")

    @property
    def last_line(self) -> str:
        return (self.text.splitlines() or [""])[-1]

    @property
    def code(self) -> int | None:
        """The exit code; negative is a signal, None still runs."""
        return self.popen.poll()


class Processes:
    """Starts `tests/helpers/SCRIPT.py` several times; a context manager that leaves none behind.

    Args:
      script: the name of the helper.
      words: its arguments; those that say which process it is come after them.
      count: how many.
      folder: takes what they say.
      own: for process i, further words in own[i], which win.
      environment: for process i, further variables in environment[i].
    """

    def __init__(
        self,
        script: str,
        words: Sequence[object],
        *,
        count: int,
        folder: Path,
        own: dict[int, Sequence[object]] | None = None,
        environment: dict[int, dict[str, str]] | None = None,
    ):
        self.address = f"127.0.0.1:{process_group.free_port()}"
        shared = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        shared["JAX_NUM_CPU_DEVICES"] = "1"
        folder.mkdir(parents=True, exist_ok=True)
        self._all = []
        for index in range(count):
            command = [
                sys.executable,
                _FOLDER / f"{script}.py",
                *words,
                f"--coordinator={self.address}",
                f"--process_id={index}",
                f"--num_processes={count}",
                *(own or {}).get(index, ()),
            ]
            log = folder / f"process_{index}.log"
            with log.open("wb") as file:
                popen = subprocess.Popen(
                    [str(word) for word in command],
                    env={**shared, **(environment or {}).get(index, {})},
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            self._all.append(Process(popen, log))

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_) -> None:
        for process in self._all:
            process.popen.kill()
            process.popen.wait()

    def __getitem__(self, index: int) -> Process:
        return self._all[index]

    def wait_for(self, text: str, *which: int) -> None:
        """Returns when each of these (or of all) has said it."""
        waiting = [self._all[index] for index in which or range(len(self._all))]

        def is_said() -> bool:
            if all(process.code is not None for process in self._all):
                raise AssertionError(f"they ended without {text!r}\n{self._report()}")
            return all(text in process.text for process in waiting)

        self._wait(is_said)

    def send(self, number: signal.Signals, index: int) -> None:
        self._all[index].popen.send_signal(number)

    def wait(self, *which: int) -> float:
        """Waits until these (or all) have ended; how many seconds that took."""
        waiting = [self._all[index] for index in which or range(len(self._all))]
        return self._wait(lambda: all(process.code is not None for process in waiting))

    def _wait(self, condition) -> float:
        start = time.monotonic()
        while not condition():
            if time.monotonic() - start > _LONGEST:
                raise AssertionError(f"it hangs\n{self._report()}")
            time.sleep(0.05)
        return time.monotonic() - start

    def _report(self) -> str:
        return "\n".join(f"--- {i}: {p.code}\n{p.text}" for i, p in enumerate(self._all))
