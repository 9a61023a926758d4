from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solojax.interop.names import read_name, write_name


@pytest.mark.parametrize(
    ("template", "name", "letters"),
    [
        ("stem.conv1", "stem.conv1", {}),
        ("res{s+1}.{b}.conv{c}", "res2.0.conv3", {"s": 1, "b": 0, "c": 3}),
        ("tower.{3i+1}", "tower.10", {"i": 3}),
        ("tower.{3i}", "tower.0", {"i": 0}),
        ("out{i-2}", "out1", {"i": 3}),
    ],
)
def test_worked_examples(template, name, letters):
    assert read_name(template, name) == letters
    assert write_name(template, letters) == name


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("stem.conv1", "stemxconv1"),  # a dot is a dot
        ("tower.{3i+1}", "tower.11"),  # no whole number gives it
        ("lateral{i+2}", "lateral1"),  # a negative one would
        ("conv{c}", "conv01"),  # would be written differently
        ("conv{c}", "conv1.bias"),
        ("conv{c}", "aconv1"),
    ],
)
def test_names_that_a_template_does_not_give(template, name):
    assert read_name(template, name) is None


@given(st.integers(1, 9), st.integers(0, 9), st.integers(0, 99), st.integers(0, 99))
def test_reading_undoes_writing(factor, offset, i, j):
    template = f"a{{{factor}i+{offset}}}.b{{j}}/{{k}}"
    letters = {"i": i, "j": j, "k": i + j}
    assert write_name(template, letters) == f"a{factor * i + offset}.b{j}/{i + j}"
    assert read_name(template, write_name(template, letters)) == letters
