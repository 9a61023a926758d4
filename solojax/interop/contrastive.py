"""Self-supervised pretraining: MoCo v1 and v2, DenseCL, and both in mmselfsup and mmpretrain.

What becomes of their parts here (in a training state `solojax.tasks.densecl` has all but the query
encoder in `extra`):

    query encoder   params and batch_stats: backbone/..., neck/...
    key encoder     the same paths in the collections key_params and key_batch_stats
    queues          the collection queues: global and dense, each with `vectors` (Q, E) and the
                    `position` that is replaced next

The neck's layers are neck/global_{i} (linear) and neck/dense_{i} (1x1 convolutions), i counting the
layers with weights. MoCo's `fc` is the global head: two layers in v2, one in v1. A backbone is read
out of such a file by taking params and batch_stats of `backbone` alone.
"""

from __future__ import annotations

import dataclasses

from solojax.interop.backbones import COUNTERS, torchvision_rows
from solojax.interop.layout import CONV, LINEAR, Layout, Row, Tensor

QUEUE = (
    Tensor("", "queues", "vectors", axes=(1, 0)),
    Tensor("_ptr", "queues", "position", integer=True, scalar=True),
)
_QUEUES = (Row("queue", "global", QUEUE), Row("queue2", "dense", QUEUE))


def _key_encoder(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """The same rows with the collections of the key encoder."""
    return tuple(
        dataclasses.replace(
            row,
            tensors=tuple(
                dataclasses.replace(tensor, collection=f"key_{tensor.collection}")
                for tensor in row.tensors
            ),
        )
        for row in rows
    )


def _neck(prefix: str) -> tuple[Row, ...]:
    """Sequentials of layer, ReLU, layer: the weights have even numbers."""
    return (
        Row(f"{prefix}mlp.{{2i}}", "neck/global_{i}", LINEAR),
        Row(f"{prefix}mlp2.{{2i}}", "neck/dense_{i}", CONV),
    )


def _moco_encoder(prefix: str) -> tuple[Row, ...]:
    return (
        *torchvision_rows(prefix),
        Row(f"{prefix}fc.{{2i}}", "neck/global_{i}", LINEAR),
        Row(f"{prefix}fc", "neck/linear", LINEAR),
    )


def _densecl_encoder(prefix: str) -> tuple[Row, ...]:
    return (*torchvision_rows(f"{prefix}0."), *_neck(f"{prefix}1."))


MOCO = Layout(
    name="moco",
    title="MoCo",
    rows=(*_moco_encoder("encoder_q."), *_key_encoder(_moco_encoder("encoder_k.")), _QUEUES[0]),
    ignored=(COUNTERS,),
    marks=("encoder_q.conv1.weight", "encoder_q.layer1.0.conv1.weight"),
    prefix="module.",
)

DENSECL = Layout(
    name="densecl",
    title="DenseCL",
    rows=(
        *_densecl_encoder("encoder_q."),
        *_key_encoder(_densecl_encoder("encoder_k.")),
        *_QUEUES,
    ),
    # The published code keeps the query encoder's backbone under a second name.
    ignored=(r"backbone\..*", r"head\..*", COUNTERS),
    marks=("encoder_q.0.conv1.weight", "encoder_q.0.layer1.0.conv1.weight"),
)

MMSELFSUP = Layout(
    name="mmselfsup",
    title="DenseCL or MoCo of mmselfsup and mmpretrain",
    rows=(
        *torchvision_rows("backbone."),
        *_neck("neck."),
        *_key_encoder((*torchvision_rows("encoder_k.module.0."), *_neck("encoder_k.module.1."))),
        *_QUEUES,
    ),
    ignored=(r"encoder_k\.steps", r"head\..*", r"data_preprocessor\..*", COUNTERS),
    marks=("backbone.conv1.weight", "neck.mlp.0.weight"),
)
