"""Notices that a machine will be taken away, which arrive as SIGTERM.

Cloud TPUs that are preempted or maintained, Slurm, Kubernetes and `kill` all send SIGTERM and some
time later SIGKILL. A run of several processes must stop at one step: JAX's coordination service
agrees on it. Where every process gets the signal, or one alone, makes no difference.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

EXIT_CODE = 128 + signal.SIGTERM


class Preempted(Exception):
    """The run was asked to end, and has saved what it had learned; a line for a person."""


@contextlib.contextmanager
def preemption_notices() -> Iterator[Callable[[int], bool]]:
    """Yields `is_due(step)`: whether to save and stop after this step. A second signal kills.

    `is_due` is called by every process after every step. With several processes JAX has listened
    since `distributed.start`; a single one listens within the context.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    if threading.current_thread() is not threading.main_thread():  # Python has no handlers there
        yield lambda step: False
        return
    with _sigterm() as received:
        yield lambda step: received.is_set()


@contextlib.contextmanager
def _sigterm() -> Iterator[threading.Event]:
    """An event that the first SIGTERM sets; the second ends the process at once.

    A handler of Python's runs when the main thread comes back from compiled code, which may take
    minutes. What is written to the wake-up descriptor arrives at once in a thread of our own.
    """
    received = threading.Event()
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def listen() -> None:
        while signals := reader.recv(64):
            for number in signals:
                if number == signal.SIGTERM:
                    if received.is_set():
                        os._exit(EXIT_CODE)
                    received.set()

    thread = threading.Thread(target=listen, name="SIGTERM", daemon=True)
    thread.start()
    handler = signal.signal(signal.SIGTERM, lambda *_: None)
    descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield received
    finally:
        signal.set_wakeup_fd(descriptor)
        signal.signal(signal.SIGTERM, handler)
        writer.close()
        thread.join()
        reader.close()
