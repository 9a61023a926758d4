"""The known name that a person most likely meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Returns the entry of `known` most like `name`; the first among equals.

    Names of several parts (`optimizer.learning_rate`, `--num_processes`) are also met by their
    last part alone and by its initials: `lr`, `train.learning_rate`.

    Args:
      name: what was written.
      known: at least one name.
    """
    return max(known, key=lambda candidate: _likeness(name, candidate))


def _likeness(name: str, candidate: str) -> float:
    written, last = (text.rpartition(".")[2].lstrip("-") for text in (name, candidate))
    initials = "".join(word[0] for word in last.split("_") if word)
    bonus = 1.0 if written == last or (len(written) > 1 and written == initials) else 0.0
    return bonus + difflib.SequenceMatcher(None, name, candidate).ratio()
