"""Results in parts: what is kept when work is cut off, and whose parts they are."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import pytest

from solojax.errors import InputError
from solojax.free_solo import part_files
from solojax.free_solo.part_files import PartFiles, PartWriter
from solojax.train.shared_files import wait_for_files


@pytest.fixture
def parts(tmp_path):
    return PartFiles(tmp_path / "deep" / "out.json", "abc")


def read(parts, names=()):
    """All results by number, each as it lies in its place."""
    found = {index: (place, result) for index, place, result in parts.scan(names)}
    assert all(parts.load(place) == result for place, result in found.values())
    return {index: result for index, (_, result) in found.items()}


def test_what_was_written_is_read(parts):
    assert parts.open() == 0 and read(parts) == {}
    with PartWriter(parts, 0, process=0, items=2) as first:
        for index in range(3):
            first.add(index, [index] * index)
        assert read(parts) == {0: [], 1: [1]}  # the third is not written yet
        with PartWriter(parts, 0, process=1, seconds=0.0) as second:
            second.add(7, None)
            assert 7 in read(parts)
    assert read(parts) == {0: [], 1: [1], 2: [2, 2], 7: None}
    assert parts.open() == 1
    with PartWriter(parts, 1, process=0) as third:
        third.add(4, "x")
    assert sorted(read(parts)) == [0, 1, 2, 4, 7]
    parts.remove()
    assert not parts.folder.exists()


def test_an_error_loses_nothing(parts):
    parts.open()
    with pytest.raises(KeyError), PartWriter(parts, 0, process=0) as writer:
        writer.add(1, "one")
        raise KeyError
    assert read(parts) == {1: "one"}


def test_parts_that_are_named_need_no_listing(parts, monkeypatch):
    """As on another host, whose storage lists neither the folder nor the parts in it yet."""
    with PartWriter(parts, 0, process=1, items=1) as writer:  # it makes the folder
        writer.add(3, "three")
        writer.add(4, "four")
    assert len(writer.names) == 2 and read(parts, writer.names[:1]) == read(parts)
    monkeypatch.setattr(Path, "glob", lambda *_: [])
    assert read(parts) == {} and read(parts, writer.names) == {3: "three", 4: "four"}


def test_a_part_of_another_process_is_waited_for(parts, monkeypatch):
    path = parts.folder / "part_0000_00001_000000.jsonl"

    def show(_):
        """What a while brings."""
        parts.folder.mkdir(parents=True)
        path.write_text("[1, 2]\n")

    monkeypatch.setattr("time.sleep", show)
    assert read(parts, [path.name]) == {1: 2}


def test_a_part_that_never_shows_tells_of_storage_that_is_not_shared(parts, monkeypatch):
    monkeypatch.setattr(part_files, "wait_for_files", functools.partial(wait_for_files, seconds=0))
    with PartWriter(parts, 0, process=0) as writer:
        writer.add(1, "one")
    other = "part_0000_00001_000000.jsonl"
    with pytest.raises(InputError, match=f"{other}: written by another.*all processes share"):
        read(parts, [*writer.names, other])


def test_parts_of_other_work_are_refused(parts, tmp_path):
    parts.open()
    with pytest.raises(InputError, match=r"out.json.parts: a run with another checkpoint"):
        PartFiles(tmp_path / "deep" / "out.json", "other").open()
    assert parts.open() == 1
    parts.remove_foreign()
    assert parts.folder.exists()
    PartFiles(tmp_path / "deep" / "out.json", "other").remove_foreign()
    assert not parts.folder.exists()
    parts.remove()  # it need not be there


@pytest.mark.parametrize("clean_up", ["open", "remove_foreign"])
def test_parts_without_an_owner_are_nobodys(parts, clean_up):
    """Whoever finds them cannot know which checkpoint they are of."""
    parts.open()
    with PartWriter(parts, 0, process=0) as writer:
        writer.add(1, "of another checkpoint")
    (parts.folder / "run.json").unlink()
    getattr(parts, clean_up)()
    assert read(parts) == {}


def test_a_removal_that_is_cut_off_leaves_no_part_to_the_next_run(parts, monkeypatch):
    parts.open()
    with PartWriter(parts, 0, process=0) as writer:
        writer.add(1, "old")

    def interrupted(folder):
        (folder / "run.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shutil, "rmtree", interrupted)
        parts.remove()
    assert not parts.folder.exists()
    assert parts.open() == 0 and read(parts) == {}
    parts.remove()
    assert list(parts.folder.parent.iterdir()) == []  # nor what was left of the first removal


def test_a_damaged_part_is_named(parts):
    parts.open()
    (parts.folder / "part_0000_00000_000000.jsonl").write_text('[1, 2]\n[2, {"')
    with pytest.raises(InputError, match="part_0000.*remove the file"):
        read(parts)
    (parts.folder / "part_0000_00000_000000.jsonl").write_text("[1, 2]\n")
    assert read(parts) == {1: 2}
