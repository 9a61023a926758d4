"""Sizes of many files."""

from __future__ import annotations

from solojax.data.file_sizes import file_sizes, file_states


def test_sizes_stand_in_the_order_of_the_paths(tmp_path):
    """Also of more files than are looked up at once; a folder is no file."""
    names = [f"{number}.bin" for number in range(100)]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(bytes(number))
    (tmp_path / "7.bin").unlink()
    (tmp_path / "8.bin").unlink()
    (tmp_path / "8.bin").mkdir()
    expected = [None if number in (7, 8) else number for number in range(100)]
    assert file_sizes([str(tmp_path / name) for name in names]) == expected


def test_states_say_it_in_words(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.jpg").write_bytes(b"123")
    found = file_states(str(tmp_path), ["b.jpg", "a/one.jpg"])
    assert list(found.items()) == [("b.jpg", "missing"), ("a/one.jpg", "3 bytes")]
