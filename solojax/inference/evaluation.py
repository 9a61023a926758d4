"""Scoring a model on a COCO data set: batches, predictions, results, average precision."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from solojax.builders.segmentation import (
    build_eval_batches,
    first_images,
    load_val_set,
    with_whole_batches,
)
from solojax.data.instances import InstanceDataset
from solojax.data.label_file import CATEGORY
from solojax.evaluators.coco import CocoEvaluator
from solojax.evaluators.error_analysis import replace_masks_with_gt
from solojax.evaluators.ground_truth import kinds_in_annotations
from solojax.evaluators.label_results import load_predictions
from solojax.evaluators.results import KINDS, kinds_in_results
from solojax.inference.segmenter import coco_results, jit_predict, predict_batches
from solojax.structures import Batch, Detections, PyTree
from solojax.tasks import Task
from solojax.train.progress import progress_bar
from solojax.train.sharding import evaluation_mesh, gather_json

_logger = logging.getLogger(__name__)
_UNDEFINED = -1.0  # what COCO's figures are where there is nothing to find
_MOST_CLASSES_SHOWN = 20


class Evaluation:
    """Everything that scoring needs, made once and run as often as training asks.

    Where there are several processes, all make one and call its methods together. Each predicts
    its rows of every batch; results and figures are the same on all, and the same as one process
    has that gives each device as many images.

    Args:
      task: predicts.
      config: its `evaluation` and `data` say what on and how.
      dataset: the images; the config's validation set when None.
      class_names: of the network's labels; the data set's when None. Where classes are ignored they
        may be others than the data set's: then all results have its first category's id.
      kinds: of figures, see `CocoEvaluator`.
    """

    def __init__(
        self,
        task: Task,
        config: ConfigDict,
        dataset: InstanceDataset | None = None,
        class_names: Sequence[str] | None = None,
        kinds: Sequence[str] = KINDS,
    ):
        config = with_whole_batches(config, jax.process_count())
        dataset = load_val_set(config) if dataset is None else dataset
        self._dataset = first_images(dataset, config.evaluation.max_images)
        self._evaluator = CocoEvaluator(
            _annotations_of(self._dataset, whole=len(self._dataset.images) == len(dataset.images)),
            backend=config.evaluation.backend,
            class_agnostic=config.evaluation.class_agnostic,
            kinds=kinds,
        )
        self._category_ids = _ids_of_labels(
            self._dataset, class_names if config.evaluation.class_agnostic else None
        )
        self._mask_threshold = config.evaluation.mask_threshold
        self._mesh = evaluation_mesh(config.evaluation.batch_size)
        self._predict = jit_predict(task, self._mesh)
        self._make_batches = build_eval_batches(
            config,
            self._dataset,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    @property
    def num_images(self) -> int:
        """How many images are scored."""
        return len(self._dataset.images)

    def predict(self, variables: PyTree) -> list[dict]:
        """COCO results of the data set, under a progress bar: by image, best first.

        The images stand in the data set's order. Those that cannot be read have no results; the
        log says how many they are.

        Raises:
          InputError: an image has not the size that the annotations give it.
        """
        image_ids = [image.id for image in self._dataset.images]
        counts = Counter()
        own = list(
            coco_results(
                self._counted(variables, counts),
                image_ids,
                self._category_ids,
                self._mask_threshold,
            )
        )
        parts = gather_json({"results": own, "counts": counts})
        totals = sum((Counter(part["counts"]) for part in parts), Counter())
        _warn_of_omissions(totals, self.num_images)
        position = {image_id: index for index, image_id in enumerate(image_ids)}
        results = [result for part in parts for result in part["results"]]
        return sorted(results, key=lambda result: position[result["image_id"]])

    def _counted(self, variables: PyTree, counts: Counter) -> Iterator[tuple[Batch, Detections]]:
        """Predictions of this process's rows; counts what is left out."""
        processes, first = jax.process_count(), jax.process_index() == 0
        with progress_bar(
            self.num_images, description="evaluate", unit="image", leave=False, enabled=first
        ) as bar:
            for batch, detections in predict_batches(
                self._predict, variables, self._make_batches(), self._mesh
            ):
                # Nothing is scored by them, and results with them are ten times as long.
                yield batch, detections.replace(embeddings=None)
                is_image = batch.image_index >= 0
                counts["unread"] += int(np.sum(is_image & ~batch.valid))
                counts["overflow"] += int(np.sum(detections.overflow[batch.valid]))
                # The others have as many images, save in the last batch of a canvas.
                bar.update(min(int(is_image.sum()) * processes, self.num_images - bar.n))

    def score(self, results: list[dict]) -> dict:
        """The evaluate form: {"mask": …, "box": …, "per_class": …}; process 0 computes it."""
        figures = self._evaluator.run(results) if jax.process_index() == 0 else None
        return gather_json(figures)[0]

    def run(self, variables: PyTree) -> dict[str, float]:
        """Flat metrics, "mask/AP" and so on, for the training loop."""
        return flatten_figures(self.score(self.predict(variables)))


def _warn_of_omissions(counts: Counter, num_images: int) -> None:
    """Says what was left out, if anything."""
    if counts["unread"]:
        _logger.warning(
            "%d of %d images could not be read: they count as images without detections",
            counts["unread"],
            num_images,
        )
    if counts["overflow"]:
        _logger.warning(
            "%d candidates found no room among evaluation.max_candidates: raise it",
            counts["overflow"],
        )


def _ids_of_labels(dataset: InstanceDataset, class_names: Sequence[str] | None) -> tuple[int, ...]:
    """The category id for each of the network's labels; all the first where they are others."""
    if class_names is None or tuple(class_names) == dataset.category_names:
        return dataset.category_ids
    # Images that were read without their objects come without classes too.
    return (*dataset.category_ids, CATEGORY.id)[:1] * len(class_names)


def flatten_figures(figures: dict) -> dict[str, float]:
    """{"mask": {"AP": x}} to {"mask/AP": x}; the classes' own figures are left out."""
    return {
        f"{kind}/{name}": value for kind in KINDS for name, value in figures.get(kind, {}).items()
    }


def kinds_to_score(annotations: str | Path) -> tuple[str, ...]:
    """What can be scored against annotations; the log says it where they have boxes alone."""
    kinds = kinds_in_annotations(annotations)
    if "mask" not in kinds:
        _logger.warning("%s: no object has a segmentation: boxes alone are scored", annotations)
    return kinds


def score_file(
    predictions: Path,
    annotations: Path,
    *,
    backend: str,
    class_agnostic: bool,
    perfect_masks: bool = False,
) -> dict:
    """The evaluate form of an existing results or label file.

    Boxes alone are scored where the results have no masks, or the annotations none.

    `perfect_masks` replaces every mask by the ground-truth mask that it overlaps most.

    Raises:
      InputError: as `load_predictions` and `CocoEvaluator`.
    """
    results = load_predictions(predictions, annotations, class_agnostic=class_agnostic)
    if perfect_masks:
        results = replace_masks_with_gt(results, annotations, source=str(predictions))
    kinds = kinds_to_score(annotations)
    evaluator = CocoEvaluator(
        annotations,
        backend=backend,
        class_agnostic=class_agnostic,
        kinds=[kind for kind in kinds_in_results(results) if kind in kinds],
    )
    return evaluator.run(results, source=str(predictions))


def write_json(contents: dict | list, path: Path) -> None:
    """Writes a json file that is either whole or, where writing fails, what it was before.

    Of several processes the first alone writes.
    """
    if jax.process_index() != 0:
        return
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
    names = list(dict.fromkeys(name for kind in kinds for name in figures[kind]))
    lines = ["        " + "".join(f"{name:>8}" for name in names)]
    for kind in kinds:
        cells = (_cell(figures[kind][name]) if name in figures[kind] else 8 * " " for name in names)
        lines.append(f"{kind:<8}{''.join(cells)}".rstrip())
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


def _annotations_of(dataset: InstanceDataset, whole: bool) -> str | dict:
    """The annotation file, or its contents for the data set's images alone."""
    if whole:
        return dataset.annotation_path
    contents = json.loads(epath.Path(dataset.annotation_path).read_bytes().decode("utf-8-sig"))
    kept = {image.id for image in dataset.images}
    return contents | {
        "images": [image for image in contents["images"] if image["id"] in kept],
        "annotations": [a for a in contents["annotations"] if a["image_id"] in kept],
    }
