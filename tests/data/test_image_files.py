from __future__ import annotations

import pytest

from solojax.data.image_files import describe_others, find_images, sift_images
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


def test_a_folder_of_folders_names_the_pattern_that_finds_their_images(folder):
    (folder / "classes" / "hat").mkdir(parents=True)
    (folder / "deep" / "d.webp").rename(folder / "classes" / "hat" / "d.webp")
    with pytest.raises(InputError, match="folders in it are not looked into") as error:
        find_images(folder / "classes")
    pattern = str(error.value).split("'")[1]
    assert names(find_images(pattern), folder) == ["classes/hat/d.webp"]


@pytest.mark.parametrize("what", ["absent.jpg", "*.gif", "notes.*", "folder.png"])
def test_nothing_to_find(folder, what):
    with pytest.raises(InputError, match="no image there; give a file, a folder or"):
        find_images(folder / what)


def test_images_by_their_suffix_and_what_else_there_is():
    images, others = sift_images(["b.JPG", "x.heic", "a.gif", "y.HEIC", "README", "z.txt"])
    assert images == ["b.JPG", "a.gif"]
    assert describe_others(others) == "4 other files (2 .heic, 1 without suffix, 1 .txt)"
    _, others = sift_images([*"abcd", *(f"{i}.{i}" for i in range(10))])
    assert describe_others(others).startswith("14 other files (4 without suffix, 1 .0, ")
    assert describe_others(others).endswith(", 6 more)")
    assert describe_others(sift_images(["a.txt"])[1]) == "1 other file (1 .txt)"
