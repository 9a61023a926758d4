"""What processes compare at their start, by threads that stand for them."""

from __future__ import annotations

import shutil
from importlib import metadata

import pytest
from helpers.joined_threads import disagreements
from helpers.photos import write_photos
from helpers.tiny_run import edit_json, write_data

from solojax.conversion.preparation import prepare_instances
from solojax.data.coco import load_coco
from solojax.data.image_folder import list_coco, list_folder, list_records
from solojax.data.records import load_records
from solojax.free_solo.free_masks import load_photos
from solojax.train import distributed
from solojax.train.start_checks import check_data, differing_files, program_facts

COPY = ": copy the same data set to all hosts"


@pytest.fixture
def roots(tmp_path):
    """Three folders of the same data."""
    first = write_data(tmp_path / "host_0")
    return [first, *(shutil.copytree(first, tmp_path / f"host_{i}") for i in (1, 2))]


@pytest.fixture
def compared(monkeypatch):
    """What the processes say that have these data sets to train on."""

    def compare(datasets):
        calls = [lambda data=data: check_data(training=data) for data in datasets]
        return disagreements(monkeypatch, *calls)

    return compare


def coco(root):
    return load_coco(root / "train.json", root / "images")


def image_list(root):
    return list_coco(root / "train.json", root / "images")


READERS = pytest.mark.parametrize("read", [coco, image_list])


@READERS
def test_copies_are_the_same(roots, compared, read):
    assert compared(map(read, roots)) == [None] * 3


@READERS
def test_files_missing_in_one_process(roots, compared, read):
    for number in (1, 4):
        (roots[2] / "images" / f"image_{number}.png").unlink()
    size = (roots[0] / "images" / "image_1.png").stat().st_size
    line = (
        "2 of 6 files of the training data are missing in process 2 or unlike those of process 0 "
        f"(the first is image_1.png: missing, in process 0 {size} bytes){COPY}"
    )
    assert compared(map(read, roots)) == [line] * 3


@READERS
def test_a_file_cut_off_in_process_0(roots, compared, read):
    path = roots[0] / "images" / "image_3.png"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:100])
    found = compared(map(read, roots))
    assert found == [found[0]] * 3
    assert "1 of 6 files of the training data are missing in process 1 or unlike" in found[0]
    assert f"(the first is image_3.png: {size} bytes, in process 0 100 bytes)" in found[0]


def test_files_that_no_host_has_are_no_difference(roots, compared):
    for root in roots:
        (root / "images" / "image_3.png").unlink()
    assert compared(map(coco, roots)) == [None] * 3


def test_a_folder_that_was_copied_in_part(tmp_path, compared):
    first = write_photos(tmp_path / "host_0") / "c"
    second = shutil.copytree(first, tmp_path / "host_1")
    (second / "2.png").unlink()
    line = f"process 1 has number of training images 3, process 0 has 4{COPY}"
    assert compared([list_folder(first), list_folder(second)]) == [line] * 2


def test_images_in_another_order(roots, compared):
    edit_json(roots[1] / "train.json", lambda document: document["images"].reverse())
    found = compared(map(coco, roots))
    assert found == [found[0]] * 3
    assert found[0].startswith("process 1 has training data ")


@pytest.mark.parametrize("read", [load_records, list_records])
def test_records_that_were_written_otherwise(roots, tmp_path, compared, read):
    """Ids, names and objects are the same, but not the shards that the images lie in."""
    folders = [str(tmp_path / f"records_{shards}") for shards in (1, 2)]
    for shards, folder in enumerate(folders, start=1):
        arguments = (roots[0] / "train.json", roots[0] / "images", folder, "train")
        prepare_instances("coco", *arguments, num_shards=shards)
    first, second = (read(folder, "train") for folder in folders)
    assert first.fingerprint == second.fingerprint
    found = compared([first, second])
    assert found == [found[0]] * 2
    assert "1 of 1 files of the training data" in found[0]
    assert "(the first is train.manifest.json: checksum " in found[0]
    assert compared([first, read(folders[0], "train")]) == [None] * 2


def test_states_of_files_are_exchanged_where_they_differ_alone(roots, monkeypatch):
    said = []
    monkeypatch.setattr(distributed, "process_id", lambda: 0)
    monkeypatch.setattr(distributed, "exchange", lambda text: said.append(text) or [text, text])
    check_data(training=coco(roots[0]))
    assert len(said) == 2 and len(said[1]) == 64


def test_a_single_process_looks_up_no_file(roots, monkeypatch):
    monkeypatch.setattr("solojax.data.coco.file_states", lambda *_: pytest.fail("looked up"))
    check_data(training=coco(roots[0]))


@pytest.mark.parametrize("with_json", [False, True])
def test_photos_that_differ_are_named_before_their_headers_are_read(
    roots, monkeypatch, with_json, tmp_path
):
    (roots[1] / "images" / "image_3.png").write_bytes(b"cut off")
    monkeypatch.setattr(
        "solojax.free_solo.free_masks.read_sizes", lambda *_: pytest.fail("headers were read")
    )
    found = disagreements(
        monkeypatch,
        *(
            lambda root=root: load_photos(
                root / "images", root / "train.json" if with_json else None
            )
            for root in roots[:2]
        ),
    )
    assert found == [found[0]] * 2
    assert f"1 of {6 if with_json else 9} files of the input data" in found[0]
    assert "image_3.png: 7 bytes" in found[0]


def test_differing_files_by_hand():
    expected = {"a": "1 bytes", "b": "2 bytes", "c": "missing"}
    assert differing_files("test", 1, dict(expected), expected) == ""
    assert differing_files("test", 3, expected | {"c": "4 bytes"}, expected) == (
        "1 of 3 files of the test data are missing in process 3 or unlike those of process 0 (the "
        "first is c: 4 bytes, in process 0 missing)"
    )


def test_plugins_of_accelerators_are_compared_where_they_are_installed(monkeypatch):
    plugins = {"libtpu": "0.0.42", "jax-cuda12-plugin": "0.10.2", "jax-cuda13-plugin": "0.10.3"}
    version = metadata.version
    installed = {}

    def claim(name):
        if name in installed:
            return installed[name]
        if "cuda" in name or name == "libtpu":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", claim)
    without = program_facts()
    assert not plugins.keys() & without.keys()
    installed.update(plugins)
    assert program_facts() == without | plugins
    told = [without, program_facts()]
    assert "process 1 has jax-cuda12-plugin 0.10.2, process 0 has nothing" == (
        distributed.first_difference(told)
    )
