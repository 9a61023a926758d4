from __future__ import annotations

import argparse

import pytest

from solojax.cli.flags import add_distributed_flags, make_workdir, read_distributed
from solojax.errors import InputError


def distributed(flags: str, **environment):
    parser = argparse.ArgumentParser()
    add_distributed_flags(parser)
    return read_distributed(parser.parse_args(flags.split()), environment)


def test_a_single_process_needs_no_flags():
    assert distributed("") is None


def test_flags_come_before_the_environment():
    environment = {
        "JAX_COORDINATOR_ADDRESS": "host:1",
        "JAX_PROCESS_ID": "0",
        "JAX_NUM_PROCESSES": "4",
    }
    expected = {"coordinator": "host:1", "process_id": 3, "num_processes": 4}
    assert distributed("--process_id 3", **environment) == expected
    flags = "--coordinator a:5 --process_id 0 --num_processes 2"
    expected = {"coordinator": "a:5", "process_id": 0, "num_processes": 2}
    assert distributed(flags) == distributed(flags, **environment) == expected


@pytest.mark.parametrize(
    "flags, environment, part",
    [
        ("--process_id 0", {}, "--coordinator and --num_processes"),
        ("--coordinator a:1 --num_processes 2", {}, "--process_id"),
        ("--coordinator a --process_id 0 --num_processes 2", {}, "HOST:PORT"),
        ("--coordinator a:1 --process_id 2 --num_processes 2", {}, "is 2 of 2"),
        ("--coordinator a:1 --process_id -1 --num_processes 2", {}, "is -1 of 2"),
        ("--coordinator a:1 --process_id 0", {"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES"),
    ],
)
def test_incomplete_or_impossible_processes(flags, environment, part):
    with pytest.raises(InputError, match=part):
        distributed(flags, **environment)


def test_workdir_is_made_with_its_parents(tmp_path):
    path = tmp_path / "a" / "b"
    assert make_workdir(path) == make_workdir(path) == path
    assert path.is_dir()


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_file_in_the_way_of_the_workdir(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="a file is in the way"):
        make_workdir(tmp_path / name)
