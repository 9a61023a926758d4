"""From a config to the components it describes: the one place where each gets its arguments."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from solojax.builders.free_solo import embedding_width, free_solo_arguments
from solojax.builders.network import build_grid, build_model, coarse_factors
from solojax.config import milestone_steps, scaled_learning_rate
from solojax.data.canvas import Buckets, CanvasPolicy, multiple_of_32
from solojax.data.coco import load_coco
from solojax.data.instances import InstanceDataset, require_objects
from solojax.data.loader import eval_batches, stack_examples, train_batches
from solojax.data.plan import EvalPlan, TrainPlan
from solojax.data.records import load_records
from solojax.data.rows import ImageRows, TrainRows
from solojax.data.transforms import empty_example, resized_shape
from solojax.data.two_views import TwoViewRows
from solojax.data.view_plan import ViewPlan
from solojax.errors import BrokenImage, InputError
from solojax.postprocess.detections import DetectionSettings
from solojax.structures import Batch
from solojax.tasks.free_solo import FreeSOLO
from solojax.tasks.instance_segmentation import InstanceSegmentation
from solojax.tasks.mask_losses import CrossEntropyLoss, DiceLoss, FocalLoss
from solojax.train.optimizers import adamw, make_schedule, sgd

_logger = logging.getLogger(__name__)

MASK_LOSSES = {
    "dice": lambda loss: DiceLoss(epsilon=loss.dice_epsilon),
    "focal": lambda loss: FocalLoss(alpha=loss.focal_alpha, gamma=loss.focal_gamma),
    "bce": lambda loss: CrossEntropyLoss(positive_weight=loss.mask_positive_weight),
}


def build_task(config: ConfigDict, num_classes: int) -> InstanceSegmentation:
    """The task of a config that segments, for K classes."""
    arguments = _segmentation_arguments(config, num_classes)
    if config.task == "free_solo":
        return FreeSOLO(**arguments | free_solo_arguments(config))
    return InstanceSegmentation(**arguments)


def _segmentation_arguments(config: ConfigDict, num_classes: int) -> dict[str, Any]:
    model, loss, evaluation = config.model, config.loss, config.evaluation
    return {
        "model": build_model(config, num_classes),
        "grid": build_grid(config),
        "num_classes": num_classes,
        "max_positives": model.max_positives,
        "one_mask_per_cell": model.head.kind != "solov2",
        "pixel_mean": model.pixel_mean,
        "pixel_std": model.pixel_std,
        "mask_loss": MASK_LOSSES[loss.mask](loss),
        "mask_weight": loss.mask_weight,
        "category_weight": loss.category_weight,
        "focal_alpha": loss.focal_alpha,
        "focal_gamma": loss.focal_gamma,
        "loss_group_images": loss.group_images,
        "frozen_stages": model.backbone.frozen_stages,
        "train_norm_affine": model.backbone.train_norm_affine,
        "dtype": jnp.dtype(model.dtype),
        "detection": DetectionSettings(
            score_threshold=evaluation.score_threshold,
            max_candidates=evaluation.max_candidates,
            mask_threshold=evaluation.mask_threshold,
            nms_pre=evaluation.nms_pre,
            nms=evaluation.nms,
            nms_threshold=evaluation.nms_threshold,
            nms_kernel=evaluation.kernel,
            nms_sigma=evaluation.sigma,
            update_threshold=evaluation.update_threshold,
            max_detections=evaluation.max_detections,
        ),
    }


def build_optimizer(
    config: ConfigDict, total_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer of a run of `total_steps` steps, and its learning-rate schedule."""
    optimizer = config.optimizer
    schedule = make_schedule(
        optimizer.schedule,
        peak=scaled_learning_rate(config),
        total_steps=total_steps,
        warmup_steps=optimizer.warmup_steps,
        warmup_factor=optimizer.warmup_factor,
        milestones=milestone_steps(config, total_steps),
        decay_factor=optimizer.decay_factor,
    )
    shared = {"weight_decay": optimizer.weight_decay, "clip_norm": optimizer.clip_norm}
    if optimizer.name == "adamw":
        return adamw(schedule, **shared), schedule
    return sgd(schedule, momentum=optimizer.momentum, **shared), schedule


def data_path(config: ConfigDict, key: str) -> Path:
    """A path of `config.data`, which may be relative to `data.root`."""
    return Path(os.path.expanduser(config.data.root)) / config.data[key]


def load_train_set(config: ConfigDict) -> InstanceDataset:
    """The training set; raises an InputError where it holds no object."""
    dataset = _load_split(config, "train")
    require_objects(dataset)
    return dataset


def load_val_set(config: ConfigDict) -> InstanceDataset:
    """The validation set."""
    return _load_split(config, "val")


def _load_split(config: ConfigDict, split: str) -> InstanceDataset:
    root = os.path.expanduser(config.data.root)
    if config.data.format == "records":
        return readable(load_records(root, config.data[f"{split}_split"]))
    annotations = data_path(config, f"{split}_annotations")
    if not annotations.exists() and not os.path.isdir(root):
        raise InputError(
            f"{annotations}: no such file, since there is no folder data.root "
            f"'{config.data.root}': give the data set's by --config.data.root=DIR"
        )
    return load_dataset(annotations, data_path(config, f"{split}_images"))


def load_dataset(annotations: Path, images: Path) -> InstanceDataset:
    """A COCO json of which at least one image can be read, whatever happened to the others."""
    return readable(load_coco(annotations, images))


def readable(dataset: InstanceDataset) -> InstanceDataset:
    """The data set, if at least one image can be read; InputError otherwise."""
    first = None
    for index in range(len(dataset.images)):
        try:
            dataset.read_image(index)
            return dataset
        except BrokenImage as error:
            first = first or error
    raise InputError(
        f"{dataset.annotation_path}: none of its {len(dataset.images)} images can be read; the "
        f"first: {first}"
    )


def check_same_classes(train_set_names: tuple[str, ...], dataset: InstanceDataset) -> None:
    """Raises an InputError unless a data set has the classes that a model was trained for."""
    if dataset.category_names != tuple(train_set_names):
        raise InputError(
            f"{dataset.annotation_path}: its classes {list(dataset.category_names)[:5]} are not "
            f"the {len(train_set_names)} that the model knows, {list(train_set_names)[:5]}; "
            "use annotations with the same categories"
        )


def canvas_policy(
    name: str, buckets: tuple, short_sides: Sequence[int], long_side: int
) -> CanvasPolicy:
    """The policy "multiple_of_32", or "buckets": those given, or else some that suit the sides."""
    if name == "multiple_of_32":
        return multiple_of_32
    if not buckets:
        return Buckets.for_images(short_sides, long_side)
    return Buckets(tuple(map(tuple, buckets)))


def build_train_plan(config: ConfigDict, dataset: InstanceDataset) -> TrainPlan:
    """What every step trains on."""
    data = config.data
    return TrainPlan(
        sizes=_sizes(dataset),
        batch_size=config.train.batch_size,
        seed=config.seed,
        short_sides=data.short_sides,
        long_side=data.long_side,
        flip_probability=data.flip_probability,
        choose_canvas=canvas_policy(data.canvas, data.buckets, data.short_sides, data.long_side),
        resized_shape=resized_shape,
        group_by_orientation=data.group_by_orientation,
    )


def train_rows(config: ConfigDict, dataset: InstanceDataset) -> TrainRows:
    """What reads the training rows of a data set."""
    data = config.data
    return TrainRows(
        dataset,
        data.long_side,
        data.max_instances,
        data.min_mask_area,
        coarse_factors(config),
        data.pad_before_shrinking,
        embedding_width(config),
    )


def build_train_batches(
    config: ConfigDict, dataset: InstanceDataset, plan: TrainPlan, total_steps: int, **process
) -> Callable[[int], Iterator[Batch]]:
    """Maps a first step to the host batches from there to `total_steps`.

    `process` is `process_index` and `process_count` of `train_batches`.
    """
    return make_train_batches(
        config.data, plan, train_rows(config, dataset), total_steps, **process
    )


def make_train_batches(
    data: ConfigDict,
    plan: TrainPlan | ViewPlan,
    rows: TrainRows | TwoViewRows,
    total_steps: int,
    **options,
) -> Callable[[int], Iterator[Any]]:
    """Maps a first step to the host batches from there to `total_steps`.

    Args:
      data: `config.data` of any task, for threads, workers and prefetch.
      plan: the order.
      rows: reads them.
      total_steps: where the run ends.
      **options: of `train_batches`.
    """

    def make_batches(start_step: int) -> Iterator[Any]:
        return train_batches(
            plan,
            rows,
            rows.empty,
            start_step=start_step,
            num_steps=total_steps - start_step,
            threads=data.threads,
            workers=data.workers,
            prefetch=data.prefetch,
            **options,
        )

    return make_batches


def with_whole_batches(config: ConfigDict, process_count: int) -> ConfigDict:
    """The config with evaluation batches that the processes divide: empty rows fill them up."""
    batch_size = config.evaluation.batch_size
    whole = -(-batch_size // process_count) * process_count
    if whole == batch_size:
        return config
    config = config.copy_and_resolve_references()
    config.evaluation.batch_size = whole
    _logger.info(
        "evaluation.batch_size %d is raised to %d, the next multiple of %d processes",
        batch_size,
        whole,
        process_count,
    )
    return config


def build_eval_batches(
    config: ConfigDict, dataset: InstanceDataset, **process
) -> Callable[[], Iterator[Batch]]:
    """Makes an iterator over the images of a data set, each in one row of one batch.

    `process` is `process_index` and `process_count` of `eval_batches`; see `with_whole_batches`.
    """
    evaluation, data = config.evaluation, config.data
    rows = ImageRows(dataset, evaluation.long_side)
    plan = EvalPlan(
        sizes=_sizes(dataset),
        batch_size=evaluation.batch_size,
        short_side=evaluation.short_side,
        long_side=evaluation.long_side,
        choose_canvas=canvas_policy(
            evaluation.canvas, data.buckets, (evaluation.short_side,), evaluation.long_side
        ),
        resized_shape=resized_shape,
    )
    return functools.partial(
        eval_batches,
        plan,
        rows,
        rows.empty,
        threads=data.threads,
        workers=data.workers,
        prefetch=data.prefetch,
        **process,
    )


def first_images(dataset: InstanceDataset, count: int | None) -> InstanceDataset:
    """The data set's first `count` images, all for None."""
    return dataset if count is None else dataset.first(count)


def example_shape(config: ConfigDict, plan: TrainPlan) -> Batch:
    """A batch of zeros, two rows of the first step's canvas: enough to initialise a model."""
    row = empty_example(plan.at(0).canvas, config.data.max_instances, coarse_factors(config))
    return stack_examples([row] * 2)


def _sizes(dataset: InstanceDataset) -> np.ndarray:
    return np.array([(i.height, i.width) for i in dataset.images], np.int32).reshape(-1, 2)
