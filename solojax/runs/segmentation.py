"""Instance segmentation as a training run."""

from __future__ import annotations

import functools
import logging

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from solojax.builders.segmentation import (
    build_task,
    build_train_batches,
    build_train_plan,
    check_same_classes,
    example_shape,
    load_train_set,
    load_val_set,
)
from solojax.config import evaluation_interval, to_json, total_steps
from solojax.data.instances import InstanceDataset
from solojax.data.padding_waste import padding_waste
from solojax.errors import InputError
from solojax.inference.evaluation import Evaluation
from solojax.runs.pretrained import with_pretrained
from solojax.runs.task_run import TaskRun
from solojax.tasks import Task
from solojax.train.start_checks import check_data

_logger = logging.getLogger(__name__)

_ADVICE = {
    "data/broken_images": "each process names in its log the images that it could not read: mend "
    "or remove them",
    "data/dropped_instances": "objects beyond data.max_instances do not train: raise it",
    "targets/overflow": "positive pairs beyond model.max_positives do not train: raise it",
}
_STEPS_LOOKED_AT = 100  # for the share of padding


def segmentation_run(config: ConfigDict, mesh: Mesh) -> TaskRun:
    """What training needs of a config's data set, network and evaluation; any mesh will do.

    Raises:
      InputError: bad data, or data that the config does not fit.
    """
    del mesh
    return run_on(config, load_train_set(config))


def run_on(config: ConfigDict, train_set: InstanceDataset) -> TaskRun:
    """The same for a training set at hand."""
    check_data(training=train_set)
    task = build_task(config, _num_classes(config, train_set))
    plan = build_train_plan(config, train_set)
    every = evaluation_interval(config, plan.steps_per_epoch)
    steps = total_steps(config, plan.steps_per_epoch)
    _warn_of_random_layers(config)
    return TaskRun(
        task=task,
        steps_per_epoch=plan.steps_per_epoch,
        example=example_shape(config, plan),
        make_batches=functools.partial(
            build_train_batches,
            config,
            train_set,
            plan,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        ),
        summary=(
            f"{len(train_set.images)} images, {train_set.num_objects} objects, "
            f"{len(train_set.categories)} classes",
            str(padding_waste(plan, range(min(steps, _STEPS_LOOKED_AT)))),
        ),
        metadata=checkpoint_metadata(config, train_set),
        check_restored=functools.partial(_check_classes, train_set),
        start=functools.partial(with_pretrained, config),
        evaluate=_evaluation(config, task, train_set).run if every else None,
        evaluate_every=every,
        advice=_ADVICE,
    )


def checkpoint_metadata(config: ConfigDict, dataset: InstanceDataset) -> dict:
    """What a checkpoint says of itself: its config and its classes."""
    return {
        "config": to_json(config),
        "categories": _categories(dataset),
    }


def _evaluation(config: ConfigDict, task: Task, train_set: InstanceDataset) -> Evaluation:
    val_set = load_val_set(config)
    check_data(validation=val_set)
    if not config.evaluation.class_agnostic:
        check_same_classes(train_set.category_names, val_set)
    return Evaluation(task, config, val_set, train_set.category_names)


def _check_classes(dataset: InstanceDataset, metadata: dict, checkpoint: str) -> None:
    learned, given = metadata.get("categories"), _categories(dataset)
    if learned is not None and learned != given:
        new, old = next((g, k) for g, k in zip(given, learned, strict=True) if g != k)
        raise InputError(
            f"{dataset.annotation_path}: its classes are not those that checkpoint {checkpoint} "
            f"has learned ({new} instead of {old}); use the annotations of that run or another "
            "--workdir"
        )


def _warn_of_random_layers(config: ConfigDict) -> None:
    """Layers that never train are of use with trained weights alone."""
    backbone = config.model.backbone
    if backbone.checkpoint or config.model.checkpoint:
        return
    stuck = []
    if backbone.norm == "frozen_batch_norm":
        stuck.append("model.backbone.norm=frozen_batch_norm")
    if backbone.frozen_stages >= 0:
        stuck.append(f"model.backbone.frozen_stages={backbone.frozen_stages}")
    if stuck:
        _logger.warning(
            "warning: the backbone starts from random weights, part of which never train under %s; "
            "such a model learns badly: use --config.model.backbone.norm=batch_norm "
            "--config.model.backbone.frozen_stages=-1",
            " and ".join(stuck),
        )


def _categories(dataset: InstanceDataset) -> list[dict]:
    return [{"id": category.id, "name": category.name} for category in dataset.categories]


def _num_classes(config: ConfigDict, dataset: InstanceDataset) -> int:
    """K, from the data unless the config insists."""
    found, wanted = len(dataset.categories), config.model.num_classes
    if wanted is not None and wanted != found:
        raise InputError(
            f"model.num_classes is {wanted} but {dataset.annotation_path} names {found} "
            "categories; leave num_classes None, or use the annotations it was meant for"
        )
    return found
