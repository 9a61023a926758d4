"""Wall-clock times of host work and of compiled programs, and a table of them."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator

import jax


@dataclasses.dataclass(frozen=True)
class Timing:
    """One phase.

    Attributes:
      name: of the phase.
      seconds: of every repetition.
      compile_seconds: None for work of the host.
      gflop: operations that XLA counts, in 1e9; None for work of the host. The body of a loop
        counts once.
      temporary_gib: memory for intermediate values; None for work of the host.
    """

    name: str
    seconds: tuple[float, ...]
    compile_seconds: float | None = None
    gflop: float | None = None
    temporary_gib: float | None = None


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled function with its arguments.

    Attributes:
      name: of the phase.
      run: computes and waits for the result, which it returns.
      compile_seconds: as in `Timing`.
      gflop: likewise.
      temporary_gib: likewise.
    """

    name: str
    run: Callable
    compile_seconds: float
    gflop: float | None
    temporary_gib: float | None

    def timing(self, seconds: tuple[float, ...]) -> Timing:
        """Its measured times."""
        return Timing(self.name, seconds, self.compile_seconds, self.gflop, self.temporary_gib)


def compile_program(name: str, function: Callable, *args) -> Program:
    """Compiles a function for arguments, which the program keeps."""
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*args).compile()
    compile_seconds = time.perf_counter() - start
    flops = (compiled.cost_analysis() or {}).get("flops")
    memory = compiled.memory_analysis()
    return Program(
        name,
        lambda: jax.block_until_ready(compiled(*args)),
        compile_seconds,
        None if flops is None else flops / 1e9,
        None if memory is None else memory.temp_size_in_bytes / 2**30,
    )


def time_compiled(name: str, function: Callable, repeats: int, *args) -> tuple[Timing, Callable]:
    """Compiles and times a function; returns what computes it again, too."""
    program = compile_program(name, function, *args)
    return program.timing(repeat(program.run, repeats)), program.run


def repeat(work: Callable, repeats: int) -> tuple[float, ...]:
    """Seconds of every repetition, after one that does not count."""
    (seconds,) = repeat_in_turns((work,), repeats)
    return seconds


def repeat_in_turns(works: tuple[Callable, ...], repeats: int) -> tuple[tuple[float, ...], ...]:
    """The same of several works, which take turns: what slows the machine slows all of them."""
    for work in works:
        work()
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(repeats):
        for work, times in zip(works, seconds, strict=True):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
    return tuple(map(tuple, seconds))


def table(timings: Iterator[Timing]) -> Iterator[str]:
    """Lines for a person, each as soon as it is known."""
    heads = ("median s", "min", "max", "GFLOP", "temp GiB", "compile s")
    columns = zip(heads, (10, 9, 9, 9, 10, 11), strict=True)
    yield f"{'phase':34}" + "".join(f"{head:>{width}}" for head, width in columns)
    for timing in timings:
        numbers = (timing.gflop, timing.temporary_gib, timing.compile_seconds)
        widths = ((9, 1), (10, 2), (11, 1))
        yield (
            f"{timing.name:34}{statistics.median(timing.seconds):10.4f}"
            f"{min(timing.seconds):9.4f}{max(timing.seconds):9.4f}"
            + "".join(
                f"{'-':>{width}}" if number is None else f"{number:{width}.{digits}f}"
                for number, (width, digits) in zip(numbers, widths, strict=True)
            )
        )
