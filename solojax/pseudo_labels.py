"""What a trained segmenter finds in images without labels, as a label file (thesis 6.2.3)."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from pycocotools import mask as coco_mask

from solojax.build import build_eval_batches
from solojax.data import label_file
from solojax.data.coco import CocoDataset
from solojax.inference import (
    Segmenter,
    coco_results,
    jit_predict,
    predict_batches,
    warn_of_overflow,
)
from solojax.structures import Batch, Detections
from solojax.train.progress import progress_bar
from solojax.train.sharding import evaluation_mesh, gather_json

_logger = logging.getLogger(__name__)


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


def summarize(path: Path, images: str | Path) -> LabelSummary:
    """The numbers of a label file that is there.

    Raises:
      InputError: as `label_file.load_labels`.
    """
    dataset = label_file.load_labels(path, images)
    counts = [len(record.annotations) for record in dataset.images]
    return LabelSummary(len(counts), sum(counts), counts.count(0))


def write_labels(
    model: Segmenter, dataset: CocoDataset, output: Path, rule: LabelRule, checkpoint: str
) -> bool:
    """Writes what a model finds in every image of a data set, unless the file is there already.

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
      InputError: the file is there and is of another model, rule or images.
    """
    info = labels_info(model, dataset, rule, checkpoint)
    exists = gather_json(output.exists() if jax.process_index() == 0 else None)[0]
    if exists:
        label_file.check_fingerprint(output, info.fingerprint, checkpoint, info.settings)
        return False
    widths = {image.id: image.width for image in dataset.images}
    own = [
        {"image_id": image_id, "labels": [_annotation(r) for r in kept]}
        for image_id, results in _results_by_image(model, dataset)
        if (kept := rule.choose(results, widths[image_id]))
    ]
    found = {part["image_id"]: part["labels"] for parts in gather_json(own) for part in parts}
    if jax.process_index() == 0:
        label_file.write(
            output,
            images=[
                {"id": i.id, "file_name": i.file_name, "height": i.height, "width": i.width}
                for i in dataset.images
            ],
            annotations=[a for image in dataset.images for a in found.get(image.id, ())],
            info=info,
        )
    gather_json(None)  # nobody reads it before it is there
    return True


def labels_info(
    model: Segmenter, dataset: CocoDataset, rule: LabelRule, checkpoint: str
) -> label_file.LabelInfo:
    """What the label file of `write_labels` says of itself."""
    settings = {
        "method": "predictions",
        **dataclasses.asdict(rule),
        # As json has it, tuples as lists.
        "evaluation": {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in model.config.evaluation.to_dict().items()
        },
        "images": dataset.fingerprint,
    }
    return label_file.LabelInfo(
        fingerprint=label_file.fingerprint(jax.device_get(model.variables), settings),
        settings=settings,
        checkpoint=f"step {model.step} of {checkpoint}",
        description="objects that a segmenter found",
    )


def _results_by_image(model: Segmenter, dataset: CocoDataset) -> Iterator[tuple[int, list[dict]]]:
    """(image id, COCO results with `emb`) of this process's images, under a progress bar."""
    config = model.config
    image_ids = [image.id for image in dataset.images]
    mesh = evaluation_mesh(config.evaluation.batch_size)
    batches = build_eval_batches(
        config,
        dataset,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )()
    processes, overflow = jax.process_count(), 0
    with progress_bar(
        len(image_ids), description="label", unit="image", enabled=jax.process_index() == 0
    ) as bar:
        for batch, detections in predict_batches(
            jit_predict(model.task, mesh), model.variables, batches, mesh
        ):
            grouped: dict[int, list[dict]] = {}
            for result in _with_embeddings(model, batch, detections, image_ids):
                grouped.setdefault(result["image_id"], []).append(result)
            yield from grouped.items()
            overflow += int(np.sum(detections.overflow[batch.valid]))
            rows = int(np.sum(batch.image_index >= 0))
            bar.update(min(rows * processes, len(image_ids) - bar.n))
    warn_of_overflow(overflow)


def _with_embeddings(
    model: Segmenter, batch: Batch, detections: Detections, image_ids: list[int]
) -> Iterator[dict]:
    """COCO results; each with its embedding, where the network predicts any."""
    results = coco_results(
        [(batch, detections)],
        image_ids,
        model.category_ids,
        model.config.evaluation.mask_threshold,
    )
    if detections.embeddings is None:
        yield from results
        return
    shown = detections.valid & np.asarray(batch.valid)[:, None]
    for result, embedding in zip(results, detections.embeddings[shown], strict=True):
        yield result | {"emb": embedding}


def _annotation(result: dict) -> dict:
    """A COCO result as an annotation of a label file."""
    entry = {key: result[key] for key in ("image_id", "segmentation", "bbox", "score")}
    entry["area"] = float(coco_mask.area(result["segmentation"]))
    if "emb" in result:
        entry["emb"] = label_file.embedding_as_list(result["emb"])
    return entry
