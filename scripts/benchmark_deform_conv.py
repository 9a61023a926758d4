"""Deformable convolution beside an ordinary one: times on this device, and what XLA counts.

    python scripts/benchmark_deform_conv.py
    python scripts/benchmark_deform_conv.py --layers 256x25x38 --repeats 50 --backward

A layer is CHANNELSxHEIGHTxWIDTH, as many channels out as in, 3x3, stride 1; the defaults are those
of ResNet-50's stages C3 to C5 at 800x1216, and a SOLOv2 tower's on its largest grid. The layers are
those of the networks, weights, offset convolution and all; offsets are random, of about two pixels.
All run in one process and take turns, so that what else the machine does meets them alike. GFLOP
and GB are `cost_analysis` of a program whose loop over the taps is unrolled, since XLA counts a
loop's body once. For a device that is not here, `--cost_for tpu` counts the program that would be
compiled for it, before operations are fused, so that its GB are more than it would move. Their
quotient (FLOP per byte) beside a device's own tells whether the layer would be bound by memory
there: one TPU v4 makes 275 TFLOP/s in bfloat16 and reads 1.2 TB/s, 229 per byte.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from solojax.models.deform_conv import conv_class

KINDS = {"none": "ordinary", "v1": "deformable v1", "v2": "deformable v2"}
LAYERS = ("128x100x152", "256x50x76", "512x25x38", "512x40x40")
TAPS = 9


@dataclasses.dataclass
class Program:
    """One compiled layer: what it is called with, its cost by XLA, and its times."""

    name: str
    run: Callable
    inputs: tuple
    gflop: float
    gigabytes: float
    temporary_mib: float
    seconds: list[float] = dataclasses.field(default_factory=list)


def main() -> None:
    """Runs the benchmark and prints a table for each layer."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", nargs="+", default=LAYERS, metavar="CxHxW")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=15, help="runs of every program")
    parser.add_argument("--backward", action="store_true", help="with all gradients")
    parser.add_argument("--cost_for", metavar="PLATFORM", help="count for tpu, cuda, ... instead")
    args = parser.parse_args()
    print(f"{jax.default_backend()}, batch {args.batch}, {args.dtype}", end="")
    print(", forward and backward" if args.backward else ", forward", end="")
    print(f"; costs before fusion for {args.cost_for}" if args.cost_for else "")
    for layer in args.layers:
        channels, height, width = map(int, layer.split("x"))
        x = make_image(args.batch, height, width, channels).astype(args.dtype)
        programs = [compile_layer(kind, x, args.backward, args.cost_for) for kind in KINDS]
        take_turns(programs, args.repeats)
        print_table(layer, programs)


def make_image(batch: int, height: int, width: int, channels: int) -> jax.Array:
    """(B, H, W, C) of normal numbers."""
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(batch, height, width, channels)), jnp.float32)


def compile_layer(kind: str, x: jax.Array, backward: bool, platform: str | None) -> Program:
    """A 3x3 layer of one kind, "none" being the ordinary convolution; costs for a platform."""
    layer = conv_class(kind)(x.shape[-1], 3, use_bias=False, dtype=x.dtype)
    params = jax.jit(layer.init)(jax.random.key(0), x)["params"]
    if kind != "none":
        params["offset"] = offset_params(params["offset"])

    def forward(params, x):
        return layer.apply({"params": params}, x)

    def both_ways(params, x):
        return jax.value_and_grad(lambda *of: jnp.sum(forward(*of) ** 2), argnums=(0, 1))(params, x)

    function = both_ways if backward else forward
    run = jax.jit(function).lower(params, x).compile()
    memory = run.memory_analysis()
    cost = unrolled_cost(lambda *args: function(*args), (params, x), platform)
    return Program(
        name=KINDS[kind],
        run=run,
        inputs=(params, x),
        gflop=cost["flops"] / 1e9,
        gigabytes=cost["bytes accessed"] / 1e9,
        temporary_mib=memory.temp_size_in_bytes / 2**20 if memory else float("nan"),
    )


def unrolled_cost(function: Callable, inputs: tuple, platform: str | None) -> dict:
    """XLA's figures for a function that was not traced before, loops unrolled."""
    unrolled = functools.partial(jax.lax.scan, unroll=TAPS)
    with mock.patch.object(jax.lax, "scan", unrolled):
        traced = jax.jit(function).trace(*inputs)
    if platform is None:
        return traced.lower().compile().cost_analysis()
    return traced.lower(lowering_platforms=(platform,)).cost_analysis()


def offset_params(params: dict) -> dict:
    """Weights of the offset convolution that give offsets of about two pixels."""
    shape = params["kernel"].shape
    scale = 2 / np.prod(shape[:3]) ** 0.5
    kernel = np.random.default_rng(1).normal(scale=scale, size=shape)
    return {**params, "kernel": jnp.asarray(kernel, jnp.float32)}


def take_turns(programs: list[Program], repeats: int) -> None:
    """Times every program, after one run that does not count."""
    for program in programs:
        jax.block_until_ready(program.run(*program.inputs))
    for _ in range(repeats):
        for program in programs:
            start = time.perf_counter()
            jax.block_until_ready(program.run(*program.inputs))
            program.seconds.append(time.perf_counter() - start)


def print_table(layer: str, programs: list[Program]) -> None:
    """Median, fastest and slowest run, ratio to the ordinary one's median, and XLA's figures."""
    base = statistics.median(programs[0].seconds)
    print(f"\n{layer}, 3x3: milliseconds over {len(programs[0].seconds)} runs each")
    for program in programs:
        median = statistics.median(program.seconds)
        intensity = program.gflop / program.gigabytes
        print(
            f"{program.name:14} median {1e3 * median:8.2f}  min {1e3 * min(program.seconds):8.2f}"
            f"  max {1e3 * max(program.seconds):8.2f}  ratio {median / base:5.2f}"
            f"  GFLOP {program.gflop:7.2f}  GB {program.gigabytes:6.3f}"
            f"  FLOP/byte {intensity:6.1f}  temporary {program.temporary_mib:7.1f} MiB"
        )


if __name__ == "__main__":
    main()
