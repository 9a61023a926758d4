"""From a FreeSOLO config to what its task has beside those of instance segmentation."""

from __future__ import annotations

import functools
from typing import Any

from ml_collections import ConfigDict

from solojax.ops.strong_weak import strong_and_weak
from solojax.tasks.free_solo import learns_embeddings

_LOSSES = (
    "max_projection_weight", "mean_projection_weight", "projection_epsilon", "pairwise_weight",
    "pairwise_warmup_steps", "pairwise_dilation", "color_threshold", "ignored_bottom_rows",
    "semantic_weight", "semantics",
)  # fmt: skip


def free_solo_arguments(config: ConfigDict) -> dict[str, Any]:
    """The keyword arguments of `FreeSOLO` that a config sets otherwise than `build_task` does.

    `loss.group_images` counts images, and the task rows: two of an image where it is doubled.
    """
    loss, strong = config.loss, config.strong.to_dict()
    enabled = strong.pop("enabled")
    rows = 2 if enabled else 1
    return {name: loss[name] for name in _LOSSES} | {
        "augment": functools.partial(strong_and_weak, **strong) if enabled else None,
        "loss_group_images": None if loss.group_images is None else rows * loss.group_images,
    }


def embedding_width(config: ConfigDict) -> int | None:
    """E of the embeddings that are learned; None where there is no semantic loss, or another task.

    The head predicts embeddings where it learns them. Without, pseudo-labels have none.
    """
    if config.task != "free_solo":
        return None
    learns = learns_embeddings(config.loss.semantics, config.loss.semantic_weight)
    return config.model.embedding if learns else None
