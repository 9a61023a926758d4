"""Scoring: figures in every form they are shown in, and the files they are kept in."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import jax.numpy as jnp
import pytest
from helpers.tiny import random_variables
from helpers.tiny_config import get_config
from helpers.tiny_run import use_nano_network, write_data

from solojax.builders.segmentation import build_task, load_val_set
from solojax.data.loader import stack_examples
from solojax.data.transforms import empty_example
from solojax.errors import InputError
from solojax.inference.evaluation import (
    Evaluation,
    figures_table,
    flatten_figures,
    score_file,
    write_json,
)
from solojax.structures import Detections

FIGURES = {
    "mask": {"AP": 0.5, "AP50": 0.75, "APl": -1.0},
    "box": {"AP": 0.25, "AP50": 1.0, "APl": -1.0},
    "per_class": {"a": {"mask/AP": 0.5, "box/AP": -1.0}, "long name": {"mask/AP": 1, "box/AP": 0}},
}


@pytest.fixture
def config(tmp_path):
    config = get_config("nano")
    config.data.root = str(write_data(tmp_path / "data"))
    return config


@pytest.fixture
def task(config, monkeypatch):
    use_nano_network(monkeypatch)
    return build_task(config, 5)


def truth_as_results(document: dict) -> list[dict]:
    """The annotations with run lengths of a document, as perfect results."""
    return [
        {
            "image_id": annotation["image_id"],
            "category_id": annotation["category_id"],
            "score": 0.9,
            "segmentation": annotation["segmentation"],
        }
        for annotation in document["annotations"]
    ]


def run_lengths_alone(document: dict) -> dict:
    """The document without its polygons."""
    kept = [a for a in document["annotations"] if isinstance(a["segmentation"], dict)]
    return document | {"annotations": kept}


def test_the_truth_scores_one(config, task, tmp_path):
    path = tmp_path / "data" / "val.json"
    document = run_lengths_alone(json.loads(path.read_text()))
    path.write_text(json.dumps(document))
    figures = Evaluation(task, config).score(truth_as_results(document))
    assert figures["mask"]["AP"] == figures["box"]["AP"] == pytest.approx(1.0)
    (tmp_path / "results.json").write_text(json.dumps(truth_as_results(document)))
    from_file = score_file(
        tmp_path / "results.json", path, backend="reference", class_agnostic=False
    )
    assert from_file["mask"] == pytest.approx(figures["mask"])


def test_training_may_log_figures_without_classes(config, task, tmp_path):
    """By `evaluation.class_agnostic`: the classes of the results are of no account."""
    path = tmp_path / "data" / "val.json"
    document = run_lengths_alone(json.loads(path.read_text()))
    path.write_text(json.dumps(document))
    results = [entry | {"category_id": 4711} for entry in truth_as_results(document)]
    config.evaluation.class_agnostic = True
    logged = flatten_figures(Evaluation(task, config).score(results))
    assert logged["mask/AP"] == logged["box/AR100"] == pytest.approx(1.0)
    assert logged["box/CorLoc"] == 1.0 and "mask/CorLoc" not in logged


@pytest.mark.parametrize("backend", ["fast", "reference"])
def test_without_classes_results_keep_theirs_and_score_as_if_they_had_none(
    config, task, tmp_path, backend
):
    """What the network calls as the data set does: figures are as with one id for all results."""
    config.evaluation.class_agnostic, config.evaluation.backend = True, backend
    dataset = load_val_set(config)
    variables = random_variables(task, stack_examples([empty_example((64, 64), 0)]))
    figures = {}
    for names in (None, dataset.category_names, ("a", "b", "c", "d", "e")):
        evaluation = Evaluation(task, config, dataset, names)
        results = evaluation.predict(variables)
        figures[names] = evaluation.score(results)
        used = {result["category_id"] for result in results}
        if names in (None, dataset.category_names):
            assert used > {dataset.category_ids[0]} and used <= set(dataset.category_ids)
            scores = [(result["image_id"], result["score"]) for result in results]
            assert len(set(scores)) == len(scores)  # between equal ones the class decides
        else:
            assert used == {dataset.category_ids[0]}
    known, same, others = figures.values()
    assert known == same == others and known["mask"]["AR100"] > 0


def test_the_first_images_are_scored_as_if_there_were_no_others(config, task, tmp_path):
    """Also where the file begins with a byte order mark."""
    path = tmp_path / "data" / "val.json"
    document = run_lengths_alone(json.loads(path.read_text()))
    path.write_text("\ufeff" + json.dumps(document), encoding="utf-8")
    config.evaluation.max_images = 2
    first = Evaluation(task, config)
    kept = {image["id"] for image in document["images"][:2]}
    results = [r for r in truth_as_results(document) if r["image_id"] in kept]
    assert first.num_images == 2
    assert first.score(results)["mask"]["AP"] == pytest.approx(1.0)
    with pytest.raises(InputError, match="is not in the annotations"):
        first.score(truth_as_results(document))


def test_the_data_set_may_be_given(config, task):
    dataset = load_val_set(config)
    assert Evaluation(task, config, dataset).num_images == 3


class FullHouse:
    """A task that finds nothing, since five candidates of every row had no room."""

    def predict(self, variables, batch):
        rows, (height, width) = batch.image.shape[0], batch.image.shape[1:3]
        return Detections(
            scores=jnp.zeros((rows, 1)),
            labels=jnp.zeros((rows, 1), jnp.int32),
            boxes=jnp.zeros((rows, 1, 4)),
            masks=jnp.zeros((rows, 1, height // 4, width // 4)),
            valid=jnp.zeros((rows, 1), bool),
            overflow=jnp.full(rows, 5),
        )


def test_what_is_left_out_is_counted_over_the_images_alone(config, caplog):
    """Three images in a batch of four, one of them broken."""
    (Path(config.data.root) / "images" / "image_8.png").write_bytes(b"")
    assert Evaluation(FullHouse(), config).predict({}) == []
    assert "10 candidates found no room among evaluation.max_candidates" in caplog.text
    assert "1 of 3 images could not be read" in caplog.text


def test_flat_figures():
    assert flatten_figures(FIGURES) == {
        "mask/AP": 0.5, "mask/AP50": 0.75, "mask/APl": -1.0,
        "box/AP": 0.25, "box/AP50": 1.0, "box/APl": -1.0,
    }  # fmt: skip
    assert flatten_figures({"box": {"AP": 0.5}, "per_class": {}}) == {"box/AP": 0.5}


def test_the_table():
    assert figures_table(FIGURES).splitlines() == [
        "              AP    AP50     APl",
        "mask       0.500   0.750       -",
        "box        0.250   1.000       -",
        "",
        "           mask/AP   box/AP",
        "a            0.500        -",
        "long name    1.000    0.000",
    ]
    alone = {"mask": {"AP": 0.5}, "box": {"AP": 0.25, "CorLoc": 1.0}, "per_class": {}}
    assert figures_table(alone).splitlines() == [
        "              AP  CorLoc",
        "mask       0.500",
        "box        0.250   1.000",
    ]
    boxes = {"box": FIGURES["box"], "per_class": {}}
    assert [line.split() for line in figures_table(boxes).splitlines()] == [
        ["AP", "AP50", "APl"],
        ["box", "0.250", "1.000", "-"],
    ]


def test_a_table_of_very_many_classes_leaves_them_out():
    many = {str(number): {"mask/AP": 0.5, "box/AP": 0.5} for number in range(80)}
    assert len(figures_table(FIGURES | {"per_class": many}).splitlines()) == 3


def test_json_files_are_whole_or_what_they_were(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "figures.json"
    write_json({"a": 1}, path)
    assert json.loads(path.read_text()) == {"a": 1}

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        write_json({"a": 2}, path)
    assert json.loads(path.read_text()) == {"a": 1} and list(path.parent.iterdir()) == [path]
