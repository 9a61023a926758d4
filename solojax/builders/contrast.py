"""From a contrastive config to the components it describes."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from solojax.builders.network import backbone_remat, build_backbone
from solojax.builders.segmentation import make_train_batches
from solojax.data.image_folder import ImageList, list_coco, list_folder, list_records
from solojax.data.two_views import TwoViewRows, stack_views
from solojax.data.view_plan import ViewPlan
from solojax.models.contrastive_encoder import ContrastiveEncoder
from solojax.models.densecl_neck import DenseCLNeck
from solojax.ops.augment_views import augment_views
from solojax.ops.images import normalize_pixels
from solojax.ops.shuffle import GroupShuffle
from solojax.structures import ViewBatch
from solojax.tasks.densecl import DenseCL
from solojax.train.sharding import batch_sharding


def build_contrast_task(config: ConfigDict, mesh: Mesh | None = None) -> DenseCL:
    """The task of a config.

    Args:
      config: valid.
      mesh: over whose devices the rows of a batch are spread, for the shuffle; None for one device.
    """
    model, contrast, views = config.model, config.contrast, config.views
    dtype = jnp.dtype(model.dtype)
    group = model.backbone.norm_group_images or None
    rows = config.train.batch_size
    mean, std = model.pixel_mean, model.pixel_std
    colors = {
        name: value
        for name, value in views.to_dict().items()
        if name not in ("size", "scale", "ratio", "flip_probability")
    }
    return DenseCL(
        encoder=ContrastiveEncoder(
            backbone=build_backbone(
                model.backbone, backbone_remat(config.train.remat), dtype, group
            ),
            neck=DenseCLNeck(
                hidden=model.hidden_channels,
                out=model.embedding,
                grid=model.grid or None,
                dense=model.dense,
                dtype=dtype,
            ),
        ),
        normalize=functools.partial(normalize_pixels, mean=mean, std=std, dtype=dtype),
        augment=functools.partial(
            augment_views, **colors, pixel_mean=mean, pixel_std=std, dtype=dtype
        ),
        batch_size=rows,
        queue_length=contrast.queue_length,
        momentum=contrast.momentum,
        temperature=contrast.temperature,
        dense_weight=contrast.dense_weight,
        dense_warmup_steps=contrast.dense_warmup_steps,
        correspondence=contrast.correspondence,
        negatives=contrast.negatives,
        shuffle=_shuffle(config, mesh),
        queue_sharding=_queue_sharding(config, mesh),
    )


def is_one_group(config: ConfigDict) -> bool:
    """Whether the whole batch is one group of BatchNorm: keys have no other to change to."""
    return config.model.backbone.norm_group_images in (0, config.train.batch_size)


def _shuffle(config: ConfigDict, mesh: Mesh | None) -> GroupShuffle | None:
    if not config.contrast.shuffle or is_one_group(config):
        return None
    return GroupShuffle(
        config.model.backbone.norm_group_images, None if mesh is None else batch_sharding(mesh)
    )


def _queue_sharding(config: ConfigDict, mesh: Mesh | None) -> NamedSharding | None:
    """A single device has all there is."""
    if not config.contrast.shard_queues or mesh is None or mesh.size == 1:
        return None
    return batch_sharding(mesh)


def load_image_list(config: ConfigDict) -> ImageList:
    """The images of `config.data`.

    Raises:
      InputError: there are none, or the folder, json or split is absent or damaged.
    """
    data = config.data
    root = Path(os.path.expanduser(data.root))
    if data.format == "records":
        return list_records(data.root, data.train_split)
    if data.format == "coco":
        return list_coco(root / data.train_annotations, root / data.train_images)
    return list_folder(root / data.train_images)


def build_view_plan(config: ConfigDict, images: ImageList) -> ViewPlan:
    """Which images every step reads."""
    return ViewPlan(len(images), config.train.batch_size, config.seed, config.views.size)


def build_view_batches(
    config: ConfigDict, images: ImageList, plan: ViewPlan, total_steps: int, **process
) -> Callable[[int], Iterator[ViewBatch]]:
    """Maps a first step to the host batches from there to `total_steps`.

    `process` is `process_index` and `process_count` of `train_batches`.
    """
    views = config.views
    rows = TwoViewRows(images, views.scale, views.ratio, views.flip_probability)
    return make_train_batches(config.data, plan, rows, total_steps, stack=stack_views, **process)


def example_views(config: ConfigDict) -> ViewBatch:
    """Two rows of zeros: enough to initialise a model."""
    return ViewBatch(
        views=np.zeros((2, 2, *config.views.size, 3), np.uint8),
        valid=np.ones(2, bool),
        image_index=np.zeros(2, np.int32),
        seed=np.zeros(2, np.uint32),
    )
