"""How the property tests of this suite draw their examples."""

from __future__ import annotations

from hypothesis import settings

# The same examples in every run: a failure on one machine is a failure on all. No deadline, because
# the first example of a shape compiles.
reproducible = settings(max_examples=20, deadline=None, derandomize=True, database=None)
