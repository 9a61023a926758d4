"""What `agreement_lab.py` needs of a config, by its task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from solojax.builders.contrast import (
    build_contrast_task,
    build_view_batches,
    build_view_plan,
    example_views,
    load_image_list,
)
from solojax.builders.segmentation import (
    build_task,
    build_train_batches,
    build_train_plan,
    load_train_set,
)
from solojax.builders.segmentation import example_shape as example_batch
from solojax.tasks import Task


@dataclasses.dataclass(frozen=True)
class Parts:
    """A task with its training data.

    Attributes:
      steps_per_epoch: rounded up.
      example: a batch of the first step's shapes.
      build_task: (config, mesh) to the task; the config may differ in its dtype, and the mesh may
        be None.
      make_batches: (total steps, process_index, process_count) to what maps a first step to that
        process's host batches.
      evaluates: whether there is anything to evaluate.
    """

    steps_per_epoch: int
    example: Any
    build_task: Callable[[ConfigDict, Mesh | None], Task]
    make_batches: Callable[[int, int, int], Callable[[int], Iterator[Any]]]
    evaluates: bool


def parts_of(config: ConfigDict) -> Parts:
    """The parts of a valid config."""
    return {"instance_segmentation": _segmentation, "densecl": _contrast}[config.task](config)


def _segmentation(config: ConfigDict) -> Parts:
    dataset = load_train_set(config)
    plan = build_train_plan(config, dataset)
    classes = len(dataset.categories)

    def make_batches(steps: int, index: int, count: int):
        return build_train_batches(
            config, dataset, plan, steps, process_index=index, process_count=count
        )

    return Parts(
        steps_per_epoch=plan.steps_per_epoch,
        example=example_batch(config, plan),
        build_task=lambda config, mesh: build_task(config, classes),
        make_batches=make_batches,
        evaluates=True,
    )


def _contrast(config: ConfigDict) -> Parts:
    images = load_image_list(config)
    plan = build_view_plan(config, images)

    def make_batches(steps: int, index: int, count: int):
        return build_view_batches(
            config, images, plan, steps, process_index=index, process_count=count
        )

    return Parts(
        steps_per_epoch=plan.steps_per_epoch,
        example=example_views(config),
        build_task=build_contrast_task,
        make_batches=make_batches,
        evaluates=False,
    )
