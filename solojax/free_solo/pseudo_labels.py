"""What a trained segmenter finds in images without labels, as a label file (thesis 6.2.3)."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from pycocotools import mask as coco_mask

from solojax.builders.segmentation import build_eval_batches, with_whole_batches
from solojax.config.schema import flatten
from solojax.data import label_file
from solojax.data.coco import CocoDataset
from solojax.free_solo.labelling import image_settings, label_images
from solojax.inference.segmenter import (
    Segmenter,
    coco_results,
    jit_predict,
    predict_batches,
    warn_of_overflow,
)
from solojax.train.progress import progress_bar
from solojax.train.sharding import evaluation_mesh

# Of `config.model`, what changes nothing of what trained weights find.
_OF_TRAINING = {
    "checkpoint", "max_positives", "backbone.checkpoint", "backbone.frozen_stages",
    "backbone.train_norm_affine",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class LabelRule:
    """Which detections become labels; the defaults are the published ones.

    Attributes:
      score_threshold: least score.
      max_labels: of an image, the best; None for all.
      max_width: a box as wide as this fraction of the image, or wider, is no label; None for any.
        (The published code compares a box's width less its left edge by mistake.)
    """

    score_threshold: float = 0.3
    max_labels: int | None = 20
    max_width: float | None = 0.95

    def choose(self, results: list[dict], image_width: int) -> list[dict]:
        """The COCO results of one image that become labels, best first."""
        kept = [
            result
            for result in sorted(results, key=lambda result: -result["score"])
            if result["score"] >= self.score_threshold and result["bbox"][2] > 0
        ][: self.max_labels]
        if self.max_width is None:
            return kept
        return [r for r in kept if r["bbox"][2] < self.max_width * image_width]


@dataclasses.dataclass(frozen=True)
class LabelSummary:
    """What came of labelling.

    Attributes:
      images: that were looked at.
      objects: of all images together.
      without_objects: images in which none was found.
    """

    images: int
    objects: int
    without_objects: int


def summarize(labels: CocoDataset) -> LabelSummary:
    """The numbers of a label file, as `label_file.load_labels` has it."""
    counts = [len(record.annotations) for record in labels.images]
    return LabelSummary(len(counts), sum(counts), counts.count(0))


def write_labels(
    model: Segmenter, dataset: CocoDataset, output: Path, rule: LabelRule, checkpoint: str
) -> bool:
    """Writes what a model finds in every image of a data set, unless the file is there already.

    A run that was stopped goes on. Images that cannot be read are not in the file.

    A label's embedding is the one that the network predicts for the detection: the semantic target
    of the next round. (The thesis does not say what that is; the nearest query of Free Mask would
    be another choice.)

    Where there are several processes, all call it together.

    Args:
      model: with the inference settings of its config.
      dataset: the images; their objects are not looked at.
      output: the label file.
      rule: what is written.
      checkpoint: the model's, for people.

    Returns:
      Whether it was written; False where it was there, of this model, rule and images.

    Raises:
      InputError: as `label_images`.
    """
    info = labels_info(model, dataset, rule, checkpoint)
    find = functools.partial(_labels_of, model, rule)
    return label_images(dataset, output, info, find) is not None


def labels_info(
    model: Segmenter, dataset: CocoDataset, rule: LabelRule, checkpoint: str
) -> label_file.LabelInfo:
    """What the label file of `write_labels` says of itself.

    Where there are several processes, all call it together.
    """
    network = flatten(model.config.model)
    settings = {
        "method": "predictions",
        **dataclasses.asdict(rule),
        "network": {k: v for k, v in network.items() if k not in _OF_TRAINING},
        "evaluation": model.config.evaluation.to_dict(),
        **image_settings(dataset),
    }
    return label_file.LabelInfo(
        fingerprint=label_file.fingerprint(jax.device_get(model.variables), settings),
        settings=settings,
        checkpoint=f"step {model.step} of {checkpoint}",
        description="objects that a segmenter found",
    )


def _labels_of(
    model: Segmenter, rule: LabelRule, dataset: CocoDataset
) -> Iterator[tuple[int, list[dict] | None]]:
    """(position in the data set, labels) of this process's images; None: cannot be read."""
    processes, overflow = jax.process_count(), 0
    config = with_whole_batches(model.config, processes)
    threshold = config.evaluation.mask_threshold
    image_ids = [image.id for image in dataset.images]
    mesh = evaluation_mesh(config.evaluation.batch_size)
    batches = build_eval_batches(
        config,
        dataset,
        process_index=jax.process_index(),
        process_count=processes,
    )()
    with progress_bar(
        len(image_ids), description="label", unit="image", enabled=jax.process_index() == 0
    ) as bar:
        for batch, detections in predict_batches(
            jit_predict(model.task, mesh), model.variables, batches, mesh
        ):
            found = collections.defaultdict(list)
            for result in coco_results(
                [(batch, detections)], image_ids, model.category_ids, threshold
            ):
                found[result["image_id"]].append(result)
            for index, valid in zip(batch.image_index.tolist(), batch.valid, strict=True):
                if index >= 0:
                    image = dataset.images[index]
                    chosen = rule.choose(found[image.id], image.width)
                    yield index, [_annotation(r) for r in chosen] if valid else None
            overflow += int(np.sum(detections.overflow[batch.valid]))
            rows = int(np.sum(batch.image_index >= 0))
            bar.update(min(rows * processes, len(image_ids) - bar.n))
    warn_of_overflow(overflow)


def _annotation(result: dict) -> dict:
    """A COCO result as an annotation of a label file, with its embedding if it has one."""
    entry = {key: value for key, value in result.items() if key != "category_id"}
    return entry | {"area": float(coco_mask.area(result["segmentation"]))}
