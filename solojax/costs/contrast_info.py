"""What contrastive pre-training costs: parameters, operations of DenseCL beside MoCo-v2's."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator

import jax
from ml_collections import ConfigDict

from solojax.costs.operations import count_operations, count_parameters, count_step_operations
from solojax.costs.workloads import TrainingParts, training_parts

_DENSECL, _MOCO = "DenseCL", "MoCo-v2"
_DENSE_WEIGHT = 0.5  # where a config of MoCo-v2 gives none; it changes no count


@dataclasses.dataclass(frozen=True)
class ContrastInfo:
    """Contrastive pre-training in numbers.

    Attributes:
      parameters: of every part of the config's encoder, of which there are two.
      queue_bytes: of all queues together.
      canvas: (H, W) of the views.
      rows: images of a step.
      gflop: operations in 1e9, {what: {"DenseCL": ..., "MoCo-v2": ...}}.
    """

    parameters: dict[str, int]
    queue_bytes: int
    canvas: tuple[int, int]
    rows: int
    gflop: dict[str, dict[str, float]]


def describe_contrast(config: ConfigDict, canvas: tuple[int, int]) -> ContrastInfo:
    """Counts parameters and operations; nothing is compiled or run.

    Args:
      config: of contrastive pre-training, with a dense head or without: both are counted.
      canvas: (H, W) of the views.
    """
    rows = config.train.batch_size
    methods = {
        name: training_parts(_with_dense_head(config, name == _DENSECL), rows, canvas)
        for name in (_DENSECL, _MOCO)
    }
    state = methods[_DENSECL if config.model.dense else _MOCO].abstract_state()
    counts = {
        "encoder forward, a view": lambda parts: _count_forward(parts) / rows,
        "training step, an image": lambda parts: count_step_operations(parts) / rows,
    }
    return ContrastInfo(
        parameters=count_parameters(state.params),
        queue_bytes=sum(
            math.prod(leaf.shape) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(state.extra["queues"])
        ),
        canvas=canvas,
        rows=rows,
        gflop={
            what: {name: count(parts) / 1e9 for name, parts in methods.items()}
            for what, count in counts.items()
        },
    )


def contrast_info_lines(info: ContrastInfo) -> Iterator[str]:
    """The numbers for a person."""
    for name, count in info.parameters.items():
        yield f"{name:24}{count:>14,} parameters"
    total = sum(info.parameters.values())
    yield f"{'encoder':24}{total:>14,} parameters, {4 * total / 2**20:.1f} MiB in float32"
    yield f"{'key encoder':24}{total:>14,} more; queues {info.queue_bytes / 2**20:.1f} MiB"
    height, width = info.canvas
    yield ""
    head = f"GFLOP at {height}x{width}, {info.rows} images a step"
    yield f"{head:40}{_DENSECL:>10}{_MOCO:>10}{'ratio':>8}"
    for what, counts in info.gflop.items():
        dense, plain = counts[_DENSECL], counts[_MOCO]
        yield f"{what:40}{dense:>10.3f}{plain:>10.3f}{dense / plain:>8.3f}"
    yield "(a step encodes a query and a key view of every image; both encoders are alike)"


def _with_dense_head(config: ConfigDict, dense: bool) -> ConfigDict:
    config = config.copy_and_resolve_references()
    config.model.dense = dense
    config.contrast.dense_weight = (config.contrast.dense_weight or _DENSE_WEIGHT) if dense else 0.0
    return config


def _count_forward(parts: TrainingParts) -> float:
    """Operations of the encoder on one view of every image, BatchNorm taking its statistics."""
    task, state = parts.task, parts.abstract_state()
    views = jax.eval_shape(task.normalize, parts.batch(jax.ShapeDtypeStruct).views)
    image = jax.ShapeDtypeStruct((views.shape[0], *views.shape[2:]), views.dtype)
    forward = functools.partial(task.encoder.apply, train=True, mutable=["batch_stats"])
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return count_operations(forward, variables, image)
