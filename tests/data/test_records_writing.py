"""Writing records: stopped at any moment it goes on to the same bytes, and mixes nothing up."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import fsspec
import pytest
from etils import epath
from etils.epath import backend
from helpers.records import contents, write_pair, write_source
from helpers.tiny_run import edit_json

from solojax.conversion import preparation
from solojax.conversion.preparation import prepare_instances, prepare_labelled, verify
from solojax.data import records_manifest, records_metadata, records_writing
from solojax.data.image_folder import list_records
from solojax.data.records import load_records
from solojax.errors import InputError


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Not to be changed."""
    return write_source(tmp_path_factory.mktemp("source") / "data")


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """Records written without a break, not to be changed."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    write(source, folder)
    return folder


def write(source, folder, split="train", **settings):
    settings = {"num_shards": 3} | settings
    images = source / "images"
    return prepare_instances(
        "coco", source / f"{split}.json", images, str(folder), split, **settings
    )


class _Stopped(Exception):
    pass


def stop_at(monkeypatch, image):
    """Reading the n-th image (from 0) stops the writing."""
    read, count = preparation._read_file, iter(range(100))

    def read_or_stop(path):
        if next(count) == image:
            raise _Stopped
        return read(path)

    monkeypatch.setattr(preparation, "_read_file", read_or_stop)


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from solojax.conversion import preparation

    read, count = preparation._read_file, iter(range(100))

    def read_or_die(path):
        if next(count) == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        return read(path)

    preparation._read_file = read_or_die
    root = Path(sys.argv[1])
    preparation.prepare_instances(
        "coco", root / "train.json", root / "images", sys.argv[2], "train", num_shards=3
    )
"""


def test_a_killed_writing_goes_on_to_the_same_bytes(source, whole, tmp_path):
    out = tmp_path / "out"
    script = [sys.executable, "-c", textwrap.dedent(KILLED), str(source), str(out), "3"]
    done = subprocess.run(script, capture_output=True, timeout=300)
    assert done.returncode == -signal.SIGKILL
    shards = sorted(out.glob("records-train.array_record-*"))
    assert shards[0].name.endswith("00000-of-00003")
    assert not (out / "train.manifest.json").exists()
    with pytest.raises(InputError, match="'train' was not written to its end"):
        load_records(out, "train")
    first = shards[0].stat()
    assert write(source, out).num_kept == 1
    assert (shards[0].stat().st_ino, shards[0].stat().st_mtime_ns) == (
        first.st_ino,
        first.st_mtime_ns,
    )
    assert contents(out) == contents(whole)


@pytest.mark.parametrize("image", range(6))
def test_stopped_at_any_image(source, whole, tmp_path, monkeypatch, image):
    with monkeypatch.context() as patch, pytest.raises(_Stopped):
        stop_at(patch, image)
        write(source, tmp_path / "out")
    assert write(source, tmp_path / "out").num_kept == image // 2
    assert contents(tmp_path / "out") == contents(whole)


@pytest.mark.parametrize("name", ["train.manifest.json", "dataset_info.json", "train.index.json"])
def test_stopped_after_the_last_shard(source, whole, tmp_path, monkeypatch, name):
    replace = records_writing.write_whole

    def write_or_stop(path, *rest):
        if path.name == name:
            raise _Stopped
        return replace(path, *rest)

    with monkeypatch.context() as patch, pytest.raises(_Stopped):
        for module in (records_writing, records_manifest, records_metadata):
            patch.setattr(module, "write_whole", write_or_stop)
        write(source, tmp_path / "out")
    with pytest.raises(InputError, match="not written to its end"):
        load_records(tmp_path / "out", "train")
    assert write(source, tmp_path / "out").num_kept == 3
    assert contents(tmp_path / "out") == contents(whole)


def test_a_finished_split_is_left_alone_and_a_damaged_one_mended(source, whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    times = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert write(source, out).num_kept == 3
    assert times == {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    shard = out / "records-train.array_record-00001-of-00003"
    data = shard.read_bytes()
    shard.write_bytes(data[:-9] + b"scribbled")
    (out / "train.annotations.json").unlink()
    assert write(source, out).num_kept == 2
    assert contents(out) == contents(whole)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_metadata_that_is_gone_or_altered_is_found_and_mended(source, tmp_path, name):
    out = tmp_path / "out"
    write(source, out)
    write(source, out, "val")
    both = contents(out)
    path = out / name
    unlike = "not as this version of TFDS writes it"
    for harm, what in ((path.unlink, "missing"), (lambda: path.write_text("{}"), unlike)):
        harm()
        with pytest.raises(InputError, match=f"{name}: {what}; .*`solojax prepare` command again"):
            verify(str(out), None, "coco")
        with pytest.raises(InputError):
            load_records(out, "train").read(0)
        assert write(source, out).num_kept == 3
        assert contents(out) == both
        load_records(out, "train").read(0)
        assert set(verify(str(out), None, "coco")) == {"train", "val"}


def test_stopped_at_the_very_end(source, whole, tmp_path, monkeypatch):
    """Between the manifest and the last look at the metadata."""

    def stop(*_):
        raise _Stopped

    with monkeypatch.context() as patch, pytest.raises(_Stopped):
        patch.setattr(records_metadata, "mend", stop)
        write(source, tmp_path / "out")
    assert len(load_records(tmp_path / "out", "train").read(0)) == 2
    assert write(source, tmp_path / "out").num_kept == 3
    assert contents(tmp_path / "out") == contents(whole)


@pytest.fixture(scope="module")
def both(source, tmp_path_factory):
    """Both splits, written one after the other; not to be changed."""
    folder = tmp_path_factory.mktemp("both") / "out"
    write(source, folder)
    write(source, folder, "val")
    return folder


@pytest.mark.parametrize("moment", range(9))
def test_a_split_that_ends_while_another_one_is_written(
    source, both, tmp_path, monkeypatch, moment
):
    """All of `val` is written right before the n-th file, shards aside, of `train`."""
    out = tmp_path / "out"
    modules = (records_writing, records_manifest, records_metadata)
    write_whole, names = records_manifest.write_whole, []

    def interleave(path, *rest):
        names.append(path.name)
        if len(names) == moment + 1:
            with monkeypatch.context() as patch:
                for module in modules:
                    patch.setattr(module, "write_whole", write_whole)
                write(source, out, "val")
        return write_whole(path, *rest)

    with monkeypatch.context() as patch:
        for module in modules:
            patch.setattr(module, "write_whole", interleave)
        write(source, out)
    assert "train.manifest.json" in names[moment:]  # nothing is left out by the range
    assert contents(out) == contents(both)
    assert [len(load_records(out, split).read(0)) for split in ("train", "val")] == [2, 2]


def test_metadata_that_lacks_another_split_is_noticed_after_writing(
    source, both, tmp_path, monkeypatch
):
    """The other command writes what it knew before this one's manifest, and this one sees it."""
    out = tmp_path / "out"
    write(source, out, "val")
    stale = (out / "dataset_info.json").read_bytes()
    write_manifest = records_writing.write_manifest

    def write_then_lose(root, split, manifest):
        write_manifest(root, split, manifest)
        (out / "dataset_info.json").write_bytes(stale)

    with monkeypatch.context() as patch:
        patch.setattr(records_writing, "write_manifest", write_then_lose)
        write(source, out)
    assert contents(out) == contents(both)


def test_metadata_that_never_rests_is_an_error(source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    write(source, out)

    def write_nothing(*_):
        pass

    (out / "features.json").unlink()
    monkeypatch.setattr(records_metadata, "write_whole", write_nothing)
    with pytest.raises(InputError, match="another command keeps writing features.json"):
        write(source, out)


def test_two_writers_of_a_file_do_not_take_each_others_half(tmp_path, monkeypatch):
    path = epath.Path(tmp_path / "dataset_info.json")
    replace, first = type(path).replace, [True]

    def replace_late(self, target):
        if first:
            first.clear()
            records_manifest.write_whole(path, b"of val", "val")
        return replace(self, target)

    monkeypatch.setattr(type(path), "replace", replace_late)
    records_manifest.write_whole(path, b"of train", "train")
    assert contents(tmp_path) == {"dataset_info.json": b"of train"}


def test_a_file_is_on_the_storage_before_it_has_its_name(tmp_path, monkeypatch):
    path, synced = epath.Path(tmp_path / "train.progress.json"), []

    def sync(descriptor):
        assert not path.exists()
        synced.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr(os, "fsync", sync)
    records_manifest.write_whole(path, b"{}")
    assert synced == [2] and path.read_bytes() == b"{}"


def test_a_noted_shard_that_was_altered_since_is_written_again(
    source, whole, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(_Stopped):
        stop_at(patch, 5)
        write(source, out)
    shard = out / "records-train.array_record-00000-of-00003"
    shard.write_bytes(bytes(len(shard.read_bytes())))
    assert write(source, out).num_kept == 1
    assert contents(out) == contents(whole)


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("what", ["annotations", "images", "shards"])
def test_another_source_or_setting_is_refused(tmp_path, monkeypatch, what, finished):
    source = write_source(tmp_path / "data")
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        if not finished:
            stop_at(patch, 3)
        try:
            write(source, out)
        except _Stopped:
            pass
    before = contents(out)
    settings = {}
    if what == "annotations":
        edit_json(source / "train.json", lambda d: d["annotations"][0].update(area=5))
    elif what == "images":
        with (source / "images" / "image_1.png").open("ab") as file:
            file.write(b"\0")
    else:
        settings["num_shards"] = 2
    with pytest.raises(InputError, match=rf"'train' was begun .*\({what} changed\).*--overwrite"):
        write(source, out, **settings)
    assert contents(out) == before
    write(source, out, overwrite=True, **settings)
    write(source, tmp_path / "fresh", **settings)
    assert contents(out) == contents(tmp_path / "fresh")


def test_splits_do_not_disturb_each_other(source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(_Stopped):
        stop_at(patch, 3)
        write(source, out)
    write(source, out, "val", num_shards=1)
    assert len(load_records(out, "val").images) == 3
    write(source, out)
    assert [len(load_records(out, s).images) for s in ("train", "val")] == [6, 3]
    assert set(verify(str(out), None, "coco")) == {"train", "val"}


def test_checksums_are_those_of_the_files(whole):
    manifest = json.loads((whole / "train.manifest.json").read_text())
    for entry in manifest["shards"] + manifest["files"]:
        data = (whole / entry["name"]).read_bytes()
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()
        assert entry["num_bytes"] == len(data)
    checksum = manifest.pop("checksum")
    assert manifest.pop("format") == 1
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    assert checksum == hashlib.sha256(text.encode()).hexdigest()
    assert [entry["num_examples"] for entry in manifest["shards"]] == [2, 2, 2]


def test_verify_names_what_was_altered(tmp_path):
    pair = write_pair(tmp_path)
    assert set(verify(str(pair.records), None, "coco")) == {"train", "val"}
    shard = pair.records / "records-val.array_record-00002-of-00003"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(bytes(data))
    load_records(pair.records, "val")  # as long as it was: the cheap check sees nothing
    with pytest.raises(InputError, match=f"{shard.name}: altered, its SHA-256"):
        verify(str(pair.records), None, "coco")
    verify(str(pair.records), "train", "coco")
    with pytest.raises(InputError, match="coco records, not lvis"):
        verify(str(pair.records), "train", "lvis")
    with pytest.raises(InputError, match="no finished records"):
        verify(str(tmp_path), None, "coco")


def test_missing_image_files(source, tmp_path, caplog):
    root = tmp_path / "data"
    shutil.copytree(source, root)
    for number in (1, 4):
        (root / "images" / f"image_{number}.png").unlink()
    with pytest.raises(InputError, match="image_1.png and 1 other files: no such file.*--skip"):
        write(root, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    write(root, tmp_path / "out", skip_missing=True)
    assert "2 of 6 images left out" in caplog.text
    records = load_records(tmp_path / "out", "train")
    names = [image.file_name for image in records.images]
    assert names == ["image_0.png", "image_2.png", "image_3.png", "image_5.png"]
    truth = json.loads((tmp_path / "out" / "train.annotations.json").read_text())
    assert [image["file_name"] for image in truth["images"]] == names
    assert len(truth["annotations"]) == records.num_objects
    shutil.rmtree(root / "images")
    (root / "images").mkdir()
    with pytest.raises(InputError, match="like all others; check --images"):
        write(root, tmp_path / "none", skip_missing=True)


def test_counts_of_shards(source, tmp_path):
    for count in (0, 7):
        with pytest.raises(InputError, match="--shards .: give 1 to 6 for 6 images"):
            write(source, tmp_path / "out", num_shards=count)
    assert len(write(source, tmp_path / "few", num_shards=None).manifest.shards) == 1
    lengths = [s.num_examples for s in write(source, tmp_path / "4", num_shards=4).manifest.shards]
    assert sum(lengths) == 6 and set(lengths) <= {1, 2}


def test_a_full_disk_is_said_and_the_same_command_goes_on(source, whole, tmp_path, monkeypatch):
    adapters = records_writing.file_adapters.ADAPTER_FOR_FORMAT
    adapter = adapters[records_metadata.FILE_FORMAT]
    real, calls = adapter.write_examples, iter(range(100))

    def write_or_fail(path, iterator):
        if next(calls) == 1:
            real("/dev/full", iterator)
        return real(path, iterator)

    with monkeypatch.context() as patch:
        patch.setattr(adapter, "write_examples", write_or_fail)
        with pytest.raises(InputError, match="00001-of-00003.*No space left.*free some space"):
            write(source, tmp_path / "out")
    assert write(source, tmp_path / "out").num_kept == 1
    assert contents(tmp_path / "out") == contents(whole)


def test_an_object_store_gets_the_same_files(source, whole, monkeypatch):
    store = fsspec.filesystem("memory")
    monkeypatch.setattr(backend.fsspec_backend, "_get_filesystem", lambda name: store)
    root = "gs://bucket/records"
    prepare_instances("coco", source / "train.json", source / "images", root, "train", num_shards=3)
    assert contents(epath.Path(root)) == contents(whole)
    (epath.Path(root) / "records-train.array_record-00001-of-00003").unlink()
    with pytest.raises(InputError, match=r"^gs://bucket/records/.*00001-of-00003: missing"):
        load_records(root, "train")
    written = prepare_instances(
        "coco", source / "train.json", source / "images", root, "train", num_shards=3
    )
    assert written.num_kept == 2
    assert contents(epath.Path(root)) == contents(whole)
    assert len(load_records(root, "train").images) == 6


def test_a_bucket_without_the_package_that_reads_it(source, monkeypatch):
    def fail(name):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(backend.fsspec_backend, "_get_filesystem", fail)
    folder = "gs://bucket/records"
    uses = (
        lambda: prepare_instances("coco", source / "train.json", source, folder, "train"),
        lambda: prepare_labelled("folder", source / "images", folder, "train"),
        lambda: verify(folder, None, "coco"),
        lambda: load_records(folder, "train"),
        lambda: list_records(folder, "train"),
    )
    for use in uses:
        with pytest.raises(InputError, match=r"^gs://bucket/records: .*gcsfs.*'solojax\[gcs\]'"):
            use()
