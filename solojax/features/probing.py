"""Probes of a checkpoint: features of two sets of images, and what classifiers make of them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from solojax.data.labelled_images import (
    LabelledImages,
    labelled_coco,
    labelled_folder,
    require_same_classes,
)
from solojax.evaluators.probes import (
    Examples,
    ProbeSettings,
    check_training_set,
    count_svms,
    run_probes,
)
from solojax.features.extraction import FeatureExtraction, Features, make_extractor
from solojax.features.frozen_backbone import FrozenBackbone
from solojax.train import distributed
from solojax.train.progress import progress_bar
from solojax.train.sharding import gather_json
from solojax.train.start_checks import check_data, check_start

_FIGURES = ("accuracy", "mAP_area", "mAP")  # the published one first


@dataclasses.dataclass(frozen=True, eq=False)
class ProbeOutcome:
    """What came out.

    Attributes:
      figures: as json has them, the same on all processes: `checkpoint`, `features`, `classes`,
        `counts`, and those of `evaluators.probes.run_probes`.
      train: features of the training images that could be read, and what these show.
      test: likewise.
    """

    figures: dict
    train: Examples
    test: Examples


def load_labelled(images: Path, annotations: Path | None) -> LabelledImages:
    """Images in class folders, or those of a COCO json; raises as they do."""
    if annotations is None:
        return labelled_folder(images)
    return labelled_coco(annotations, images)


def probe(
    backbone: FrozenBackbone,
    train: LabelledImages,
    test: LabelledImages,
    extraction: FeatureExtraction,
    settings: ProbeSettings,
) -> ProbeOutcome:
    """Extracts features and runs the probes; several processes call it together.

    All of them extract; process 0 trains the classifiers while the others wait.

    Raises:
      InputError: the sets have other classes, or are too small; before anything is computed unless
        it comes from images that cannot be read. Or processes differ in settings or images.
    """
    require_same_classes(train, test)
    names, source = train.class_names, train.images.source
    check_training_set(train.targets, names, source, settings)
    facts = {**dataclasses.asdict(extraction), **dataclasses.asdict(settings)}
    check_start({"checkpoint": backbone.title, **facts})
    check_data(training=train.images, test=test.images)
    extract = make_extractor(backbone, extraction)
    found = extract(train.images, "training"), extract(test.images, "test")
    examples = [_examples(*pair) for pair in zip((train, test), found, strict=True)]
    check_training_set(examples[0].targets, names, source, settings)
    scored = None
    if jax.process_index() == 0:
        with progress_bar(
            count_svms(settings, len(names)), description="SVMs", unit="SVM", leave=False
        ) as bar:
            scored = run_probes(
                *examples, names, settings, multi_label=train.multi_label, advance=bar.update
            )
    distributed.require_same({}, "")  # waits as long as it takes, which a collective does not
    figures = {
        "checkpoint": backbone.title,
        "features": {
            "stage": f"c{extraction.stage}",
            "pool": extraction.pool,
            "channels": examples[0].features.shape[1],
            "short_side": extraction.short_side,
            "crop": extraction.crop,
        },
        "classes": list(names),
        "counts": {
            "train": len(found[0].values),
            "train_unread": found[0].unread,
            "test": len(found[1].values),
            "test_unread": found[1].unread,
        },
        **gather_json(scored)[0],
    }
    return ProbeOutcome(figures, *examples)


def _examples(labelled: LabelledImages, found: Features) -> Examples:
    return Examples(found.values, labelled.targets[found.indices], labelled.images.source)


def write_features(outcome: ProbeOutcome, path: str | os.PathLike) -> None:
    """Writes the features and targets as npz; of several processes the first alone writes."""
    if jax.process_index() != 0:
        return
    arrays = {
        f"{name}_{kind}": getattr(examples, kind)
        for name, examples in (("train", outcome.train), ("test", outcome.test))
        for kind in ("features", "targets")
    }
    with open(path, "wb") as file:
        np.savez(file, **arrays, classes=np.array(outcome.figures["classes"]))


def probe_table(figures: dict) -> str:
    """The figures as lines for a person."""
    counts, features = figures["counts"], figures["features"]
    rows = _rows(figures)
    kinds = [kind for kind in _FIGURES if kind in rows[0][1]]
    width = max(len(label) for label, _ in rows)
    lines = [
        figures["checkpoint"],
        f"{counts['train']} training and {counts['test']} test images of {len(figures['classes'])} "
        f"classes; {features['channels']} features of {features['stage'].upper()}, of "
        f"{features['crop']}x{features['crop']} pixels",
        " " * width + "".join(f"{kind:>10}" for kind in kinds),
    ]
    lines += [
        f"{label:<{width}}"
        + "".join(f"{values[kind]:10.3f}" for kind in kinds)
        + _deviation(values, kinds[0])
        for label, values in rows
    ]
    unread = counts["train_unread"] + counts["test_unread"]
    return "\n".join(lines + [f"{unread} images could not be read: left out"] * (unread > 0))


def _rows(figures: dict) -> Sequence[tuple[str, dict]]:
    rows = []
    if "knn" in figures:
        found = figures["knn"]
        rows.append((f"kNN, k {found['k']}, temperature {found['temperature']:g}", found))
    if "svm" in figures:
        rows.append(("linear SVM", figures["svm"]))
    for shots, found in figures.get("low_shot", {}).items():
        rows.append((f"linear SVM, {shots} a class, C {found['cost']:g}", found))
    return rows


def _deviation(values: dict, kind: str) -> str:
    deviation = values.get(f"{kind}_std")
    return "" if deviation is None else f"  ±{deviation:.3f} over {values['repeats']} draws"
