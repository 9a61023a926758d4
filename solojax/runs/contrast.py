"""Contrastive pre-training as a training run."""

from __future__ import annotations

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from solojax.builders.contrast import (
    build_contrast_task,
    build_view_batches,
    build_view_plan,
    example_views,
    is_one_group,
    load_image_list,
)
from solojax.config import to_json
from solojax.data.image_folder import ImageList
from solojax.errors import BrokenImage, InputError
from solojax.runs.pretrained import with_backbone
from solojax.runs.task_run import TaskRun
from solojax.train.start_checks import check_data
from solojax.train.state import TrainState

_logger = logging.getLogger(__name__)

_STRIDE = 32  # pixels from one cell of the backbone's last map to the next
_TRIALS = 32  # images, one of which must be readable for a run to begin
_ADVICE = {
    "data/broken_images": "each process names in its log the images that it could not read: mend "
    "or remove them",
}


def contrast_run(config: ConfigDict, mesh: Mesh) -> TaskRun:
    """What training needs of a config's images and encoders.

    Raises:
      InputError: bad data, or a first backbone that does not fit.
    """
    if jax.process_index() == 0:
        for line in doubts(config):
            _logger.warning("warning: %s", line)
    images = load_image_list(config)
    _require_readable(images)
    check_data(training=images)
    plan = build_view_plan(config, images)
    return TaskRun(
        task=build_contrast_task(config, mesh),
        steps_per_epoch=plan.steps_per_epoch,
        example=example_views(config),
        make_batches=functools.partial(
            build_view_batches,
            config,
            images,
            plan,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        ),
        summary=(f"{len(images)} images, two views of each",),
        metadata={"config": to_json(config), "data": images.fingerprint},
        check_restored=functools.partial(_check_images, images.source, images.fingerprint),
        start=functools.partial(_start, config),
        evaluate=None,
        evaluate_every=0,
        advice=_ADVICE,
        renewable="extra/queues",
    )


def doubts(config: ConfigDict) -> tuple[str, ...]:
    """What of a valid config is hardly meant, and what to do: a line each."""
    model, contrast = config.model, config.contrast
    found = []
    if contrast.shuffle and model.backbone.norm == "batch_norm" and is_one_group(config):
        found.append(
            f"contrast.shuffle does nothing, since the batch of {config.train.batch_size} is one "
            "group of BatchNorm: query and key share statistics, which give the positive away; "
            "set model.backbone.norm_group_images to at most half of train.batch_size"
        )
    cells = tuple(side // _STRIDE for side in config.views.size)
    if model.dense and model.grid and any(s > c for s, c in zip(model.grid, cells, strict=True)):
        wanted, there = ("x".join(map(str, sides)) for sides in (model.grid, cells))
        found.append(
            f"a grid of {wanted} out of a {there} map repeats cells; make views.size larger, or "
            f"model.grid no larger than {there}"
        )
    if (
        contrast.dense_weight == 1
        and not contrast.dense_warmup_steps
        and not model.backbone.checkpoint
    ):
        found.append(
            "contrast.dense_weight=1 did not converge from random weights (thesis 5.3.4); set "
            "contrast.dense_warmup_steps (10000 in Table 5.6) or model.backbone.checkpoint"
        )
    return tuple(found)


def _require_readable(images: ImageList) -> None:
    """Raises an InputError where of some images, evenly from all over the list, none can be read.

    One broken image is left out of its step and counted; were all of them, a run would train on
    nothing to its end.
    """
    errors = []
    for index in np.linspace(0, len(images) - 1, min(_TRIALS, len(images))).astype(int).tolist():
        try:
            images.read_image(index)
            return
        except BrokenImage as error:
            errors.append(error)
    raise InputError(
        f"{images.source}: none of {len(errors)} images tried, from all over it, can be read; the "
        f"first: {errors[0]}"
    )


def _check_images(source: str, fingerprint: str, metadata: dict, checkpoint: str) -> None:
    if metadata.get("data") != fingerprint:
        raise InputError(
            f"{source}: its images are not those that checkpoint {checkpoint} was trained on; use "
            "the images of that run or another --workdir"
        )


def _start(config: ConfigDict, state: TrainState) -> TrainState:
    """A fresh state whose encoders both begin with the backbone that the config names, if any."""
    started = with_backbone(config, state)
    if started is state:  # both are equal as they were made
        return state
    _logger.info("queues and projection heads begin with random numbers")
    # Copies: a step gives its state away, and no array twice.
    keys = {
        "key_params": jax.tree.map(jnp.copy, started.params),
        "key_batch_stats": jax.tree.map(jnp.copy, started.batch_stats),
    }
    return started.replace(extra=started.extra | keys)
