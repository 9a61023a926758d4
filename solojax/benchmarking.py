"""Times of the phases of inference and of a training step, on random weights and images.

Compilation is timed apart. Times are wall clock, medians of some repetitions; what XLA says of a
compiled program (operations, temporary memory) stands beside them.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from solojax.build import build_optimizer, build_task
from solojax.build_network import coarse_factors
from solojax.data.image_io import read_image
from solojax.data.packing import pack_masks
from solojax.errors import InputError
from solojax.models.towers import head_levels
from solojax.ops.nms import matrix_nms
from solojax.postprocess.detections import category_scores, detect
from solojax.postprocess.rescale import encode_rle, resize_masks
from solojax.structures import Batch, Instances, SegmenterOutputs
from solojax.tasks.instance_segmentation import InstanceSegmentation
from solojax.train.state import create_state
from solojax.train.step import make_train_step

NUM_CLASSES = 80
CAPACITY = 100  # N of the random training images


@dataclasses.dataclass(frozen=True)
class Timing:
    """One phase.

    Attributes:
      name: of the phase.
      seconds: of every repetition.
      compile_seconds: None for work of the host.
      gflop: operations that XLA counts, in 1e9; None for work of the host. The body of a loop
        counts once.
      temporary_gib: memory for intermediate values; None for work of the host.
    """

    name: str
    seconds: tuple[float, ...]
    compile_seconds: float | None = None
    gflop: float | None = None
    temporary_gib: float | None = None


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
    task = build_task(config, NUM_CLASSES)
    batch = random_batch(1, canvas, objects=0)
    yield _time_decode(batch.image[0], repeats)
    variables = jax.jit(task.init)(jax.random.key(0), batch)
    yield from _time_network(task, variables, batch, repeats)
    whole, run = _compiled("network, whole", task.forward, repeats, variables, batch)
    yield whole
    outputs = with_candidates(task, run(variables, batch), candidates)
    post = lambda outputs: detect(outputs, task.grid, task.detection)  # noqa: E731
    timing, run = _compiled("post-processing, whole", post, repeats, outputs)
    yield timing
    yield _time_nms(task, repeats)
    yield from _time_host(jax.device_get(run(outputs)), canvas, repeats)
    yield _compiled("network and post-processing", task.predict, repeats, variables, batch)[0]


def time_training(
    config: ConfigDict, rows: int, canvas: tuple[int, int], *, objects: int = 15, repeats: int = 5
) -> Timing:
    """Times a whole training step on random images with so many objects each."""
    task = build_task(config, NUM_CLASSES)
    optimizer, _ = build_optimizer(config, 1000)
    batch = random_batch(rows, canvas, objects, coarse_factors(config))
    state = jax.jit(lambda key: create_state(task, optimizer, key, batch))(jax.random.key(0))
    name = f"training step, {rows} x {canvas[0]}x{canvas[1]}"
    return _compiled(name, make_train_step(task, optimizer), repeats, state, batch)[0]


def random_batch(
    rows: int, canvas: tuple[int, int], objects: int, factors: tuple[int, ...] = ()
) -> Batch:
    """Random images with square objects of all scales.

    Args:
      rows: B.
      canvas: (H, W), multiples of 32.
      objects: of every image, at most CAPACITY.
      factors: scales of masks besides 1/4.
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
            labels=rng.integers(0, NUM_CLASSES, (rows, CAPACITY)).astype(np.int32),
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


def table(timings: Iterator[Timing]) -> Iterator[str]:
    """Lines for a person, each as soon as it is known."""
    heads = ("median s", "min", "max", "GFLOP", "temp GiB", "compile s")
    columns = zip(heads, (10, 9, 9, 9, 10, 11), strict=True)
    yield f"{'phase':34}" + "".join(f"{head:>{width}}" for head, width in columns)
    for timing in timings:
        numbers = (timing.gflop, timing.temporary_gib, timing.compile_seconds)
        widths = ((9, 1), (10, 2), (11, 1))
        yield (
            f"{timing.name:34}{statistics.median(timing.seconds):10.4f}"
            f"{min(timing.seconds):9.4f}{max(timing.seconds):9.4f}"
            + "".join(
                f"{'-':>{width}}" if number is None else f"{number:{width}.{digits}f}"
                for number, (width, digits) in zip(numbers, widths, strict=True)
            )
        )


def _time_network(task, variables, batch: Batch, repeats: int) -> Iterator[Timing]:
    """Backbone, neck, mask features and head, each compiled alone."""
    model, params = task.model, variables["params"]
    stats = {"batch_stats": variables["batch_stats"]["backbone"]}
    image = task.normalized(batch)

    def part(name: str, module, call, *args):
        own = {"params": params[name]} | (stats if name == "backbone" else {})
        timing, run = _compiled(name, lambda own, *x: call(module, own, *x), repeats, own, *args)
        return timing, run(own, *args)

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
    return _compiled(name, matrix_nms, repeats, iou, labels, scores, valid)[0]


def _time_decode(image: np.ndarray, repeats: int) -> Timing:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.jpg"
        cv2.imwrite(str(path), cv2.GaussianBlur(image, (0, 0), 3))
        seconds = _repeat(lambda: read_image(path), repeats)
    return Timing("decode the JPEG", seconds)


def _time_host(found, canvas: tuple[int, int], repeats: int) -> Iterator[Timing]:
    """Resize and run lengths of the detected masks."""
    masks = found.masks[0, found.valid[0]]
    resized = resize_masks(masks, canvas, canvas)
    count = len(masks)
    yield Timing(
        f"resize {count} masks", _repeat(lambda: resize_masks(masks, canvas, canvas), repeats)
    )
    encode = lambda: [encode_rle(mask) for mask in resized]  # noqa: E731
    yield Timing(f"run lengths of {count} masks", _repeat(encode, repeats))


def _compiled(name: str, function: Callable, repeats: int, *args) -> tuple[Timing, Callable]:
    """Compiles and times a function; returns the compiled one too."""
    start = time.perf_counter()
    run = jax.jit(function).lower(*args).compile()
    compile_seconds = time.perf_counter() - start
    cost, memory = run.cost_analysis() or {}, run.memory_analysis()
    seconds = _repeat(lambda: jax.block_until_ready(run(*args)), repeats)
    flops = cost.get("flops")
    timing = Timing(
        name,
        seconds,
        compile_seconds,
        None if flops is None else flops / 1e9,
        None if memory is None else memory.temp_size_in_bytes / 2**30,
    )
    return timing, run


def _repeat(work: Callable, repeats: int) -> tuple[float, ...]:
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return tuple(seconds)
