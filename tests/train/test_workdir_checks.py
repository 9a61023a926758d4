"""What is found out before a run begins; with several processes see `test_distributed`."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from solojax.errors import InputError
from solojax.train import start_checks
from solojax.train.start_checks import check_workdir


def test_a_folder_with_a_file_is_renamed_and_nothing_stays(tmp_path, monkeypatch):
    renamed = []
    rename = Path.rename

    def watch(path, target):
        renamed.append([each.name for each in path.iterdir()])
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", watch)
    (tmp_path / "config.json").write_text("{}")
    check_workdir(tmp_path)
    check_workdir(tmp_path)
    assert [len(files) for files in renamed] == [1, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_what_a_killed_start_left_is_no_obstacle(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(start_checks.shutil, "rmtree", lambda *_, **__: None)
        patch.setattr(Path, "rename", _raise(KeyboardInterrupt()))
        check_workdir(tmp_path)
    assert list(tmp_path.iterdir())
    check_workdir(tmp_path)
    assert not list(tmp_path.iterdir())


def test_storage_that_refuses_is_named_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "rename", _raise(OSError(errno.EMFILE, "Too many open files")))
    with pytest.raises(InputError, match="does not rename folders .Too many open files.*hierarch"):
        check_workdir(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("process", "looks"), [(None, True), (0, True), (1, False)])
def test_one_process_looks_for_all(tmp_path, monkeypatch, process, looks):
    monkeypatch.setattr(start_checks.distributed, "process_id", lambda: process)
    monkeypatch.setattr(start_checks.distributed, "require_same", lambda facts, remedy: None)
    monkeypatch.setattr(start_checks, "_read_shared", lambda path: "")
    found = []
    monkeypatch.setattr(start_checks, "_check_renames", found.append)
    check_workdir(tmp_path)
    assert found == [tmp_path] * looks


def _raise(error):
    def fail(*_):
        raise error

    return fail
