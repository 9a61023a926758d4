"""Times of the phases of inference, on random weights and images.

Compilation is timed apart. Times are wall clock, medians of some repetitions; what XLA says of a
compiled program (operations, temporary memory) stands beside them.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from solojax.builders.segmentation import build_task
from solojax.costs.timing import Timing, repeat, time_compiled
from solojax.costs.workloads import COCO_CLASSES, num_classes_of
from solojax.data.image_io import read_image
from solojax.data.packing import pack_masks
from solojax.errors import InputError
from solojax.models.towers import head_levels
from solojax.ops.nms import matrix_nms
from solojax.postprocess.detections import category_scores, detect
from solojax.postprocess.rescale import encode_rle, resize_masks
from solojax.structures import Batch, Instances, SegmenterOutputs
from solojax.tasks.instance_segmentation import InstanceSegmentation

CAPACITY = 100  # N of the random training images


def time_inference(
    config: ConfigDict, canvas: tuple[int, int], *, candidates: int = 100, repeats: int = 5
) -> Iterator[Timing]:
    """Times the phases of one image from its file to run lengths.

    Args:
      config: of the model; its post-processing settings apply.
      canvas: (H, W), multiples of 32.
      candidates: about how many (cell, class) pairs pass the score threshold, since
        post-processing costs what they cost.
      repeats: runs of every phase.
    """
    task = build_task(config, num_classes_of(config))
    batch = random_batch(1, canvas, objects=0)
    yield _time_decode(batch.image[0], repeats)
    variables = jax.jit(task.init)(jax.random.key(0), batch)
    yield from _time_network(task, variables, batch, repeats)
    whole, run = time_compiled("network, whole", task.forward, repeats, variables, batch)
    yield whole
    outputs = with_candidates(task, run(), candidates)
    post = lambda outputs: detect(outputs, task.grid, task.detection)  # noqa: E731
    timing, run = time_compiled("post-processing, whole", post, repeats, outputs)
    yield timing
    yield _time_nms(task, repeats)
    yield from _time_host(jax.device_get(run()), canvas, repeats)
    yield time_compiled("network and post-processing", task.predict, repeats, variables, batch)[0]


def random_batch(
    rows: int,
    canvas: tuple[int, int],
    objects: int,
    factors: tuple[int, ...] = (),
    num_classes: int = COCO_CLASSES,
) -> Batch:
    """Random images with square objects of all scales.

    Args:
      rows: B.
      canvas: (H, W), multiples of 32.
      objects: of every image, at most CAPACITY.
      factors: scales of masks besides 1/4.
      num_classes: K.
    """
    rng = np.random.default_rng(0)
    height, width = canvas
    spread = rng.uniform(math.log(8), math.log(min(canvas) / 2.5), (rows, CAPACITY, 1))
    half = np.exp(spread)
    center = rng.uniform(0.3, 0.7, (rows, CAPACITY, 2)) * (width, height)

    def masks_at(factor: int) -> np.ndarray:
        ys, xs = (np.mgrid[: height // factor, : width // factor] + 0.5) * factor
        x, y = center[..., 0, None, None], center[..., 1, None, None]
        return pack_masks(np.maximum(np.abs(xs - x), np.abs(ys - y)) < half[..., None])

    size = np.full((rows, 2), canvas, np.int32)
    return Batch(
        image=rng.integers(0, 256, (rows, height, width, 3)).astype(np.uint8),
        image_size=size,
        original_size=size,
        valid=np.ones(rows, bool),
        image_index=np.arange(rows, dtype=np.int32),
        seed=np.arange(rows, dtype=np.uint32),
        dropped_instances=np.zeros(rows, np.int32),
        instances=Instances(
            boxes=np.concatenate([center - half, center + half], -1).astype(np.float32),
            labels=rng.integers(0, num_classes, (rows, CAPACITY)).astype(np.int32),
            centers=center.astype(np.float32),
            masks=masks_at(4),
            valid=np.tile(np.arange(CAPACITY) < objects, (rows, 1)),
            coarse_masks=tuple(masks_at(factor) for factor in factors),
        ),
    )


def with_candidates(
    task: InstanceSegmentation, outputs: SegmenterOutputs, count: int
) -> SegmenterOutputs:
    """Spreads the category logits and shifts them so that about `count` pass the threshold."""
    logits = jax.random.normal(jax.random.key(1), outputs.category_logits.shape)
    kept = jnp.where(category_scores(logits, task.grid) > 0, logits, -jnp.inf).ravel()
    most = int(jnp.sum(jnp.isfinite(kept)))
    if count > most:
        raise InputError(f"--candidates {count}: the grid has room for {most} at most; give fewer")
    least = task.detection.score_threshold
    shift = math.log(least / (1 - least)) - jax.lax.top_k(kept, count)[0][-1]
    return outputs.replace(category_logits=logits + shift)


def _time_network(task, variables, batch: Batch, repeats: int) -> Iterator[Timing]:
    """Backbone, neck, mask features and head, each compiled alone."""
    model, params = task.model, variables["params"]
    stats = {"batch_stats": variables["batch_stats"]["backbone"]}
    image = task.normalized(batch)

    def part(name: str, module, call, *args):
        own = {"params": params[name]} | (stats if name == "backbone" else {})
        timing, run = time_compiled(
            name, lambda own, *x: call(module, own, *x), repeats, own, *args
        )
        return timing, run()

    apply = lambda module, own, *x: module.apply(own, *x)  # noqa: E731
    timing, features = part("backbone", model.backbone, apply, image)
    yield timing
    timing, pyramid = part("neck", model.neck, apply, features)
    yield timing
    extra = ()
    if model.mask_features is not None:
        timing, maps = part("mask_features", model.mask_features, apply, pyramid)
        yield timing
        extra = (maps,)
    on_levels = lambda module, own, x, *maps: module.apply(own, head_levels(x), *maps)  # noqa: E731
    yield part("head", model.head, on_levels, pyramid, *extra)[0]


def _time_nms(task: InstanceSegmentation, repeats: int) -> Timing:
    count = task.detection.nms_pre
    rng = np.random.default_rng(0)
    iou = jnp.asarray(rng.uniform(0, 1, (1, count, count)).astype(np.float32))
    scores = jnp.asarray(np.sort(rng.uniform(0, 1, (1, count)).astype(np.float32))[:, ::-1])
    labels, valid = jnp.zeros((1, count), jnp.int32), jnp.ones((1, count), bool)
    name = f"Matrix NMS of {count}, from the IoU"
    return time_compiled(name, matrix_nms, repeats, iou, labels, scores, valid)[0]


def _time_decode(image: np.ndarray, repeats: int) -> Timing:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.jpg"
        cv2.imwrite(str(path), cv2.GaussianBlur(image, (0, 0), 3))
        seconds = repeat(lambda: read_image(path), repeats)
    return Timing("decode the JPEG", seconds)


def _time_host(found, canvas: tuple[int, int], repeats: int) -> Iterator[Timing]:
    """Resize and run lengths of the detected masks."""
    masks = found.masks[0, found.valid[0]]
    resized = resize_masks(masks, canvas, canvas)
    count = len(masks)
    yield Timing(
        f"resize {count} masks", repeat(lambda: resize_masks(masks, canvas, canvas), repeats)
    )
    encode = lambda: [encode_rle(mask) for mask in resized]  # noqa: E731
    yield Timing(f"run lengths of {count} masks", repeat(encode, repeats))
