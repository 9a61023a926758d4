"""A whole segmenter to start another one from: all but its last classification layer."""

from __future__ import annotations

import logging
import os

import numpy as np
from ml_collections import ConfigDict

from solojax.config import checkpoint_config
from solojax.config.schema import flatten
from solojax.errors import InputError
from solojax.interop.fitting import check_same_leaves, check_settings
from solojax.interop.load import open_checkpoint, require_whole
from solojax.interop.trees import Path, unflatten
from solojax.interop.trees import flatten as flatten_tree
from solojax.structures import PyTree
from solojax.train.checkpoints import load_variables

_logger = logging.getLogger(__name__)

_CLASSIFICATION = ("params", "head", "category_pred")
# FreeSOLO's prediction of embeddings: another network may lack it, or have it in vain.
_EMBEDDINGS = ("params", "head", "embedding_pred")
# What the same weights need, whatever shape they have.
_CONVENTIONS = (
    "model.pixel_mean", "model.pixel_std", "model.backbone.stride_in_1x1", "model.semantics",
)  # fmt: skip


def start_from_segmenter(
    params: PyTree, batch_stats: PyTree, config: ConfigDict
) -> tuple[PyTree, PyTree]:
    """Fresh variables with those of `config.model.checkpoint` (thesis 6.2.1).

    The classification layer, the last convolution to category logits, stays fresh, however many
    classes there were. So does the layer that predicts embeddings where the checkpoint has none;
    where this network has none, it is left.

    Args:
      params: of a whole network.
      batch_stats: likewise.
      config: names a work directory of a segmenter, a checkpoint in it, or a PyTorch file.

    Returns:
      (params, batch_stats) with the checkpoint's values in their places.

    Raises:
      InputError: it cannot be read, holds no segmenter, or is of another network.
    """
    path = os.path.expanduser(config.model.checkpoint)
    trained, title = _read(path, config)
    fresh = flatten_tree({"params": params, "batch_stats": batch_stats})
    kept = {leaf for leaf in fresh if _below(leaf, _CLASSIFICATION)}
    kept |= {leaf for leaf in fresh if _below(leaf, _EMBEDDINGS) and leaf not in trained}
    check_same_leaves(
        {leaf: np.shape(value) for leaf, value in fresh.items() if leaf not in kept},
        {
            leaf: np.shape(value)
            for leaf, value in trained.items()
            if not _below(leaf, _CLASSIFICATION)
            and not (_below(leaf, _EMBEDDINGS) and leaf not in fresh)
        },
        complaint=f"checkpoint {title} is of another network than the config",
        remedy="use its model settings",
    )
    merged = unflatten({leaf: x if leaf in kept else trained[leaf] for leaf, x in fresh.items()})
    _logger.info(
        "all weights but those of %s start from %s",
        ", ".join(sorted({"/".join(leaf[1:-1]) for leaf in kept})),
        title,
    )
    return merged["params"], merged.get("batch_stats", {})


def _read(path: str, config: ConfigDict) -> tuple[dict[Path, np.ndarray], str]:
    """The leaves of a checkpoint, and its name for messages."""
    if not os.path.isdir(path):
        found = open_checkpoint(path)
        require_whole(found)
        same = {k: v for k, v in found.architecture.items() if k != "model.num_classes"}
        check_settings(same, flatten(config), where=found.title)
        variables = {name: found.variables.get(name, {}) for name in ("params", "batch_stats")}
        return flatten_tree(variables), found.title
    loaded = load_variables(path)
    trained = flatten(checkpoint_config(loaded.metadata, loaded.path))
    if "model.semantics" not in trained:
        raise InputError(
            f"checkpoint {loaded.path} is of a {trained['task']} run and no segmenter: give it as "
            "--config.model.backbone.checkpoint in place of model.checkpoint"
        )
    known = {key: trained[key] for key in _CONVENTIONS}
    check_settings(known, flatten(config), where=loaded.path)
    leaves = flatten_tree({"params": loaded.best_params, "batch_stats": loaded.batch_stats})
    return leaves, f"step {loaded.step} of {loaded.path}"


def _below(leaf: Path, branch: Path) -> bool:
    return leaf[: len(branch)] == branch
