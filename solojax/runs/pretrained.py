"""Pretrained weights for a fresh network: out of a run of this project or a file of another."""

from __future__ import annotations

import logging
import os

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from solojax.config import checkpoint_config
from solojax.config.schema import flatten
from solojax.inference import foreign_models
from solojax.interop.fitting import check_same_leaves, check_settings
from solojax.interop.trees import Path
from solojax.interop.trees import flatten as flatten_tree
from solojax.runs.pretrained_segmenter import start_from_segmenter
from solojax.structures import PyTree
from solojax.train.checkpoints import load_variables
from solojax.train.state import TrainState

_logger = logging.getLogger(__name__)

# What the same weights need, whatever shape they have.
_CONVENTIONS = ("model.pixel_mean", "model.pixel_std", "model.backbone.stride_in_1x1")


def with_backbone(config: ConfigDict, state: TrainState) -> TrainState:
    """A fresh state with the pretrained backbone, if the config names one, on the same devices.

    Raises:
      InputError: as `start_from_backbone`.
    """
    if not config.model.backbone.checkpoint:
        return state
    return _with_variables(state, start_from_backbone(state.params, state.batch_stats, config))


def with_pretrained(config: ConfigDict, state: TrainState) -> TrainState:
    """A fresh state of a segmenter with what the config names, a segmenter or a backbone, if any.

    Raises:
      InputError: as `start_from_segmenter` and `start_from_backbone`.
    """
    if not config.model.checkpoint:
        return with_backbone(config, state)
    return _with_variables(state, start_from_segmenter(state.params, state.batch_stats, config))


def _with_variables(state: TrainState, loaded: tuple[PyTree, PyTree]) -> TrainState:
    """The state with (params, batch_stats), on the same devices."""
    places = jax.tree.map(lambda x: x.sharding, (state.params, state.batch_stats))
    params, stats = jax.device_put(loaded, places)
    ema = None if state.ema_params is None else jax.tree.map(jnp.copy, params)
    return state.replace(params=params, batch_stats=stats, ema_params=ema)


def start_from_backbone(
    params: PyTree, batch_stats: PyTree, config: ConfigDict
) -> tuple[PyTree, PyTree]:
    """Fresh variables whose backbone is that of `config.model.backbone.checkpoint`.

    Args:
      params: of a whole network, with a branch `backbone`.
      batch_stats: likewise.
      config: names a PyTorch file, a work directory of any task, or a checkpoint in it.

    Returns:
      (params, batch_stats) with the backbone's values in their places.

    Raises:
      InputError: it cannot be read, or does not fit the config.
    """
    path = os.path.expanduser(config.model.backbone.checkpoint)
    if not os.path.isdir(path):
        return foreign_models.start_from_backbone(params, batch_stats, config)
    loaded = load_variables(path)
    _check_conventions(loaded.metadata, loaded.path, config)
    result = []
    for fresh, trained in ((params, loaded.best_params), (batch_stats, loaded.batch_stats)):
        check_same_leaves(
            _backbone_shapes(fresh),
            _backbone_shapes(trained),
            complaint=f"checkpoint {loaded.path} has another backbone than the config",
            remedy="use its model.backbone settings",
        )
        result.append(
            {**fresh, "backbone": trained["backbone"]} if "backbone" in fresh else {**fresh}
        )
    _logger.info("the backbone starts from step %d of %s", loaded.step, loaded.path)
    return tuple(result)


def _check_conventions(metadata: dict, path: str, config: ConfigDict) -> None:
    """Stems and normalisation must be what the weights were trained with."""
    trained = flatten(checkpoint_config(metadata, path))
    known = {key: trained[key] for key in _CONVENTIONS}
    check_settings(known, flatten(config), where=path)


def _backbone_shapes(variables: PyTree) -> dict[Path, tuple]:
    backbone = flatten_tree(variables.get("backbone", {}))
    return {("backbone", *path): jnp.shape(x) for path, x in backbone.items()}
