"""Matrix NMS beside hard, soft and fast NMS, from the IoU matrix (thesis Table 4.6).

    python scripts/benchmark_nms.py --masks 500

All run in one process and take turns, so that what else the machine does meets them alike. The
scene is random: boxes around a number of objects, several per object, of a few classes. Computing
the IoU matrix is not timed, nor is compiling. Hard NMS runs in rounds over the whole matrix, as
many as the longest chain of overlapping objects; soft NMS takes a step for every mask.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time

import jax
import numpy as np

from solojax.ops.nms import fast_nms, hard_nms, matrix_nms, soft_nms

METHODS = {
    "matrix, gaussian": matrix_nms,
    "matrix, linear": functools.partial(matrix_nms, kernel="linear"),
    "fast": fast_nms,
    "hard": hard_nms,
    "soft, gaussian": soft_nms,
    "soft, linear": functools.partial(soft_nms, kernel="linear"),
}


def main() -> None:
    """Runs the benchmark and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--masks", type=int, default=500, help="M, masks of an image")
    parser.add_argument("--objects", type=int, default=40, help="that the masks belong to")
    parser.add_argument("--classes", type=int, default=5)
    parser.add_argument("--batch", type=int, default=1, help="images that go through together")
    parser.add_argument("--repeats", type=int, default=300, help="runs of every method")
    args = parser.parse_args()
    scenes = [make_scene(n, args.masks, args.objects, args.classes) for n in range(args.batch)]
    scene = [jax.device_put(np.stack(parts)) for parts in zip(*scenes, strict=True)]
    print(f"{jax.default_backend()}, {args.batch} image(s) with {args.masks} masks each")
    print_table(time_methods(scene, args.repeats))


def make_scene(seed: int, masks: int, objects: int, classes: int) -> tuple[np.ndarray, ...]:
    """IoU (M, M), labels, descending scores and validity (M,) of boxes around random objects."""
    rng = np.random.default_rng(seed)
    owner = rng.integers(0, objects, masks)
    center = rng.uniform(0, 400, (objects, 2))[owner] + rng.normal(0, 6, (masks, 2))
    size = rng.uniform(30, 150, (objects, 2))[owner] * np.exp(rng.normal(0, 0.15, (masks, 2)))
    low, high = center - size / 2, center + size / 2
    shared = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
    shared = np.maximum(shared, 0).prod(axis=-1)
    area = size.prod(axis=-1)
    iou = shared / (area[:, None] + area - shared)
    scores = np.sort(rng.uniform(0.1, 1, masks))[::-1]
    labels = owner % classes
    return (
        iou.astype(np.float32),
        labels.astype(np.int32),
        scores.astype(np.float32),
        np.ones(masks, bool),
    )


def time_methods(scene: list[jax.Array], repeats: int) -> dict[str, list[float]]:
    """Seconds of every run of every method, after compiling and one run that does not count."""
    programs = {name: jax.jit(nms).lower(*scene).compile() for name, nms in METHODS.items()}
    for program in programs.values():
        jax.block_until_ready(program(*scene))
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*scene))
            seconds[name].append(time.perf_counter() - start)
    return seconds


def print_table(seconds: dict[str, list[float]]) -> None:
    """Median, fastest and slowest run of each method, and its ratio to the first one's median."""
    base, *_ = seconds
    print(f"milliseconds over {len(seconds[base])} runs each; ratio of the medians to {base}")
    for name, times in seconds.items():
        median = statistics.median(times)
        print(
            f"{name:18} median {1e3 * median:7.3f}  min {1e3 * min(times):7.3f}"
            f"  max {1e3 * max(times):7.3f}  ratio {median / statistics.median(seconds[base]):5.2f}"
        )


if __name__ == "__main__":
    main()
