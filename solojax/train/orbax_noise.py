"""Keeps Orbax from burying the one line that a person should read.

When a save fails, Orbax logs the same traceback once for every thread before it raises the error,
and TensorStore and asyncio report each further array that could not be written or read. The raised
error says it all. With absl's verbosity at INFO or lower everything is shown.
"""

from __future__ import annotations

import logging
import os
import sys

_ORBAX_FOLDER = f"{os.sep}orbax{os.sep}checkpoint{os.sep}"


class _OrbaxFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return _is_verbose() or _ORBAX_FOLDER not in record.pathname


class _TensorStoreFilter(logging.Filter):
    """Drops what asyncio says of the failures beyond the first, which nobody awaits."""

    def filter(self, record: logging.LogRecord) -> bool:
        return _is_verbose() or "tensorstore_spec" not in record.getMessage()


def quiet_orbax() -> None:
    """Installs the filters; further calls change nothing."""
    logger = logging.getLogger("absl")
    if any(isinstance(known, _OrbaxFilter) for known in logger.filters):
        return
    logger.addFilter(_OrbaxFilter())
    logging.getLogger("asyncio").addFilter(_TensorStoreFilter())
    previous = sys.unraisablehook

    def drop_late_writes(unraisable) -> None:
        if _is_verbose() or not _is_late_write(unraisable):
            previous(unraisable)

    sys.unraisablehook = drop_late_writes


def _is_late_write(unraisable) -> bool:
    error = unraisable.exc_value
    return (
        isinstance(error, RuntimeError)
        and str(error) == "Event loop is closed"
        and unraisable.object is None
    )


def _is_verbose() -> bool:
    return logging.getLogger("absl").getEffectiveLevel() <= logging.INFO
