"""Files that another host writes, on storage that hosts share."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path


def wait_for_files(paths: Iterable[Path], seconds: float = 10.0) -> list[Path]:
    """Waits for files that are written already, which a network's storage shows with delay.

    Args:
      paths: of the files.
      seconds: how long at most.

    Returns:
      Those that are not there even then; the others can be read.
    """
    deadline = time.monotonic() + seconds
    missing = [path for path in paths if not path.exists()]
    while missing and time.monotonic() < deadline:
        time.sleep(0.1)
        missing = [path for path in missing if not path.exists()]
    return missing
