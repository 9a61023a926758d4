"""What the tests of `solojax train` share."""

from __future__ import annotations

import functools

import pytest
from helpers import tiny_run
from helpers.tiny_run import train, use_nano_network, write_data


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data")


@pytest.fixture
def nano(monkeypatch):
    """`train` with a network that compiles at once."""
    use_nano_network(monkeypatch)
    return functools.partial(train, config=tiny_run.NANO_CONFIG)
