"""Records beside the json and the images they were written from: to the rest they are the same."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import textwrap

import cv2
import jax
import numpy as np
import pytest
from helpers.records import Pair, write_lvis, write_pair
from helpers.tiny_config import get_config
from helpers.tiny_run import CATEGORIES, edit_json
from pycocotools.coco import COCO

from solojax.builders import segmentation
from solojax.conversion.preparation import prepare_instances
from solojax.data.coco import load_coco
from solojax.data.records import load_records, open_split
from solojax.data.rows import ImageRows, TrainRows
from solojax.errors import BrokenImage, InputError
from solojax.evaluators.ground_truth import load_ground_truth


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Pair:
    """Not to be changed."""
    return write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def both(pair):
    return load_coco(pair.json, pair.images), load_records(pair.records, "train")


def assert_same_record(found, wanted):
    assert (found.id, found.file_name) == (wanted.id, wanted.file_name)
    assert (found.height, found.width) == (wanted.height, wanted.width)
    assert len(found.annotations) == len(wanted.annotations)
    for one, other in zip(found.annotations, wanted.annotations, strict=True):
        for name in ("id", "label", "bbox_xywh", "iscrowd", "area"):
            assert getattr(one, name) == getattr(other, name)
        if isinstance(other.segmentation, tuple):
            np.testing.assert_array_equal(
                np.concatenate(one.segmentation), np.concatenate(other.segmentation)
            )
            assert [p.dtype for p in one.segmentation] == [np.float64] * len(other.segmentation)
        else:
            assert one.segmentation == other.segmentation


# What is in them.


def test_images_and_objects_are_those_of_the_source(both):
    source, records = both
    assert len(records.images) == len(source.images) == 6
    for index, wanted in enumerate(source.images):
        pixels, found = records.read(index)
        assert_same_record(found, wanted)
        assert_same_record(records.images[index], wanted)
        np.testing.assert_array_equal(pixels, cv2.imread(source.image_path(wanted))[..., ::-1])


def test_what_the_rest_asks_a_data_set_for(both):
    source, records = both
    for name in ("categories", "category_ids", "category_names", "labels", "num_objects"):
        assert getattr(records, name) == getattr(source, name)
    assert (records.num_objects, records.num_crowds) == (13, 1) == (13, source.num_crowds)
    assert [image.id for image in records.images] == [image.id for image in source.images]
    assert [image.file_name for image in records.images[1:3]] == ["image_1.png", "image_2.png"]
    first = records.first(2)
    assert len(first.images) == 2 and first.num_objects == source.first(2).num_objects
    with pytest.raises(IndexError):
        first.images[2]


def test_masks_are_run_lengths_as_pycocotools_draws_them(pair):
    coco = COCO(str(pair.json))
    split = open_split(pair.records, "train")
    count = 0
    for example in split:
        for number, annotation_id in enumerate(example["objects"]["id"]):
            wanted = coco.annToRLE(coco.anns[int(annotation_id)])["counts"]
            wanted = wanted.encode() if isinstance(wanted, str) else wanted
            assert example["objects"]["counts"][number] == wanted
            category = example["objects"]["category_id"][number]
            assert category == coco.anns[int(annotation_id)]["category_id"]
            count += 1
    assert count == len(coco.anns) == 13


def test_tfds_reads_them_by_itself(pair):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(pair.records)
    assert {name: info.num_examples for name, info in builder.info.splits.items()} == {
        "train": 6,
        "val": 3,
    }
    example = builder.as_data_source("val")[1]
    wanted = cv2.imread(str(pair.images / example["file_name"].decode()))[..., ::-1]
    np.testing.assert_array_equal(example["image"], wanted)


def test_images_are_the_bytes_of_their_files(pair):
    for example in open_split(pair.records, "val"):
        name = example["file_name"].decode()
        assert example["image"] == (pair.images / name).read_bytes()


def test_lvis_fields(tmp_path):
    root = write_lvis(tmp_path / "data")
    prepare_instances("lvis", root / "lvis.json", root / "lvis", str(tmp_path / "out"), "train")
    source = load_coco(root / "lvis.json", root / "lvis")
    records = load_records(tmp_path / "out", "train")
    assert records.fingerprint == source.fingerprint
    for index in range(6):
        pixels, found = records.read(index)
        wanted = source.images[index]
        assert_same_record(found, wanted)
        assert found.file_name == f"{('val2017', 'train2017')[index % 2]}/image_{index}.png"
        assert found.neg_category_ids == ((3, 40) if index else ())
        assert found.not_exhaustive_category_ids == (7,) * index
        assert pixels.shape == (64, 64, 3)


# What training and evaluation make of them.


def config_for(pair, **changes):
    """The tiny config, whose images of 64 or 96 pixels are scaled to 48 or 80."""
    config = get_config("nano")
    config.data.root = str(pair.data)
    config.data.short_sides, config.data.long_side = (48, 80), 96
    config.data.max_instances = 2
    config.update_from_flattened_dict(changes)
    return config


def batches_of(config, steps):
    dataset = segmentation.load_train_set(config)
    plan = segmentation.build_train_plan(config, dataset)
    return list(segmentation.build_train_batches(config, dataset, plan, steps)(0))


def assert_same_batches(found, wanted):
    assert len(found) == len(wanted) > 0
    for one, other in zip(found, wanted, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)
        assert [x.dtype for x in jax.tree.leaves(one)] == [x.dtype for x in jax.tree.leaves(other)]


def test_training_gets_the_same_batches_bit_for_bit(pair):
    config = config_for(pair)
    wanted = batches_of(config, 6)
    assert sum(int(batch.instances.valid.sum()) for batch in wanted) > 20
    assert sum(int(batch.dropped_instances.sum()) for batch in wanted) > 0
    config.data.format, config.data.root = "records", str(pair.records)
    assert_same_batches(batches_of(config, 6), wanted)


def test_worker_processes_open_the_records_themselves(pair):
    config = config_for(pair)
    wanted = batches_of(config, 2)
    config.data.format, config.data.root = "records", str(pair.records)
    config.data.workers = 1
    assert_same_batches(batches_of(config, 2), wanted)


def test_evaluation_gets_the_same_batches_and_ground_truth(pair):
    config = config_for(pair)
    source = segmentation.load_val_set(config)
    wanted = list(segmentation.build_eval_batches(config, source)())
    config.data.format, config.data.root = "records", str(pair.records)
    records = segmentation.load_val_set(config)
    assert_same_batches(list(segmentation.build_eval_batches(config, records)()), wanted)
    assert load_ground_truth(records.annotation_path) == load_ground_truth(source.annotation_path)
    assert segmentation.first_images(records, 2).images[1].id == source.images[1].id


def test_an_opened_split_is_pickled_without_its_files(both):
    _, records = both
    rows = TrainRows(records, long_side=64, max_instances=4)
    wanted = rows(1, 64, True, (64, 96), 7)
    copy = pickle.loads(pickle.dumps(rows))
    assert "_source" not in copy.dataset.examples.__dict__
    for key, value in copy(1, 64, True, (64, 96), 7).items():
        np.testing.assert_array_equal(value, wanted[key])


def test_a_broken_image_is_stored_and_found_when_it_is_read(tmp_path):
    pair = write_pair(tmp_path)
    (pair.images / "image_2.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    shutil.rmtree(pair.records)
    prepare_instances("coco", pair.json, pair.images, str(pair.records), "train")
    records = load_records(pair.records, "train")
    for rows in (TrainRows(records, 64, 4), ImageRows(records, 64)):
        with pytest.raises(BrokenImage, match="records/train:image_2.png: .*truncated"):
            rows(2, 64, False, (64, 96), 0)
        assert rows(1, 64, False, (64, 96), 0)["valid"]


# Fingerprints.


def test_the_fingerprint_is_that_of_the_source_wherever_it_lies(pair, both, tmp_path):
    source, records = both
    shutil.copytree(pair.images, tmp_path / "elsewhere")
    shutil.copy(pair.json, tmp_path / "other.json")
    moved = load_coco(tmp_path / "other.json", tmp_path / "elsewhere")
    assert records.fingerprint == source.fingerprint == moved.fingerprint
    assert len(source.fingerprint) == 16 and int(source.fingerprint, 16)
    assert records.first(2).fingerprint != records.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["categories"][0].update(name="disc"),
        lambda d: d["images"][0].update(id=7),
        lambda d: d["images"][0].update(file_name="image_1.png"),
        lambda d: d["images"].reverse(),
        lambda d: d["annotations"].pop(),
        lambda d: d["annotations"][0].update(category_id=40),
        lambda d: d["annotations"][0].update(iscrowd=1),
        lambda d: d["annotations"][0].update(bbox=None),
        lambda d: d["annotations"][0]["bbox"].__setitem__(0, 4.0000001),
        lambda d: d["annotations"][1]["segmentation"][0].__setitem__(0, 36.0000001),
    ],
)
def test_any_change_of_the_content_changes_the_fingerprint(pair, tmp_path, change):
    shutil.copy(pair.json, tmp_path / "changed.json")
    before = load_coco(tmp_path / "changed.json", pair.images).fingerprint

    def change_and_drop(document):
        change(document)
        known = {image["id"] for image in document["images"]}
        kept = [a for a in document["annotations"] if a["image_id"] in known]
        document["annotations"] = kept

    edit_json(tmp_path / "changed.json", change_and_drop)
    assert load_coco(tmp_path / "changed.json", pair.images).fingerprint != before


# Bad input.


def shards_of(pair):
    return sorted(pair.records.glob("records-train.array_record-*"))


@pytest.mark.parametrize("name", ["shard", "train.index.json", "train.annotations.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_opening_names_the_file_that_is_missing_or_truncated(tmp_path, name, damage):
    pair = write_pair(tmp_path)
    path = shards_of(pair)[1] if name == "shard" else pair.records / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=f"{path.name}: {damage}"):
        load_records(pair.records, "train")
    load_records(pair.records, "val")


def test_an_altered_shard_is_named_when_it_is_read(tmp_path):
    pair = write_pair(tmp_path)
    path = shards_of(pair)[1]
    data = bytearray(path.read_bytes())
    data[1 << 16 : (1 << 16) + 64] = bytes(64)
    path.write_bytes(bytes(data))
    records = load_records(pair.records, "train")
    records.read(0)
    with pytest.raises(InputError, match=f"{path.name}: example 2 cannot be read"):
        records.read(2)


def test_an_altered_index_or_manifest_is_named(tmp_path):
    pair = write_pair(tmp_path)
    for path, old, new in (
        (pair.records / "train.index.json", "64", "65"),
        (pair.records / "val.manifest.json", "coco", "lvis"),
    ):
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match="train.index.json: altered"):
        load_records(pair.records, "train")
    with pytest.raises(InputError, match="val.manifest.json: .*altered"):
        load_records(pair.records, "val")


def test_splits_that_are_not_there(pair, tmp_path):
    with pytest.raises(InputError, match="no split 'test', it has train, val"):
        load_records(pair.records, "test")
    with pytest.raises(InputError, match="no such folder of records"):
        load_records(tmp_path / "nothing", "train")
    with pytest.raises(InputError, match="split 'a b'"):
        load_records(pair.records, "a b")


# TensorFlow.

WITHOUT_TENSORFLOW = """
    import sys
    from importlib.machinery import PathFinder

    class HidesTensorFlow:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name.split(".")[0] == "tensorflow":
                return None
            return PathFinder.find_spec(name, path, target)

    sys.meta_path = [HidesTensorFlow if f is PathFinder else f for f in sys.meta_path]
    try:
        import tensorflow
    except ModuleNotFoundError:
        pass
    else:
        sys.exit("TensorFlow is still there")

    from solojax.cli.main import main

    code = main(sys.argv[2:])
    from solojax.data.records import load_records

    records = load_records(sys.argv[1], "train")
    pixels, record = records.read(4)
    print(code, len(records.images), pixels.shape, len(record.annotations))
    print(sorted(m for m in sys.modules if m.split(".")[0] in ("tensorflow", "tf_keras", "keras")))
"""


def test_writing_and_reading_without_tensorflow(pair, tmp_path):
    words = ["prepare", "coco", "--annotations", pair.json, "--images", pair.images]
    words += ["--output", tmp_path / "out", "--shards", 2]
    script = [sys.executable, "-c", textwrap.dedent(WITHOUT_TENSORFLOW), tmp_path / "out", *words]
    done = subprocess.run(list(map(str, script)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    *_, result, modules = done.stdout.splitlines()
    assert result == "0 6 (64, 64, 3) 2" and modules == "[]"


def test_the_annotations_beside_the_records_are_the_source(pair):
    assert (pair.records / "train.annotations.json").read_bytes() == pair.json.read_bytes()
    assert {c["id"] for c in CATEGORIES} == set(load_records(pair.records, "train").category_ids)
    manifest = json.loads((pair.records / "train.manifest.json").read_text())
    assert manifest["kind"] == "coco" and len(manifest["shards"]) == 3
