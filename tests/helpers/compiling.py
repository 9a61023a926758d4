"""Ways to compile: quickly, for what runs once or twice, and in double precision."""

from __future__ import annotations

import contextlib

import jax


@contextlib.contextmanager
def quick_compile():
    """Halves the compilation of what runs a few times; figures may differ in the last digits."""
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


@contextlib.contextmanager
def precision_of(name: str):
    """`float32` as users run it; `float64` where rounding cannot hide a mistake in a formula."""
    if name == "float32":
        yield
    else:
        with jax.enable_x64(True), quick_compile():
            yield
