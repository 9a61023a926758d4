"""Detections as labels: each with its own embedding, and files that are there are left alone."""

from __future__ import annotations

import dataclasses
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from solojax.config import load_config
from solojax.data.coco import CocoDataset
from solojax.data.instances import ImageRecord
from solojax.data.label_file import load_labels, read_info
from solojax.errors import InputError
from solojax.free_solo import labelling, pseudo_labels
from solojax.free_solo.pseudo_labels import LabelRule, LabelSummary, summarize, write_labels
from solojax.structures import Batch, Detections, Instances

M, E = 3, 4
VALID = np.array([[True, True, False], [True, False, False], [True, True, True]])
SCORES = np.array([[0.9, 0.2, 0.0], [0.8, 0.0, 0.0], [0.7, 0.6, 0.5]], np.float32)


def detections():
    """Row b's detection m has the embedding (b, m, b, m)."""
    masks = np.zeros((3, M, 8, 8), np.float32)
    masks[:, :, 2:6, 1:5] = 1.0
    rows, columns = np.meshgrid(np.arange(3), np.arange(M), indexing="ij")
    return Detections(
        scores=SCORES, labels=np.zeros((3, M), np.int32), boxes=np.zeros((3, M, 4), np.float32),
        masks=masks, valid=VALID, overflow=np.zeros(3, np.int32),
        embeddings=np.stack([rows, columns, rows, columns], -1).astype(np.float32),
    )  # fmt: skip


def batch():
    none = np.zeros((3, 0))
    sizes = np.full((3, 2), 32, np.int32)
    return Batch(
        image=np.zeros((3, 32, 32, 3), np.uint8), image_size=sizes, original_size=sizes,
        valid=np.array([True, True, False]), image_index=np.zeros(3, np.int32),
        seed=np.zeros(3, np.uint32), dropped_instances=np.zeros(3, np.int32),
        instances=Instances(none, none, none, none, none),
    )  # fmt: skip


ROW_OF_IMAGE = {7: 0, 5: 1, 9: 2}


def predict_last_first(predict, variables, dataset, mesh):
    """Batches of one image, and one row that is none."""
    for index, image in reversed(list(enumerate(dataset.images))):
        rows = [ROW_OF_IMAGE[image.id], 2]
        images, found = jax.tree.map(lambda x, rows=rows: x[rows], (batch(), detections()))
        yield images.replace(image_index=np.array([index, -1], np.int32)), found


@pytest.fixture
def model(monkeypatch):
    """A model that finds `detections` in a data set of three images, in its own order."""
    config = load_config("configs/freesolo.py:tiny")
    monkeypatch.setattr(
        pseudo_labels, "build_eval_batches", lambda _, dataset, **__: lambda: dataset
    )
    monkeypatch.setattr(pseudo_labels, "jit_predict", lambda task, mesh: None)
    monkeypatch.setattr(pseudo_labels, "predict_batches", predict_last_first)
    return types.SimpleNamespace(
        task=None, config=config, category_ids=(1,), step=3, variables={"a": np.ones(2, np.float32)}
    )


@pytest.fixture
def dataset(tmp_path):
    images = tuple(ImageRecord(n, f"{n}.png", 32, 32, ()) for n in (5, 7, 9))
    return CocoDataset(str(tmp_path), str(tmp_path), (), images)


def test_labels_keep_their_own_embeddings(model, dataset, tmp_path):
    output = tmp_path / "labels.json"
    assert write_labels(model, dataset, output, LabelRule(score_threshold=0.1), "runs/a")
    labels = load_labels(output, tmp_path)
    found = {
        image.id: [annotation.embedding.tolist() for annotation in image.annotations]
        for image in labels.images
    }
    # Image 9 cannot be read.
    assert found == {5: [[1, 0, 1, 0]], 7: [[0, 0, 0, 0], [0, 1, 0, 1]]}
    assert labels.images[0].annotations[0].bbox_xywh == (4, 8, 16, 16)
    assert read_info(output).checkpoint == "step 3 of runs/a"
    assert summarize(labels) == LabelSummary(images=2, objects=3, without_objects=0)


def test_processes_that_do_not_divide_the_batch_write_the_same_label_file(
    model, dataset, tmp_path, monkeypatch
):
    """They fill their batches up; of that neither the file nor its fingerprint says anything."""
    alone, output = tmp_path / "alone.json", tmp_path / "labels.json"
    model.config.evaluation.batch_size = 1
    assert write_labels(model, dataset, alone, LabelRule(), "runs/a")
    sizes = []

    def build_batches(config, dataset, **process):
        sizes.append((config.evaluation.batch_size, process["process_count"]))
        return lambda: dataset

    monkeypatch.setattr(pseudo_labels, "build_eval_batches", build_batches)
    monkeypatch.setattr(pseudo_labels, "evaluation_mesh", lambda size: sizes.append(size))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(labelling, "gather_json", lambda each: [each])
    assert write_labels(model, dataset, output, LabelRule(), "runs/a")
    assert sizes == [2, (2, 2)] and model.config.evaluation.batch_size == 1
    assert output.read_bytes() == alone.read_bytes()


def test_the_first_process_merges_parts_that_its_storage_does_not_list(
    model, dataset, tmp_path, monkeypatch
):
    """It knows them from those that have written them."""
    alone, output = tmp_path / "alone.json", tmp_path / "labels.json"
    assert write_labels(model, dataset, alone, LabelRule(), "runs/a")
    monkeypatch.setattr(Path, "glob", lambda *_: [])
    assert write_labels(model, dataset, output, LabelRule(), "runs/a")
    assert output.read_bytes() == alone.read_bytes()


def test_images_without_labels_stay_in_the_file(model, dataset, tmp_path):
    output = tmp_path / "labels.json"
    assert write_labels(model, dataset, output, LabelRule(score_threshold=0.85), "runs/a")
    labels = load_labels(output, tmp_path)
    assert [len(image.annotations) for image in labels.images] == [0, 1]
    assert summarize(labels) == LabelSummary(images=2, objects=1, without_objects=1)


def test_a_run_that_was_stopped_goes_on(model, dataset, tmp_path, monkeypatch):
    whole, output = tmp_path / "whole.json", tmp_path / "labels.json"
    assert write_labels(model, dataset, whole, LabelRule(), "runs/a")
    seen, choose = [], LabelRule.choose

    def interrupted(rule, results, width):
        seen.append([result["image_id"] for result in results])
        if len(seen) == 3:
            raise KeyboardInterrupt
        return choose(rule, results, width)

    monkeypatch.setattr(LabelRule, "choose", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_labels(model, dataset, output, LabelRule(), "runs/a")
    assert not output.exists()
    assert write_labels(model, dataset, output, LabelRule(), "runs/a")
    assert seen == [[], [7, 7], [5], [5]]  # image 5 alone is done again
    assert output.read_bytes() == whole.read_bytes()
    assert not (tmp_path / "labels.json.parts").exists()


def test_a_file_of_the_same_model_and_rule_stays_and_others_are_refused(model, dataset, tmp_path):
    output, rule = tmp_path / "labels.json", LabelRule()
    assert write_labels(model, dataset, output, rule, "runs/a")
    assert not write_labels(model, dataset, output, rule, "runs/a")
    with pytest.raises(InputError, match="other score_threshold"):
        write_labels(model, dataset, output, LabelRule(score_threshold=0.5), "runs/a")
    model.config.model.max_positives += 1  # of training alone
    assert not write_labels(model, dataset, output, rule, "runs/a")
    std = model.config.model.pixel_std
    model.config.model.pixel_std = (1.0, 1.0, 1.0)
    with pytest.raises(InputError, match=": other network;"):
        write_labels(model, dataset, output, rule, "runs/a")
    model.config.model.pixel_std = std
    (tmp_path / "5.png").write_bytes(b"another photo")
    with pytest.raises(InputError, match=": other image_files;"):
        write_labels(model, dataclasses.replace(dataset), output, rule, "runs/a")
    model.variables["a"][0] = 2
    with pytest.raises(InputError, match="other weights"):
        write_labels(model, dataset, output, rule, "runs/a")
