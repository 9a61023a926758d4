"""Times of one SOLOv2 inference and one training step, compilation apart.

    python scripts/benchmark_step.py --config configs/solov2.py:r50 --canvas 800x1216

Random weights and a random image; the category bias is raised or lowered until about `--candidates`
cells pass the score threshold, since post-processing costs what the candidates cost.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from solojax.build import build_optimizer, build_task
from solojax.config import load_config
from solojax.ops.masks import pack_masks
from solojax.postprocess.detections import category_scores, detect
from solojax.structures import Batch, Instances
from solojax.train.state import create_state
from solojax.train.step import make_train_step

NUM_CLASSES = 80


def main() -> None:
    """Runs the benchmark and prints a line per phase."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/solov2.py:r50")
    parser.add_argument("--canvas", default="800x1216", help="of inference, HxW")
    parser.add_argument("--train_canvas", default="512x512", help="of training, HxW")
    parser.add_argument("--train_batch", type=int, default=2)
    parser.add_argument("--objects", type=int, default=15, help="per training image")
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    config = load_config(args.config)
    task = build_task(config, NUM_CLASSES)
    print(f"{jax.default_backend()}, {jax.device_count()} device(s); median [min-max] of repeats")
    time_inference(task, parse_canvas(args.canvas), args.candidates, args.repeats)
    train_batch = make_batch(args.train_batch, parse_canvas(args.train_canvas), args.objects)
    time_training(task, config, train_batch, args.repeats)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of the process {peak:.2f} GiB")


def parse_canvas(text: str) -> tuple[int, int]:
    """ "800x1216" to (800, 1216)."""
    height, width = map(int, text.split("x"))
    return height, width


def make_batch(rows: int, canvas: tuple[int, int], objects: int, capacity: int = 100) -> Batch:
    """Random images with square objects of all scales."""
    rng = np.random.default_rng(0)
    height, width = canvas
    half = np.exp(rng.uniform(np.log(8), np.log(min(canvas) / 2.5), (rows, capacity, 1)))
    center = rng.uniform(0.3, 0.7, (rows, capacity, 2)) * (width, height)
    ys, xs = np.mgrid[: height // 4, : width // 4] * 4 + 2
    offset_x = np.abs(xs - center[..., 0, None, None])
    offset_y = np.abs(ys - center[..., 1, None, None])
    masks = np.maximum(offset_x, offset_y) < half[..., None]
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
            labels=rng.integers(0, NUM_CLASSES, (rows, capacity)).astype(np.int32),
            centers=center.astype(np.float32),
            masks=np.asarray(pack_masks(jnp.asarray(masks))),
            valid=np.tile(np.arange(capacity) < objects, (rows, 1)),
        ),
    )


def time_inference(task, canvas, candidates: int, repeats: int) -> None:
    """Network, post-processing and both in one program."""
    batch = make_batch(1, canvas, objects=0)
    variables = jax.jit(task.init)(jax.random.key(0), batch)
    forward = compile_apart("network, forward", task.forward, variables, batch)
    outputs = forward(variables, batch)
    outputs = with_candidates(task, outputs, candidates)
    found = int(jnp.sum(category_scores(outputs.category_logits, task.grid) > 0.1))
    detect_function = lambda outputs: detect(outputs, task.grid, task.detection)  # noqa: E731
    post = compile_apart("post-processing", detect_function, outputs)
    predict = compile_apart("predict", task.predict, variables, batch)
    report("network, forward", forward, repeats, variables, batch)
    report(f"post-processing, {found} candidates", post, repeats, outputs)
    report("predict in one program (few candidates)", predict, repeats, variables, batch)


def with_candidates(task, outputs, count: int):
    """Spreads the category logits and shifts them so that about `count` pass the threshold."""
    logits = jax.random.normal(jax.random.key(1), outputs.category_logits.shape)
    scores = category_scores(logits, task.grid)
    kept = jnp.where(scores > 0, logits, -jnp.inf).ravel()
    threshold = jnp.log(task.detection.score_threshold / (1 - task.detection.score_threshold))
    return outputs.replace(category_logits=logits - jax.lax.top_k(kept, count)[0][-1] + threshold)


def time_training(task, config, batch: Batch, repeats: int) -> None:
    """One training step."""
    optimizer, _ = build_optimizer(config, 1000)
    state = jax.jit(lambda key: create_state(task, optimizer, key, batch))(jax.random.key(0))
    rows, height, width = batch.image.shape[:3]
    name = f"training step, {rows} x {height}x{width}"
    step = compile_apart(name, make_train_step(task, optimizer), state, batch)
    report(name, step, repeats, state, batch)


def compile_apart(name: str, function, *args):
    """Compiles, and prints what that took and what the program says of itself."""
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*args).compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis().temp_size_in_bytes / 2**30
    flops = compiled.cost_analysis().get("flops", float("nan")) / 1e9
    print(f"{name}: compiled in {seconds:.1f} s, {flops:.0f} GFLOP, {memory:.2f} GiB temporary")
    return compiled


def report(name: str, function, repeats: int, *args) -> None:
    """Prints median and range of the run times."""
    jax.block_until_ready(function(*args))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(*args))
        times.append(time.perf_counter() - start)
    print(f"{name}: {statistics.median(times):.3f} s [{min(times):.3f}-{max(times):.3f}]")


if __name__ == "__main__":
    main()
