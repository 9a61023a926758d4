from __future__ import annotations

import pytest

from solojax.data.image_files import find_images
from solojax.errors import InputError


@pytest.fixture
def folder(tmp_path):
    for name in ("b.jpg", "a.PNG", "c.jpeg", "notes.txt", "deep/d.webp", "deep/er/e.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    return tmp_path


def names(found, folder):
    return [path.relative_to(folder).as_posix() for path in found]


def test_a_folder_gives_its_image_files_in_order(folder):
    assert names(find_images(folder), folder) == ["a.PNG", "b.jpg", "c.jpeg"]


def test_a_file_is_taken_whatever_it_is_called(folder):
    assert find_images(folder / "notes.txt") == [folder / "notes.txt"]


@pytest.mark.parametrize(
    "pattern, expected",
    [
        ("*.jp*g", ["b.jpg", "c.jpeg"]),
        ("[ab].*", ["a.PNG", "b.jpg"]),
        ("deep/*", ["deep/d.webp"]),
        ("**/*", ["a.PNG", "b.jpg", "c.jpeg", "deep/d.webp", "deep/er/e.tif"]),
    ],
)
def test_patterns(folder, pattern, expected):
    assert names(find_images(f"{folder}/{pattern}"), folder) == expected
    assert names(find_images(folder / pattern), folder) == expected


@pytest.mark.parametrize("what", ["absent.jpg", "*.gif", "notes.*", "folder.png"])
def test_nothing_to_find(folder, what):
    with pytest.raises(InputError, match="no image there; give a file, a folder or"):
        find_images(folder / what)
