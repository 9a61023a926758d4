"""What differs between two configs, in words."""

from __future__ import annotations

from ml_collections import ConfigDict

from solojax.config.changes import changes


def test_keys_with_both_values_and_new_ones():
    before = ConfigDict({"seed": 0, "data": {"root": "a", "sides": (1, 2)}, "gone": 1})
    now = ConfigDict({"seed": 0, "data": {"root": "b", "sides": (1, 2)}, "fresh": None})
    assert changes(before, now) == {"data.root": "'b' (was 'a')", "fresh": "None (was not there)"}
    assert changes(now, now) == {}
