"""What a network costs: parameters by part, operations and memory of the compiled programs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from solojax.builders.segmentation import build_task
from solojax.costs.inference_benchmark import random_batch
from solojax.costs.operations import count_parameters


@dataclasses.dataclass(frozen=True)
class NetworkInfo:
    """A network in numbers.

    Attributes:
      parameters: of every part.
      canvas: (H, W) of the image that the rest is for.
      gflop: operations of the forward pass on one image, in 1e9.
      temporary_gib: intermediate values of the forward pass.
      predict_gib: the same with post-processing.
    """

    parameters: dict[str, int]
    canvas: tuple[int, int]
    gflop: float
    temporary_gib: float
    predict_gib: float


def describe_network(config: ConfigDict, canvas: tuple[int, int], num_classes: int) -> NetworkInfo:
    """Counts parameters and compiles the network for one image, without running it.

    Args:
      config: of the network and of its post-processing.
      canvas: (H, W), multiples of 32.
      num_classes: K.
    """
    task = build_task(config, num_classes)
    batch = jax.tree.map(_shape_of, random_batch(1, canvas, objects=0))
    variables = jax.eval_shape(task.init, jax.random.key(0), batch)
    forward = jax.jit(task.forward).lower(variables, batch).compile()
    predict = jax.jit(task.predict).lower(variables, batch).compile()
    return NetworkInfo(
        parameters=count_parameters(variables["params"]),
        canvas=canvas,
        gflop=(forward.cost_analysis() or {}).get("flops", math.nan) / 1e9,
        temporary_gib=_temporary_gib(forward),
        predict_gib=_temporary_gib(predict),
    )


def info_lines(info: NetworkInfo) -> Iterator[str]:
    """The numbers for a person."""
    for name, count in info.parameters.items():
        yield f"{name:24}{count:>14,} parameters"
    total = sum(info.parameters.values())
    yield f"{'all':24}{total:>14,} parameters, {4 * total / 2**20:.1f} MiB in float32"
    height, width = info.canvas
    yield f"one image of {height}x{width}: {info.gflop:.1f} GFLOP forward"
    yield (
        f"intermediate values: {info.temporary_gib:.2f} GiB, {info.predict_gib:.2f} GiB with "
        "post-processing"
    )


def _shape_of(array: np.ndarray) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _temporary_gib(compiled) -> float:
    memory = compiled.memory_analysis()
    return math.nan if memory is None else memory.temp_size_in_bytes / 2**30
