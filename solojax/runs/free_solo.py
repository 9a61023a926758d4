"""FreeSOLO as a training run: instance segmentation on labels that a program made."""

from __future__ import annotations

import dataclasses
import os

from jax.sharding import Mesh
from ml_collections import ConfigDict

from solojax.builders.free_solo import embedding_width
from solojax.builders.segmentation import data_path, readable
from solojax.data.coco import CocoDataset
from solojax.data.instances import require_objects
from solojax.data.label_file import embedding_size, load_labels, without_empty_images
from solojax.errors import InputError
from solojax.runs.segmentation import run_on
from solojax.runs.task_run import TaskRun


def free_solo_run(config: ConfigDict, mesh: Mesh) -> TaskRun:
    """What training needs of a config's labels, network and evaluation; any mesh will do.

    Images without any object do not train; the summary counts them.

    Raises:
      InputError: bad labels, labels without the embeddings that are to be learned, or data that the
        config does not fit.
    """
    del mesh
    train_set, empty = load_label_set(config)
    run = run_on(config, train_set)
    labels = train_set.fingerprint

    def check_restored(metadata: dict, checkpoint: str) -> None:
        run.check_restored(metadata, checkpoint)
        if metadata.get("labels") != labels:
            raise InputError(
                f"{train_set.annotation_path}: its labels are not those that checkpoint "
                f"{checkpoint} was trained on; use the labels of that run, or another --workdir"
            )

    first, *others = run.summary
    if empty:
        others.insert(0, f"{empty} images without any mask do not train")
    return dataclasses.replace(
        run,
        summary=(first, *others),
        metadata=run.metadata | {"labels": labels},
        check_restored=check_restored,
    )


def load_label_set(config: ConfigDict) -> tuple[CocoDataset, int]:
    """The training labels of a config, and how many of its images have none and are left out.

    Raises:
      InputError: as `free_solo_run`.
    """
    path, images = data_path(config, "train_annotations"), data_path(config, "train_images")
    root = config.data.root
    if not path.exists() and not os.path.isdir(os.path.expanduser(root)):
        raise InputError(
            f"{path}: no such file, since there is no folder data.root '{root}': give the data "
            "set's by --config.data.root=DIR"
        )
    dataset = load_labels(path, images)
    require_objects(dataset)
    _check_embeddings(dataset, embedding_width(config))
    dataset, empty = without_empty_images(dataset)
    return readable(dataset), empty


def _check_embeddings(dataset: CocoDataset, wanted: int | None) -> None:
    found = embedding_size(dataset)
    if wanted is None or found == wanted:
        return
    has = "have no embeddings" if found is None else f"have embeddings of {found} numbers"
    mend = "" if found is None else f"give --config.model.embedding={found}, or "
    raise InputError(
        f'{dataset.annotation_path}: its objects {has} ("emb"), and {wanted} numbers are to be '
        f"learned (model.embedding): {mend}use --config.loss.semantic_weight=0, or labels that "
        "`solojax free-mask` wrote"
    )
