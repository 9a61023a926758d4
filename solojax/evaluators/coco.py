"""Mask and box AP in COCO's way, by faster-coco-eval or by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import faster_coco_eval
import numpy as np
import pycocotools.coco
import pycocotools.cocoeval
from pycocotools import mask as coco_mask

from solojax.errors import InputError
from solojax.evaluators.corloc import corloc
from solojax.evaluators.entries import is_whole
from solojax.evaluators.ground_truth import load_ground_truth
from solojax.evaluators.results import KINDS, check_results

_IOU_TYPES = {"mask": "segm", "box": "bbox"}
_ANY_CLASS = 1


class CocoEvaluator:
    """Scores COCO results against one annotation file: AP and AR as the COCO server counts them.

    IoU thresholds 0.5 to 0.95, the 100 best detections per image and class, areas up to 32², up to
    96² and beyond. Crowds are regions where detections are not counted. An object's area is the
    annotation's; a detection's is its mask's for mask figures and its box's for box figures.
    (pycocotools' own loader takes the box's area for both wherever results carry a bbox, which
    moves APs, APm and APl of masks.)

    Args:
      annotations: the json file or its contents, which are not changed.
      backend: "fast" (faster-coco-eval) or "reference" (pycocotools); the figures are the same.
      class_agnostic: ignore categories. All objects of an image and all its detections, whatever
        category ids these carry, are matched as one class; the 100 best count over all of them.
      kinds: which figures to compute; without "mask", results and annotations need no masks.

    Raises:
      InputError: an unknown backend or kind, or annotations that do not hold together.
    """

    def __init__(
        self,
        annotations: str | Path | Mapping,
        *,
        backend: str = "fast",
        class_agnostic: bool = False,
        kinds: Collection[str] = KINDS,
    ):
        if backend not in _BACKENDS:
            raise InputError(f"no evaluation backend {backend!r}; choose one of {list(_BACKENDS)}")
        if not kinds or not set(kinds) <= set(KINDS):
            raise InputError(f"no figures of kind {list(kinds)}; choose from {list(KINDS)}")
        self._evaluate = _BACKENDS[backend]
        self._class_agnostic = class_agnostic
        self._kinds = tuple(kind for kind in KINDS if kind in kinds)
        self._truth = load_ground_truth(annotations, with_masks="mask" in self._kinds)
        self._annotations = self._with_classes(self._truth.annotations)

    def run(self, results: Iterable[Mapping], source: str = "results") -> dict:
        """Scores results.

        Args:
          results: dicts with image_id, category_id, score, segmentation (compressed RLE) and
            perhaps bbox, which is otherwise taken from the mask. They are not changed. None at all
            is a score of zero.
          source: what messages call the results: their file.

        Returns:
          {"mask": {"AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs",
          "ARm", "ARl"}, "box": likewise, "per_class": {name: {"mask/AP", "box/AP"}}}, fractions, -1
          where there is no object to find. ARs, ARm and ARl are AR100 of small, medium and large
          objects. "per_class" is empty where categories are ignored; then the boxes have "CorLoc"
          too, see `corloc`. A name that several categories share is followed by the category's id.

        Raises:
          InputError: a result that does not fit the annotations, with its position.
        """
        results = list(results)
        category_ids = None if self._class_agnostic else self._truth.category_names
        check_results(
            results,
            image_sizes=self._truth.image_sizes,
            category_ids=category_ids,
            kinds=self._kinds,
            source=source,
        )
        figures: dict = {}
        per_class: dict[str, dict[str, float]] = {name: {} for name in self._class_names()}
        for kind in self._kinds:
            to_detections = _mask_detections if kind == "mask" else _box_detections
            detections = self._with_classes(to_detections(results))
            for number, detection in enumerate(detections, start=1):
                detection["id"] = number
            precision, recall = self._evaluate(
                self._dataset(self._annotations), self._dataset(detections), _IOU_TYPES[kind]
            )
            figures[kind] = _summarize(precision, recall)
            if kind == "box" and self._class_agnostic:
                figures[kind]["CorLoc"] = corloc(self._annotations, detections)
            for k, name in enumerate(per_class):
                per_class[name][f"{kind}/AP"] = _mean(precision[:, :, k, 0, -1])
        return {**figures, "per_class": per_class}

    def _with_classes(self, entries: list[dict]) -> list[dict]:
        """The entries as they are, or all of one class, in the order of their categories.

        The order decides between equal scores; it is the one of pycocotools without categories.
        """
        if not self._class_agnostic:
            return entries
        ordered = sorted(entries, key=lambda entry: entry["category_id"])
        return [{**entry, "category_id": _ANY_CLASS} for entry in ordered]

    def _dataset(self, entries: list[dict]) -> dict:
        class_ids = [_ANY_CLASS] if self._class_agnostic else list(self._truth.category_names)
        sizes = self._truth.image_sizes.items()
        return {
            "images": [{"id": i, "height": height, "width": width} for i, (height, width) in sizes],
            "categories": [{"id": class_id, "name": str(class_id)} for class_id in class_ids],
            "annotations": entries,
        }

    def _class_names(self) -> list[str]:
        if self._class_agnostic:
            return []
        names = self._truth.category_names
        uses = Counter(names.values())
        return [name if uses[name] == 1 else f"{name} {i}" for i, name in names.items()]


def _mask_detections(results: list[Mapping]) -> list[dict]:
    """Detections with the area of their masks."""
    detections = []
    for entry in results:
        mask = entry["segmentation"]
        area = float(coco_mask.area(mask))
        detections.append({**_detection(entry), "segmentation": mask, "area": area})
    return detections


def _box_detections(results: list[Mapping]) -> list[dict]:
    """Detections with the area of their boxes, which come from the masks where there are none."""
    detections = []
    for entry in results:
        box = entry["bbox"] if "bbox" in entry else coco_mask.toBbox(entry["segmentation"])
        x, y, width, height = (float(value) for value in box)
        detections.append(
            {**_detection(entry), "bbox": [x, y, width, height], "area": width * height}
        )
    return detections


def _detection(entry: Mapping) -> dict:
    category_id = entry.get("category_id")  # unchecked, perhaps absent, where classes are ignored
    return {
        "image_id": int(entry["image_id"]),
        "category_id": int(category_id) if is_whole(category_id) else 0,
        "score": float(entry["score"]),
    }


def _evaluate_fast(truth: dict, detections: dict, iou_type: str) -> tuple[np.ndarray, np.ndarray]:
    """(precision (T, R, K, A, M), recall (T, K, A, M)), see pycocotools.cocoeval.COCOeval."""
    truth, detections = (
        faster_coco_eval.COCO(dataset, print_function=_print_nothing)
        for dataset in (truth, detections)
    )
    evaluation = faster_coco_eval.COCOeval_faster(
        truth, detections, iou_type, print_function=_print_nothing
    )
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


def _print_nothing(*_) -> None:
    """Progress that nobody asked for."""


def _evaluate_reference(
    truth: dict, detections: dict, iou_type: str
) -> tuple[np.ndarray, np.ndarray]:
    """As `_evaluate_fast`, and as silent: pycocotools prints its progress whatever one asks."""
    with contextlib.redirect_stdout(io.StringIO()):
        datasets = []
        for dataset in (truth, detections):
            datasets.append(pycocotools.coco.COCO())
            datasets[-1].dataset = dataset
            datasets[-1].createIndex()
        evaluation = pycocotools.cocoeval.COCOeval(*datasets, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


_BACKENDS = {"fast": _evaluate_fast, "reference": _evaluate_reference}


def _summarize(precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    """COCO's figures: T thresholds 0.5, 0.55, ...; A areas all, s, m, l; M of 1, 10, 100."""
    return {
        "AP": _mean(precision[:, :, :, 0, -1]),
        "AP50": _mean(precision[0, :, :, 0, -1]),
        "AP75": _mean(precision[5, :, :, 0, -1]),
        "APs": _mean(precision[:, :, :, 1, -1]),
        "APm": _mean(precision[:, :, :, 2, -1]),
        "APl": _mean(precision[:, :, :, 3, -1]),
        "AR1": _mean(recall[:, :, 0, 0]),
        "AR10": _mean(recall[:, :, 0, 1]),
        "AR100": _mean(recall[:, :, 0, 2]),
        "ARs": _mean(recall[:, :, 1, 2]),
        "ARm": _mean(recall[:, :, 2, 2]),
        "ARl": _mean(recall[:, :, 3, 2]),
    }


def _mean(values: np.ndarray) -> float:
    """Mean over what is defined, -1 where nothing is."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0
