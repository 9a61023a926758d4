"""Scoring a model on a COCO data set: batches, predictions, results, average precision."""

from __future__ import annotations

import json
from pathlib import Path

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from solojax.build import build_eval_batches, first_images, load_val_set
from solojax.data.coco import CocoDataset
from solojax.evaluators.coco import CocoEvaluator
from solojax.inference import coco_results, evaluation_mesh, predict_batches
from solojax.structures import PyTree
from solojax.tasks import Task


class Evaluation:
    """Everything that scoring needs, made once and run as often as training asks.

    Args:
      task: predicts.
      config: its `evaluation` and `data` say what on and how.
      dataset: the images; the config's validation set when None.
    """

    def __init__(self, task: Task, config: ConfigDict, dataset: CocoDataset | None = None):
        dataset = load_val_set(config) if dataset is None else dataset
        self._dataset = first_images(dataset, config.evaluation.max_images)
        self._evaluator = CocoEvaluator(
            _annotations_of(self._dataset, whole=len(self._dataset.images) == len(dataset.images)),
            backend=config.evaluation.backend,
            class_agnostic=config.evaluation.class_agnostic,
        )
        self._predict = jax.jit(task.predict)
        self._make_batches = build_eval_batches(config, self._dataset)
        self._mesh = evaluation_mesh(config.evaluation.batch_size)

    def predict(self, variables: PyTree) -> list[dict]:
        """COCO results of the data set, under a progress bar."""
        batches = self._make_batches()
        predictions = predict_batches(self._predict, variables, batches, self._mesh)
        with tqdm(total=len(self._dataset.images), desc="evaluate", unit="image", leave=False) as bar:

            def counted():
                for batch, detections in predictions:
                    yield batch, detections
                    bar.update(int(batch.valid.sum()))

            image_ids = [image.id for image in self._dataset.images]
            return list(coco_results(counted(), image_ids, self._dataset.category_ids))

    def score(self, results: list[dict]) -> dict:
        """The evaluate form: {"mask": …, "box": …, "per_class": …}."""
        return self._evaluator.run(results)

    def run(self, variables: PyTree) -> dict[str, float]:
        """Flat metrics, "mask/AP" and so on, for the training loop."""
        return flatten_figures(self.score(self.predict(variables)))


def flatten_figures(figures: dict) -> dict[str, float]:
    """{"mask": {"AP": x}} to {"mask/AP": x}; the classes' own figures are left out."""
    return {
        f"{kind}/{name}": value
        for kind in ("mask", "box")
        for name, value in figures.get(kind, {}).items()
    }


def score_file(predictions: Path, annotations: Path, *, backend: str, class_agnostic: bool) -> dict:
    """The evaluate form of an existing results file."""
    from solojax.evaluators.results import load_results

    evaluator = CocoEvaluator(annotations, backend=backend, class_agnostic=class_agnostic)
    return evaluator.run(load_results(predictions), source=str(predictions))


def write_figures(figures: dict, path: Path) -> None:
    """Writes the evaluate form as json."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=2) + "\n")


def figures_table(figures: dict) -> str:
    """The evaluate form as lines for a person."""
    names = list(next(iter(figures[kind] for kind in ("mask", "box") if kind in figures)))
    lines = ["        " + "".join(f"{name:>8}" for name in names)]
    for kind in ("mask", "box"):
        if kind in figures:
            values = "".join(f"{figures[kind][name]:8.3f}" for name in names)
            lines.append(f"{kind:<8}{values}")
    return "\n".join(lines)


def _annotations_of(dataset: CocoDataset, whole: bool) -> str | dict:
    """The annotation file, or its contents for the data set's images alone."""
    if whole:
        return dataset.annotation_path
    contents = json.loads(Path(dataset.annotation_path).read_text())
    kept = {image.id for image in dataset.images}
    return contents | {
        "images": [image for image in contents["images"] if image["id"] in kept],
        "annotations": [a for a in contents["annotations"] if a["image_id"] in kept],
    }
