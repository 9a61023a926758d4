"""Random choices of the host from raw bits.

Philox is a counter-based generator: the bits of position p are block p of one stream. Choices are
made here and not by NumPy, because NumPy promises to keep its bit generators' streams, but not its
distributions'.
"""

from __future__ import annotations

import numpy as np


def philox(seed: int, *purpose: int, counter: int = 0) -> np.random.Philox:
    """The random bits of one purpose, from block `counter` (of four 64-bit words) on."""
    key = np.random.SeedSequence(seed, spawn_key=purpose).generate_state(2, np.uint64)
    return np.random.Philox(key=key, counter=counter)


def permutation(length: int, seed: int, *purpose: int) -> np.ndarray:
    """(length,) int64: 0 .. length - 1 in an even random order."""
    return np.argsort(philox(seed, *purpose).random_raw(length), kind="stable")


def even_draws(bits: np.ndarray) -> np.ndarray:
    """Raw words of 64 bits to even draws from [0, 1) in float64, by their upper 53 bits."""
    return (bits >> np.uint64(11)) * 2.0**-53
