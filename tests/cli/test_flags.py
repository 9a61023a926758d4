from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import pytest

from solojax.cli.flags import add_distributed_flags, local_path, make_workdir, read_distributed
from solojax.cli.main import VERBS, main
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


@pytest.mark.parametrize(
    "words",
    [
        ("train", "--workdir"),
        ("demo", "--workdir"),
        ("evaluate", "--checkpoint"),
        ("evaluate", "--output"),
        ("predict", "--output"),
        ("convert", "--output"),
        ("free-mask", "--checkpoint"),
        ("free-solo", "--backbone"),
        ("visualize", "grid", "--checkpoint", "runs/here"),
    ],
)
def test_a_bucket_is_no_path(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*words, "gs://bucket/run"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    flag = next(word for word in words if word.startswith("--"))
    assert f"argument {flag}: gs://bucket/run is no path: mount the bucket" in line
    assert not list(tmp_path.iterdir())


def test_paths_are_taken_as_they_are():
    assert local_path("a//b:c") == Path("a/b:c")


@pytest.mark.parametrize("verb", VERBS)
def test_no_flag_makes_a_path_of_a_url(verb):
    parser = argparse.ArgumentParser()
    importlib.import_module(f"solojax.cli.{verb.replace('-', '_')}").add_flags(parser)
    assert not [action.dest for action in parser._actions if action.type is Path]
