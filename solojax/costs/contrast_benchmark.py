"""Times of the phases of a step of contrastive pre-training, on random weights and images."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import jax
import numpy as np
from ml_collections import ConfigDict

from solojax.costs.step_benchmark import random_views
from solojax.costs.timing import Timing, repeat, time_compiled
from solojax.costs.workloads import training_parts
from solojax.data.image_folder import list_folder
from solojax.data.two_views import TwoViewRows
from solojax.losses.contrastive import contrastive_loss
from solojax.ops.vectors import l2_normalize
from solojax.structures import Array, PyTree
from solojax.targets.correspondence import match_cells
from solojax.tasks.densecl import DenseCL

_PHOTO = (375, 500)  # (height, width) of the file: ImageNet's most frequent


def time_phases(
    config: ConfigDict, rows: int, canvas: tuple[int, int], *, repeats: int = 5
) -> Iterator[Timing]:
    """Times the phases of a step, from the image file to the losses; none has a backward pass but
    the losses.

    Args:
      config: of contrastive pre-training.
      rows: B.
      canvas: (H, W) of the views.
      repeats: runs of every phase.
    """
    parts = training_parts(config, rows, canvas)
    task: DenseCL = parts.task
    yield _time_views_on_the_host(parts.config, repeats)
    batch = random_views(rows, canvas)
    state = jax.jit(parts.create_state)(jax.random.key(0))
    timing, augment = time_compiled(
        f"colours of {rows} x 2 views", task.augment, repeats, batch.views, batch.seed, 0
    )
    yield timing
    views = augment()

    def query(variables: PyTree, image: Array, valid: Array):
        return task.encoder.apply(
            variables, image, train=True, row_mask=valid, mutable=["batch_stats"]
        )[0]

    def key(variables: PyTree, image: Array, valid: Array, rng: Array):
        if task.shuffle is None:
            return query(variables, image, valid)
        image, valid = task.shuffle.shuffle((image, valid), rng)
        return task.shuffle.unshuffle(query(variables, image, valid), rng)

    variables = {"params": state.params, "batch_stats": state.batch_stats}
    timing, run = time_compiled(
        "query encoder, forward", query, repeats, variables, views[:, 0], batch.valid
    )
    yield timing
    queries = run()
    timing, run = time_compiled(
        "key encoder, in other groups",
        key,
        repeats,
        variables,
        views[:, 1],
        batch.valid,
        jax.random.key(1),
    )
    yield timing
    keys = run()

    def loss(query: Array, positive: Array, negatives: Array):
        def mean(query):
            return contrastive_loss(
                query,
                positive,
                negatives,
                task.temperature,
                negatives_at_once=task.negatives_at_once,
            )[0].mean()

        return jax.value_and_grad(mean)(l2_normalize(query))

    queues = state.extra["queues"]
    yield time_compiled(
        "global loss and its gradient",
        loss,
        repeats,
        queries.embeddings.vector,
        l2_normalize(keys.embeddings.vector),
        queues["global"]["vectors"],
    )[0]
    if task.has_dense_head:
        yield time_compiled(
            "matches of cells", match_cells, repeats, queries.features, keys.features
        )[0]
        yield time_compiled(
            "dense loss and its gradient",
            loss,
            repeats,
            queries.embeddings.grid,
            l2_normalize(keys.embeddings.grid),
            queues["dense"]["vectors"],
        )[0]


def _time_views_on_the_host(config: ConfigDict, repeats: int) -> Timing:
    """Decoding one JPEG and cutting both views, on one core."""
    noise = np.random.default_rng(0).integers(0, 256, (*_PHOTO, 3)).astype(np.uint8)
    views = config.views
    with tempfile.TemporaryDirectory() as folder:
        cv2.imwrite(str(Path(folder) / "photo.jpg"), cv2.GaussianBlur(noise, (0, 0), 3))
        rows = TwoViewRows(list_folder(folder), views.scale, views.ratio, views.flip_probability)
        seeds = iter(range(2**31))
        seconds = repeat(lambda: rows(0, 0, False, tuple(views.size), next(seeds)), repeats)
    return Timing("decode a JPEG, cut two views", seconds)
