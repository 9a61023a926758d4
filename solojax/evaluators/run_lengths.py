"""COCO's compressed run lengths, checked in bulk.

pycocotools trusts them: two masks whose runs do not add up to the same number of pixels send its
IoU into an endless loop, or past the end of its memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_CHUNK = 4096  # strings decoded together: a few tens of megabytes
_LONGEST_NUMBER = 7  # characters of 5 bits


def pixel_totals(counts: Sequence[str | bytes]) -> np.ndarray:
    """Pixels that compressed run-length strings cover, foreground and background together.

    Args:
      counts: M strings, the "counts" of COCO's compressed run-length encoding.

    Returns:
      (M,) int64: the sum of the runs, or -1 where a string is malformed or has a negative run.
    """
    totals = np.full(len(counts), -1, np.int64)
    for start in range(0, len(counts), _CHUNK):
        chunk = counts[start : start + _CHUNK]
        texts = [c.encode("utf-8") if isinstance(c, str) else c for c in chunk]
        complete = np.flatnonzero([bool(text) for text in texts])
        complete = complete[_is_complete([texts[i] for i in complete])]
        totals[start + complete] = _sums_of_runs([texts[i] for i in complete])
    return totals


def _is_complete(texts: Sequence[bytes]) -> np.ndarray:
    """Whether non-empty strings stay in the alphabet and end with the end of a number."""
    if not texts:
        return np.zeros(0, bool)
    stops = np.cumsum([len(text) for text in texts])
    characters = np.frombuffer(b"".join(texts), np.uint8)
    foreign = (characters < 48) | (characters > 111)
    any_foreign = np.logical_or.reduceat(foreign, np.concatenate([[0], stops[:-1]]))
    return ~any_foreign & ((characters[stops - 1] - 48) & 32 == 0)


def _sums_of_runs(texts: Sequence[bytes]) -> np.ndarray:
    """Sum of the runs of complete strings, -1 for those with an overlong number or negative run.

    From the fourth number of a string on, a number is the difference from the run two places
    before. So the runs 1, 3, 5, ... and the runs 2, 4, 6, ... are two running sums.
    """
    if not texts:
        return np.zeros(0, np.int64)
    numbers, lengths, first = _numbers(texts)
    place = np.arange(numbers.size) - np.repeat(first, np.diff(first, append=numbers.size))
    runs = numbers.copy()
    for begin in (1, 2):
        chain = np.flatnonzero((place >= begin) & ((place - begin) % 2 == 0))
        sums = np.cumsum(numbers[chain])
        heads = np.flatnonzero(place[chain] == begin)
        before = sums[heads] - numbers[chain[heads]]
        runs[chain] = sums - np.repeat(before, np.diff(heads, append=chain.size))
    negative = np.minimum.reduceat(runs, first) < 0
    overlong = np.maximum.reduceat(lengths, first) > _LONGEST_NUMBER
    return np.where(negative | overlong, -1, np.add.reduceat(runs, first))


def _numbers(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers of all strings, their lengths in characters, index of every string's first number.

    The format: 5 bits a character after an offset of 48, bit 5 = more follows, lowest bits first,
    the last character's bit 4 is the sign.
    """
    codes = np.frombuffer(b"".join(texts), np.uint8) - np.uint8(48)
    last = np.flatnonzero(codes < 32)
    starts = np.concatenate([[0], last[:-1] + 1])
    lengths = last - starts + 1
    bits = codes & 31
    numbers = bits[starts].astype(np.int64)
    for k in range(1, min(int(lengths.max()), _LONGEST_NUMBER)):
        longer = np.flatnonzero(lengths > k)
        numbers[longer] |= bits[starts[longer] + k].astype(np.int64) << (5 * k)
    negative = np.flatnonzero(bits[last] & 16)
    numbers[negative] -= 1 << (5 * np.minimum(lengths[negative], _LONGEST_NUMBER))
    text_starts = np.cumsum([0, *map(len, texts[:-1])])
    return numbers, lengths, np.searchsorted(starts, text_starts)
