"""Sees to it that the processes of a run end together, and that each says why.

Every process has a thread that writes a count to the key-value store of JAX's coordination service
(which lives in process 0) again and again, and reads those of the others. So it learns

* that another process stopped, which left a line and an exit code in the store: it prints that
  line and ends with that code;
* that another process fell silent: it says which and ends with code `LOST`.

It ends the process from within the thread, for the main thread may wait for ever in a collective
that the other will never join. JAX's own heartbeat stays as a second net, with a longer time-out;
where process 0 is gone and its connection with it, JAX aborts the process at once, which says why
all the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

LOST = 3
_STORE = "solojax/watch"
_SILENT_PART = 0.8  # of the time-out; what is left of it is for noticing and saying so
_GOODBYE_SECONDS = 5.0
_libc = ctypes.CDLL(None)
_libc.signal.argtypes, _libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)


class ProcessWatch:
    """The watch of one process over the others; `start` begins it.

    Args:
      client: of the coordination service.
      process_id: of this process.
      num_processes: how many there are.
      coordinator: HOST:PORT of process 0.
      timeout: seconds of silence after which a process is lost and all others have ended.
    """

    def __init__(
        self, client: Any, *, process_id: int, num_processes: int, coordinator: str, timeout: float
    ):
        self._client, self._id, self._coordinator = client, process_id, coordinator
        self._others = [p for p in range(num_processes) if p != process_id]
        self._timeout, self._limit = timeout, _SILENT_PART * timeout
        self._period = min(1.0, timeout / 20)
        self._closing = threading.Event()
        # Whoever comes first ends the process; the others wait for that.
        self._ending = threading.Lock()
        self._looks = 0
        self._threads = [
            threading.Thread(target=target, name="process watch", daemon=True)
            for target in (self._watch_others, self._watch_coordinator)
        ]
        self._on_abort = _HANDLER(self._aborted)  # C calls it: it must not be collected

    def start(self) -> None:
        """Begins to watch."""
        # Python's own handlers run later, in the main thread: an abort does not wait for them.
        _libc.signal(signal.SIGABRT, ctypes.cast(self._on_abort, ctypes.c_void_p))
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Ends the watch: what the others do from now on is no longer this process's concern."""
        self._closing.set()
        for thread in self._threads:
            thread.join()
        _libc.signal(signal.SIGABRT, None)

    def stop_all(self, line: str, code: int) -> None:
        """Tells the others that this process ends, why and how, and ends it. Does not return."""
        self._ending.acquire()
        self._with_patience(lambda: self._put(f"stopped/{self._id}", json.dumps([code, line])))
        self._end(code)

    def leave(self, code: int) -> None:
        """Ends this process where the others end of their own accord. Does not return."""
        self._ending.acquire()
        self._with_patience(lambda: self._put(f"left/{self._id}", ""))
        self._end(code)

    def wait_for_cause(self) -> None:
        """Waits as long as it may take to learn that another process is gone, which ends this one.

        For errors that are most likely the consequence of that.
        """
        time.sleep(self._timeout + 2 * self._period)

    def _watch_others(self) -> None:
        from jax.errors import JaxRuntimeError

        silences = {process: _Silence(self._period) for process in self._others}
        beat = 0
        while not self._closing.wait(self._period):
            beat += 1
            try:
                self._put(f"beat/{self._id}", str(beat))
                found = self._read()
            except JaxRuntimeError:
                continue
            self._looks += 1
            for process in self._others:
                if f"stopped/{process}" in found:
                    self._follow(process, *json.loads(found[f"stopped/{process}"]))
            lost = [
                process
                for process, silence in silences.items()
                if silence.after(found.get(f"beat/{process}")) > self._limit
            ]
            if lost:
                self._lose(*lost)

    def _watch_coordinator(self) -> None:
        """In a thread of its own, for a host that is gone lets the other one wait for minutes."""
        silence = _Silence(self._period)
        while not self._closing.wait(self._period):
            if silence.after(self._looks) > self._limit:
                self._lose(0)

    def _follow(self, process: int, code: int, line: str) -> None:
        self._ending.acquire()
        self._say(f"process {process} stopped: {line}")
        self._with_patience(lambda: self._put(f"left/{self._id}", ""))
        self._end(code)

    def _lose(self, *processes: int) -> None:
        self._ending.acquire()
        for process in processes:
            self._say(self._loss(process))
        if 0 not in processes:
            self._with_patience(lambda: self._put(f"left/{self._id}", ""))
        self._end(LOST, lost=processes)

    def _loss(self, process: int) -> str:
        where = f" (at {self._coordinator})" if process == 0 else ""
        return (
            f"process {process}{where} is lost: it ended without a word or cannot be reached; look "
            "for the reason in its log, then start all processes again with the same command"
        )

    def _aborted(self, _: int) -> None:
        """Called in place of an abort: says what is known of it and ends the process."""
        self._ending.acquire()
        if self._id != 0 and not _answers(self._coordinator):
            self._say(self._loss(0))
            self._end(LOST)
        self._say("aborted, for the reason above")
        self._end(128 + signal.SIGABRT)

    def _end(self, code: int, lost: Sequence[int] = ()) -> None:
        """Ends this process at once; process 0 after the others, for the store ends with it."""
        if self._id == 0:
            # Those that lost the same process know it by now.
            seconds = self._timeout - self._limit if lost else self._timeout
            self._with_patience(lambda: self._wait_until_left(lost), seconds)
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        _end_children()
        os._exit(code)

    def _wait_until_left(self, lost: Sequence[int]) -> None:
        waiting = set(self._others) - set(lost)
        while waiting:
            gone = {key.partition("/")[2] for key in self._read() if not key.startswith("beat/")}
            waiting = {process for process in waiting if str(process) not in gone}
            time.sleep(0.05)

    def _say(self, line: str) -> None:
        """Writes to stderr past Python's own buffers, whose lock another thread may hold."""
        start = "\n" if os.isatty(2) else ""  # a progress bar may stand there
        with contextlib.suppress(OSError):
            os.write(2, f"{start}solojax (process {self._id}): {line}\n".encode())

    def _with_patience(self, action, seconds: float = _GOODBYE_SECONDS) -> None:
        """Calls the coordination service, which may not answer any more."""
        from jax.errors import JaxRuntimeError

        def call() -> None:
            with contextlib.suppress(JaxRuntimeError):
                action()

        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        thread.join(seconds)

    def _put(self, name: str, value: str) -> None:
        self._client.key_value_set(f"{_STORE}/{name}", value, allow_overwrite=True)

    def _read(self) -> dict[str, str]:
        found = self._client.key_value_dir_get(_STORE)
        return {key.removeprefix(f"{_STORE}/"): value for key, value in found}


class _Silence:
    """How long a count has stood still, in the time of a thread that looks once a period.

    A period in which that thread was itself held up (by the interpreter's lock, or because the
    whole process was stopped) says nothing of the other side: it counts as two at most.
    """

    def __init__(self, period: float):
        self._longest = 2 * period
        self._count: Any = None
        self._seconds, self._last = 0.0, time.monotonic()

    def after(self, count: Any) -> float:
        """Seconds of silence, now that the count is found to be this."""
        now = time.monotonic()
        passed, self._last = min(now - self._last, self._longest), now
        self._seconds = self._seconds + passed if count == self._count else 0.0
        self._count = count
        return self._seconds


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=1.0).close()
    except OSError:
        return False
    return True


def _end_children() -> None:
    """Worker processes of the data pipeline, which nobody else ends when this one is cut short."""
    multiprocessing = sys.modules.get("multiprocessing")
    if multiprocessing is not None:
        for child in multiprocessing.active_children():
            with contextlib.suppress(OSError):
                child.kill()
