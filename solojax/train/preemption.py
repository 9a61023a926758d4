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
import sys
import threading
import time
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

EXIT_CODE = 128 + signal.SIGTERM
_UNSAVED_EXIT_CODE = 1
# One notice may arrive several times: `timeout` signals its child and then their whole group, and
# Slurm the steps and the script that hands it on.
_SAME_NOTICE_SECONDS = 5.0


class Preempted(Exception):
    """The run was asked to end, and has saved what it had learned; a line for a person."""


@contextlib.contextmanager
def preemption_notices() -> Iterator[Callable[[int], bool]]:
    """Yields `is_due(step)`: whether to save and stop after this step.

    Another signal some seconds later ends the process at once, without saving, with exit code 1.

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
    """An event that SIGTERM sets; another one some seconds later ends the process at once.

    A handler of Python's runs when the main thread comes back from compiled code, which may take
    minutes. What is written to the wake-up descriptor arrives at once in a thread of our own.
    """
    received = threading.Event()
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def listen() -> None:
        first = None
        while signals := reader.recv(64):
            if signal.SIGTERM not in signals:
                continue
            now = time.monotonic()
            first = now if first is None else first
            received.set()
            if now - first > _SAME_NOTICE_SECONDS:
                print("ended by a second SIGTERM: not saved", file=sys.stderr, flush=True)
                os._exit(_UNSAVED_EXIT_CODE)

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
