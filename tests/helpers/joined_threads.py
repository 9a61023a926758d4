"""What stands for the processes of one run, as far as comparing goes: threads, or nobody at all."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from solojax.train import distributed


def disagreements(patch: pytest.MonkeyPatch, *calls: Callable[[], object]) -> list[str | None]:
    """Makes each call as a process of its own; the line of each, None where it agrees."""
    own = threading.local()
    told = [""] * len(calls)
    barrier = threading.Barrier(len(calls), timeout=60)

    def exchange(text: str) -> list[str]:
        told[own.process] = text
        barrier.wait()
        found = list(told)
        barrier.wait()  # nobody says the next thing before all have heard this one
        return found

    patch.setattr(distributed, "process_id", lambda: own.process)
    patch.setattr(distributed, "exchange", exchange)

    def run(process: int) -> str | None:
        own.process = process
        try:
            calls[process]()
        except distributed.Disagreement as error:
            return str(error)
        except BaseException:
            barrier.abort()
            raise
        return None

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, range(len(calls))))


def pretend_two(patch: pytest.MonkeyPatch, own: str = "", others: str = "") -> None:
    """Makes this process 0 of two; the other says the same, but `others` where this says `own`."""

    def exchange(text: str) -> list[str]:
        return [text, text.replace(own, others) if own else text]

    patch.setattr(distributed, "process_id", lambda: 0)
    patch.setattr(distributed, "exchange", exchange)
