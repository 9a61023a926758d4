"""What every kind of task trains on and computes, for verbs that read no data.

`aot`, `benchmark` and `info` know tasks by this alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from solojax.builders.contrast import build_contrast_task, example_views
from solojax.builders.free_solo import embedding_width
from solojax.builders.network import coarse_factors
from solojax.builders.segmentation import build_optimizer, build_task, canvas_policy
from solojax.config import total_steps
from solojax.config.validation import validate
from solojax.data.canvas import Size, multiple_of_32
from solojax.data.loader import stack_examples
from solojax.data.transforms import empty_example
from solojax.structures import PyTree
from solojax.tasks import Task
from solojax.train.state import TrainState, create_state

COCO_CLASSES = 80
_COCO_TRAINING_IMAGES = 117_266  # train2017 images that have an object
_IMAGENET_TRAINING_IMAGES = 1_281_167


@dataclasses.dataclass(frozen=True)
class Workload:
    """A kind of task.

    Attributes:
      steps: that are worth compiling by themselves: "train" and perhaps "predict".
      epoch_images: of the data set that the published recipe is for; where a config counts in
        epochs they set constants of the schedule, and nothing else.
      largest_canvas: (config, step) to the (H, W) of most pixels that the recipe has.
      resized: (config, canvas) to the config with images of that size, where it says one.
      build: (config, mesh) to the task; the mesh may be None for one device.
      example: (config, canvas, step) to a host batch of two rows of zeros.
      facts: what a report says of the config beside its type: by key, and in words.
    """

    steps: tuple[str, ...]
    epoch_images: int
    largest_canvas: Callable[[ConfigDict, str], Size]
    resized: Callable[[ConfigDict, Size], ConfigDict]
    build: Callable[[ConfigDict, Mesh | None], Task]
    example: Callable[[ConfigDict, Size, str], PyTree]
    facts: Callable[[ConfigDict], tuple[dict, str]]


@dataclasses.dataclass(frozen=True)
class TrainingParts:
    """What a training step is made of.

    Attributes:
      config: with the batch and the canvas that were asked for.
      task: what is learned.
      optimizer: of `build_optimizer`.
      schedule: likewise.
      example: a host batch of two rows of zeros.
    """

    config: ConfigDict
    task: Task
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    example: PyTree

    def create_state(self, key: jax.Array) -> TrainState:
        """A fresh state."""
        ema = self.config.train.ema_decay is not None
        return create_state(self.task, self.optimizer, key, self.example, ema=ema)

    def abstract_state(self) -> TrainState:
        """Shapes of the state."""
        return jax.eval_shape(self.create_state, jax.random.key(self.config.seed))

    def batch(self, make: Callable[[tuple[int, ...], np.dtype], PyTree]) -> PyTree:
        """A whole batch of what `make` gives for every array's shape and type."""
        rows = self.config.train.batch_size
        return jax.tree.map(lambda x: make((rows, *x.shape[1:]), x.dtype), self.example)


def training_parts(
    config: ConfigDict, rows: int, canvas: Size, mesh: Mesh | None = None
) -> TrainingParts:
    """The parts of a config's training step for another batch and size of images.

    Args:
      config: valid.
      rows: of the global batch.
      canvas: (H, W), multiples of 32.
      mesh: the devices; None for one.

    Raises:
      InputError: parts of the config do not divide the batch.
    """
    work = workload_of(config)
    config = work.resized(config.copy_and_resolve_references(), canvas)
    config.train.batch_size = rows
    validate(config)
    steps = total_steps(config, math.ceil(work.epoch_images / rows))
    return TrainingParts(
        config,
        work.build(config, mesh),
        *build_optimizer(config, steps),
        work.example(config, canvas, "train"),
    )


def workload_of(config: ConfigDict) -> Workload:
    """The kind of a config's task."""
    return _WORKLOADS[config.task]


def num_classes_of(config: ConfigDict) -> int:
    """K of a config of instance segmentation, COCO's where the data would say."""
    return COCO_CLASSES if config.model.num_classes is None else config.model.num_classes


def _segmentation_canvas(config: ConfigDict, step: str) -> Size:
    data, evaluation = config.data, config.evaluation
    training = step == "train"
    policy, short_sides, long = (
        (data.canvas, data.short_sides, data.long_side)
        if training
        else (evaluation.canvas, (evaluation.short_side,), evaluation.long_side)
    )
    if policy == "buckets":
        return max(canvas_policy(policy, data.buckets, short_sides, long).canvases, key=math.prod)
    short = min(max(short_sides), long)
    # A batch of both orientations is padded to what holds both.
    mixed = training and not data.group_by_orientation and config.train.batch_size > 1
    return multiple_of_32([(long if mixed else short, long)])


def _segmentation_example(config: ConfigDict, canvas: Size, step: str) -> PyTree:
    objects = (config.data.max_instances, coarse_factors(config), embedding_width(config))
    return stack_examples([empty_example(canvas, *(objects if step == "train" else (0,)))] * 2)


def _segmentation_facts(config: ConfigDict) -> tuple[dict, str]:
    count = num_classes_of(config)
    source = "COCO's" if config.model.num_classes is None else "model.num_classes"
    return {"num_classes": count}, f"{count} classes ({source})"


def _with_views(config: ConfigDict, canvas: Size) -> ConfigDict:
    config.views.size = canvas
    return config


def _contrast_facts(config: ConfigDict) -> tuple[dict, str]:
    length, group = config.contrast.queue_length, config.model.backbone.norm_group_images
    queues = 2 if config.model.dense else 1
    facts = {"queues": queues, "queue_length": length, "norm_group_images": group}
    groups = f"groups of {group} images" if group else "the whole batch"
    return facts, (
        f"an image is two views; {queues} queue(s) of {length} embeddings; BatchNorm over {groups}"
    )


_SEGMENTATION = Workload(
    steps=("train", "predict"),
    epoch_images=_COCO_TRAINING_IMAGES,
    largest_canvas=_segmentation_canvas,
    resized=lambda config, canvas: config,
    build=lambda config, mesh: build_task(config, num_classes_of(config)),
    example=_segmentation_example,
    facts=_segmentation_facts,
)
_WORKLOADS = {
    "instance_segmentation": _SEGMENTATION,
    # Whose step doubles the batch by itself.
    "free_solo": _SEGMENTATION,
    "densecl": Workload(
        steps=("train",),
        epoch_images=_IMAGENET_TRAINING_IMAGES,
        largest_canvas=lambda config, step: tuple(config.views.size),
        resized=_with_views,
        build=build_contrast_task,
        example=lambda config, canvas, step: example_views(config),
        facts=_contrast_facts,
    ),
}
