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
