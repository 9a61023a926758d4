"""`solojax prepare`, and a run that trains on what it wrote."""

from __future__ import annotations

import pytest
from helpers.records import write_class_folders, write_lvis, write_source
from helpers.tiny_run import call, refusal

from solojax.data.records import load_records, open_split
from solojax.train.metric_writer import read_metrics


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path / "source")


def prepare(source, output, split="train", *words):
    annotations, images = source / f"{split}.json", source / "images"
    return call(
        "prepare", "coco", "--annotations", annotations, "--images", images,
        "--output", output, "--split", split, *words,
    )  # fmt: skip


def test_it_says_what_it_wrote(source, tmp_path):
    out = tmp_path / "new" / "folder"
    done = prepare(source, out, "train", "--shards", 2)
    assert done.code == 0, done
    manifest = load_records(out, "train").examples.manifest
    assert f"{out}: train has 6 images, 5 classes in 2 shards, " in done.out
    assert manifest.checksum[:16] in done.out and "were there" not in done.out
    assert "(2 were there)" in prepare(source, out, "train", "--shards", 2).out
    done = call("prepare", "coco", "--verify", "--output", out)
    assert done.code == 0 and f"{out}: train is as it was written" in done.out


def test_lvis_folder_and_imagenet(tmp_path):
    root = write_lvis(tmp_path / "data")
    words = ["--annotations", root / "lvis.json", "--images", root / "lvis"]
    assert call("prepare", "lvis", *words, "--output", tmp_path / "lvis").code == 0
    assert load_records(tmp_path / "lvis", "train").images[1].file_name == "train2017/image_1.png"
    classes = write_class_folders(tmp_path / "classes", ("n01440764", "n01443537"))
    for kind in ("folder", "imagenet"):
        assert call("prepare", kind, "--images", classes, "--output", tmp_path / kind).code == 0
        assert len(open_split(tmp_path / kind, "train")) == 3


def test_a_run_on_records_is_the_run_on_the_json(source, tmp_path, nano):
    for split in ("train", "val"):
        assert prepare(source, tmp_path / "records", split, "--shards", 2).code == 0
    runs = {}
    for name, root in (("coco", source), ("records", tmp_path / "records")):
        done = nano(tmp_path / name, root, data__format=name, train__total_steps=3)
        assert done.code == 0, done
        _, lines = read_metrics(tmp_path / name)
        keys = {key for line in lines for key in line if key.startswith(("loss", "mask/", "box/"))}
        assert {"loss", "mask/AP"} <= keys
        runs[name] = [{key: line[key] for key in keys & line.keys()} for line in lines]
    assert runs["coco"] == runs["records"]
    figures = [
        call("evaluate", "--checkpoint", tmp_path / name, "--config.evaluation.max_images=2")
        for name in runs
    ]
    assert figures[0].code == figures[1].code == 0, figures
    tables = [figure.out.partition("\n")[2] for figure in figures]
    assert tables[0] == tables[1] and "mask" in tables[0]


def test_bad_flags(source, tmp_path):
    out = ["--output", tmp_path / "out"]
    refusal(call("prepare", "coco", *out), "needs --annotations and --images")
    refusal(call("prepare", "imagenet", *out), "needs --images")
    refusal(
        call("prepare", "folder", *out, "--images", source, "--annotations", "a.json"),
        "--annotations has no part in prepare folder",
    )
    refusal(
        call("prepare", "coco", *out, "--verify", "--shards", 2, "--overwrite"),
        "--shards, --overwrite has no part in --verify",
    )
    refusal(call("prepare", "voc", *out), "voc")
    refusal(prepare(source, source / "train.json"), "--output", "a file is in the way")
    refusal(prepare(source, tmp_path / "out", "train", "--split", "all"), "split 'all'")


def test_bad_input(source, tmp_path):
    out = tmp_path / "out"
    refusal(prepare(tmp_path / "nothing", out), "nothing/images: no such image folder")
    (source / "images" / "image_3.png").unlink()
    refusal(prepare(source, out), "image_3.png: no such file", "--skip-missing")
    assert prepare(source, out, "train", "--skip-missing").code == 0
    refusal(prepare(source, out, "train", "--skip-missing", "--shards", 2), "shards changed")
    shard = out / "records-train.array_record-00000-of-00001"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + b"!")
    refusal(call("prepare", "coco", "--verify", "--output", out), shard.name, "altered")
    shard.write_bytes(data[:-1])
    refusal(call("prepare", "coco", "--verify", "--output", out), shard.name, "truncated")
    shard.unlink()
    refusal(call("prepare", "coco", "--verify", "--output", out), shard.name, "missing")
    shard.write_bytes(data)
    (out / "dataset_info.json").unlink()
    refusal(call("prepare", "coco", "--verify", "--output", out), "dataset_info.json: missing")


def test_training_names_a_missing_shard_and_a_split_that_is_not_there(source, tmp_path, nano):
    out = tmp_path / "records"
    assert prepare(source, out, "train", "--shards", 2).code == 0
    run = {"data__format": "records", "train__total_steps": 1}
    refusal(nano(tmp_path / "run", out, **run), "no split 'val'", "it has train")
    refusal(nano(tmp_path / "run", out, data__train_split="test", **run), "no split 'test'")
    (out / "records-train.array_record-00001-of-00002").unlink()
    refusal(nano(tmp_path / "run", out, **run), "00001-of-00002: missing")
    refusal(nano(tmp_path / "run", out, data__format="record"), "data.format", "records")
