"""Scoring a model on a COCO data set: batches, predictions, results, average precision."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from solojax.build import build_eval_batches, first_images, load_val_set
from solojax.data.coco import CocoDataset
from solojax.evaluators.coco import CocoEvaluator
from solojax.evaluators.error_analysis import replace_masks_with_gt
from solojax.evaluators.results import KINDS, kinds_in_results, load_results
from solojax.inference import coco_results, evaluation_mesh, predict_batches
from solojax.structures import PyTree
from solojax.tasks import Task
from solojax.train.progress import progress_bar

_logger = logging.getLogger(__name__)
_UNDEFINED = -1.0  # what COCO's figures are where there is nothing to find
_MOST_CLASSES_SHOWN = 20


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
        self._category_ids = _ids_of_labels(self._dataset, task, config)
        self._mask_threshold = config.evaluation.mask_threshold
        self._predict = jax.jit(task.predict)
        self._make_batches = build_eval_batches(config, self._dataset)
        self._mesh = evaluation_mesh(config.evaluation.batch_size)

    @property
    def num_images(self) -> int:
        """How many images are scored."""
        return len(self._dataset.images)

    def predict(self, variables: PyTree) -> list[dict]:
        """COCO results of the data set, under a progress bar.

        Images that cannot be read have no results; the log says how many they are.

        Raises:
          InputError: an image has not the size that the annotations give it.
        """
        predictions = predict_batches(self._predict, variables, self._make_batches(), self._mesh)
        image_ids = [image.id for image in self._dataset.images]
        unread = overflow = 0
        with progress_bar(len(image_ids), description="evaluate", unit="image", leave=False) as bar:

            def counted():
                nonlocal unread, overflow
                for batch, detections in predictions:
                    yield batch, detections
                    is_image = batch.image_index >= 0
                    unread += int(np.sum(is_image & ~batch.valid))
                    overflow += int(np.sum(detections.overflow[batch.valid]))
                    bar.update(int(is_image.sum()))

            results = list(
                coco_results(counted(), image_ids, self._category_ids, self._mask_threshold)
            )
        if unread:
            _logger.warning(
                "%d of %d images could not be read: they count as images without detections",
                unread,
                len(image_ids),
            )
        if overflow:
            _logger.warning(
                "%d candidates found no room among evaluation.max_candidates: raise it",
                overflow,
            )
        return results

    def score(self, results: list[dict]) -> dict:
        """The evaluate form: {"mask": …, "box": …, "per_class": …}."""
        return self._evaluator.run(results)

    def run(self, variables: PyTree) -> dict[str, float]:
        """Flat metrics, "mask/AP" and so on, for the training loop."""
        return flatten_figures(self.score(self.predict(variables)))


def _ids_of_labels(dataset: CocoDataset, task: Task, config: ConfigDict) -> tuple[int, ...]:
    """The category id for each of the network's labels; all the first where classes are ignored."""
    if not config.evaluation.class_agnostic:
        return tuple(dataset.category_ids)
    return (dataset.category_ids[0],) * task.num_classes


def flatten_figures(figures: dict) -> dict[str, float]:
    """{"mask": {"AP": x}} to {"mask/AP": x}; the classes' own figures are left out."""
    return {
        f"{kind}/{name}": value for kind in KINDS for name, value in figures.get(kind, {}).items()
    }


def score_file(
    predictions: Path,
    annotations: Path,
    *,
    backend: str,
    class_agnostic: bool,
    perfect_masks: bool = False,
) -> dict:
    """The evaluate form of an existing results file; of boxes alone where it has no masks.

    `perfect_masks` replaces every mask by the ground-truth mask that it overlaps most.
    """
    results = load_results(predictions)
    if perfect_masks:
        results = replace_masks_with_gt(results, annotations, source=str(predictions))
    evaluator = CocoEvaluator(
        annotations,
        backend=backend,
        class_agnostic=class_agnostic,
        kinds=kinds_in_results(results),
    )
    return evaluator.run(results, source=str(predictions))


def write_json(contents: dict | list, path: Path) -> None:
    """Writes a json file that is either whole or, where writing fails, what it was before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_text(json.dumps(contents, indent=2 if isinstance(contents, dict) else None))
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def figures_table(figures: dict) -> str:
    """The evaluate form as lines for a person; a dash stands where there is nothing to find."""
    kinds = [kind for kind in KINDS if kind in figures]
    names = list(figures[kinds[0]])
    lines = ["        " + "".join(f"{name:>8}" for name in names)]
    lines += [
        f"{kind:<8}" + "".join(_cell(figures[kind][name]) for name in names) for kind in kinds
    ]
    per_class = figures["per_class"]
    if 1 < len(per_class) <= _MOST_CLASSES_SHOWN:
        width = max(map(len, per_class))
        columns = [f"{kind}/AP" for kind in kinds]
        lines += ["", " " * width + "".join(f"{column:>9}" for column in columns)]
        lines += [
            f"{name:<{width}}" + "".join(f" {_cell(values[column])}" for column in columns)
            for name, values in per_class.items()
        ]
    return "\n".join(lines)


def _cell(figure: float) -> str:
    return f"{'-':>8}" if figure == _UNDEFINED else f"{figure:8.3f}"


def _annotations_of(dataset: CocoDataset, whole: bool) -> str | dict:
    """The annotation file, or its contents for the data set's images alone."""
    if whole:
        return dataset.annotation_path
    contents = json.loads(Path(dataset.annotation_path).read_text(encoding="utf-8-sig"))
    kept = {image.id for image in dataset.images}
    return contents | {
        "images": [image for image in contents["images"] if image["id"] in kept],
        "annotations": [a for a in contents["annotations"] if a["image_id"] in kept],
    }
