"""Frozen features of a list of images: one vector of each, on all devices of all processes."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from solojax.data.center_crop import CenterCropRows, stack_rows
from solojax.data.image_folder import ImageList
from solojax.data.loader import train_batches
from solojax.data.sequence_plan import SequencePlan
from solojax.errors import InputError
from solojax.features.frozen_backbone import FrozenBackbone
from solojax.ops.pooling import adaptive_average_pool
from solojax.structures import Array, PyTree
from solojax.train import distributed
from solojax.train.progress import progress_bar
from solojax.train.sharding import batch_sharding, make_mesh, prefetch, replicate, replicated

_STRIDE = 32  # of which the backbone's input sides are multiples
_SHORT_SIDE, _CROP = 256, 224  # as published

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """What became of a list of images.

    Attributes:
      values: (n, C) float32, in the list's order.
      indices: (n,) int32, whose they are.
      unread: how many images could not be read.
    """

    values: np.ndarray
    indices: np.ndarray
    unread: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureExtraction:
    """How features are taken.

    An image is resized by its short side, its middle cut out (256 and 224 pixels as published; for
    other backbones see `image_sizes`) and normalised as the backbone was trained; BatchNorm has its
    running statistics.

    Attributes:
      stage: n of the feature map Cn, 2 to 5.
      pool: side of the grid that the map is averaged to; 1 is the mean of the whole map. The
        vector is the grid's cells row by row, channels last.
      short_side: pixels.
      crop: pixels of both sides, a multiple of 32.
      batch_size: images of a step, on all devices together; rounded up to their multiple.
      threads: that read images, in each process.

    Raises:
      InputError: a value out of its range.
    """

    stage: int = 5
    pool: int = 1
    short_side: int = _SHORT_SIDE
    crop: int = _CROP
    batch_size: int = 128
    threads: int = 8

    def __post_init__(self):
        if self.crop < _STRIDE or self.crop % _STRIDE:
            raise InputError(f"the crop is {self.crop} pixels; give a multiple of {_STRIDE}")
        if self.short_side < self.crop:
            raise InputError(
                f"the short side {self.short_side} is smaller than the crop of {self.crop} pixels; "
                "give at least as much"
            )
        if min(self.pool, self.batch_size) < 1 or self.threads < 0:
            raise InputError(
                f"pool is {self.pool}, batch size {self.batch_size}, threads {self.threads}: give "
                "1 or more, of threads 0 or more"
            )
        cells = self.crop // 2**self.stage
        if self.pool > cells:
            raise InputError(
                f"pool {self.pool} is more than the {cells} cells of C{self.stage} at {self.crop} "
                "pixels; give less, or a larger crop"
            )


def image_sizes(
    backbone: FrozenBackbone, short_side: int | None = None, crop: int | None = None
) -> dict[str, int]:
    """`short_side` and `crop` of `FeatureExtraction`, from the backbone where they are not given.

    The crop has the (shorter) side of the views that the backbone was pre-trained on, or as
    published; to it the short side is what it is in the published sizes.
    """
    if crop is None:
        crop = _CROP if backbone.views is None else min(backbone.views.size)
    if short_side is None:
        short_side = round(crop * _SHORT_SIDE / _CROP)
    return {"short_side": short_side, "crop": crop}


def make_extractor(
    backbone: FrozenBackbone, how: FeatureExtraction, mesh: Mesh | None = None
) -> Callable[[ImageList, str], Features]:
    """A function that takes the features of a list of images; it compiles once for all lists.

    Where there are several processes, all call it together: each reads and computes its contiguous
    rows of every batch, and all get all features. What an image gets depends neither on the batch
    nor on the number of devices (beyond rounding).

    Args:
      backbone: of which checkpoint.
      how: settings.
      mesh: all devices when None.

    Returns:
      A function of the list and a word for it in the progress bar. It raises an InputError where
      not one image can be read.
    """
    mesh = make_mesh() if mesh is None else mesh
    variables = replicate(backbone.variables, mesh)
    rows = -(-how.batch_size // mesh.size) * mesh.size
    compute = _compiled(backbone, how, variables, mesh, rows)

    def extract(images: ImageList, name: str) -> Features:
        plan = SequencePlan(len(images), rows, how.short_side, (how.crop, how.crop))
        reader = CenterCropRows(images)
        batches = train_batches(
            plan,
            reader,
            reader.empty,
            num_steps=plan.num_steps,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            threads=how.threads,
            stack=stack_rows,
        )
        found = _joined(_computed(compute, variables, batches, mesh, len(images), name))
        if not len(found.values):
            raise InputError(
                f"{images.source}: none of {len(images)} images can be read; mend the files, or "
                "give others"
            )
        if found.unread:
            _logger.warning(
                "%s: %d of %d images could not be read: left out",
                images.source,
                found.unread,
                len(images),
            )
        return found

    return extract


def _compiled(
    backbone: FrozenBackbone, how: FeatureExtraction, variables: PyTree, mesh: Mesh, rows: int
) -> jax.stages.Compiled:
    """The program for a batch; no process goes on before all have it.

    The first collective between CPUs fails where a process comes half a minute after another.
    """
    shapes = {
        "image": ((rows, how.crop, how.crop, 3), np.uint8),
        "valid": ((rows,), np.bool_),
        "image_index": ((rows,), np.int32),
    }
    spread = batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=spread)
        for name, (shape, dtype) in shapes.items()
    }
    compute = functools.partial(_features_of_batch, backbone, how)
    compiled = jax.jit(compute, out_shardings=replicated(mesh)).lower(variables, batch).compile()
    distributed.require_same({}, "")
    return compiled


def _features_of_batch(
    backbone: FrozenBackbone, how: FeatureExtraction, variables: PyTree, batch: dict[str, Array]
) -> dict[str, Array]:
    maps = backbone.features(variables, batch["image"], how.stage)
    pooled = adaptive_average_pool(maps.astype(jnp.float32), (how.pool, how.pool))
    return {
        "values": pooled.reshape(len(pooled), -1),
        "valid": batch["valid"],
        "image_index": batch["image_index"],
    }


def _computed(
    compute: Callable, variables: PyTree, batches: Iterator, mesh: Mesh, total: int, name: str
) -> Iterator[dict[str, np.ndarray]]:
    """Results on the host; the next batch is dispatched before those of the last are fetched."""
    first = jax.process_index() == 0
    pending = None
    with progress_bar(
        total, description=f"features of {name}", unit="image", leave=False, enabled=first
    ) as bar:
        for _, batch in prefetch(batches, mesh):
            results = compute(variables, batch)
            if pending is not None:
                yield _fetched(pending, bar)
            pending = results
        if pending is not None:
            yield _fetched(pending, bar)


def _fetched(results: dict[str, Array], bar) -> dict[str, np.ndarray]:
    host = {name: np.asarray(value) for name, value in results.items()}
    bar.update(int(np.sum(host["image_index"] >= 0)))
    return host


def _joined(batches: Iterator[dict[str, np.ndarray]]) -> Features:
    """Features of the rows that hold an image."""
    values, indices, unread = [], [], 0
    for batch in batches:
        valid = batch["valid"]
        values.append(batch["values"][valid])
        indices.append(batch["image_index"][valid])
        unread += int(np.sum(~valid & (batch["image_index"] >= 0)))
    return Features(np.concatenate(values), np.concatenate(indices), unread)
