"""The precisions that recorded values are compared in."""

from __future__ import annotations

import contextlib

import jax


@contextlib.contextmanager
def precision_of(name: str):
    """`float32` as users run it; `float64` where rounding cannot hide a mistake in a formula."""
    if name == "float32":
        yield
    else:
        with jax.enable_x64(True):
            yield
