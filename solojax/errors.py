"""The errors that a person is meant to read."""

from __future__ import annotations


class InputError(Exception):
    """Bad input: a file, an entry of a file, a flag or a config value.

    The message is one line that says what is wrong, where, and what to do. The command line prints
    it without a traceback and exits with code 2 (`--debug` shows the traceback).
    """


class BrokenImage(InputError):
    """An image file that is absent, empty, truncated or in no format that can be read."""


class ForeignLabels(InputError):
    """A label file that another checkpoint, other settings or other images made."""
