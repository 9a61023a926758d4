"""Models out of PyTorch's checkpoint files: the config that a file implies, and the whole model."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

from ml_collections import ConfigDict

from solojax.builders.segmentation import build_task
from solojax.config import base_config, validate
from solojax.config.schema import flatten, known_keys, set_value
from solojax.errors import InputError
from solojax.inference.segmenter import Segmenter, make_segmenter, variable_shapes
from solojax.interop.fitting import check_settings
from solojax.interop.load import (
    ForeignCheckpoint,
    fit,
    import_backbone,
    open_checkpoint,
    require_whole,
)
from solojax.interop.trees import flatten as flatten_tree
from solojax.structures import PyTree

_logger = logging.getLogger(__name__)


def load_foreign(
    path: str | os.PathLike,
    *,
    config: Callable[[ConfigDict], ConfigDict] | None = None,
    stem: str | None = None,
) -> Segmenter:
    """A model from a checkpoint file of another system.

    Args:
      path: see `solojax.interop.files.read_state`.
      config: changes the config that the file implies, for other inference settings; what it says
        of the network must be what the file says.
      stem: see `open_checkpoint`.

    Raises:
      InputError: the file cannot be read, is a backbone alone, or does not fit the config.
    """
    found = open_checkpoint(path, stem)
    require_whole(found)
    return segmenter_of(found, config)


def segmenter_of(
    found: ForeignCheckpoint, change: Callable[[ConfigDict], ConfigDict] | None = None
) -> Segmenter:
    """The model of a file that holds a whole network; see `load_foreign`."""
    for note in found.notes:
        _logger.info("%s: %s", found.path, note)
    implied = implied_config(found)
    config = implied if change is None else change(implied)
    check_settings(found.architecture, flatten(config), where=found.title)
    task = build_task(config, len(found.categories))
    variables = fit(found, variable_shapes(task))
    unused = [
        found.foreign_name(leaf)
        for leaf in flatten_tree({name: found.variables.get(name, {}) for name in variables})
        if leaf not in flatten_tree(variables)
    ]
    if unused:
        _logger.info("%s: not read by this network: %s", found.path, ", ".join(unused))
    return make_segmenter(config, task, variables, found.categories, step=0)


def implied_config(found: ForeignCheckpoint) -> ConfigDict:
    """The config of the network in a file: the defaults, and what its weights and layout say.

    Raises:
      InputError: the network needs what this package does not have.
    """
    config = base_config()
    for key, value in (found.published | found.architecture).items():
        if key not in known_keys():
            raise InputError(
                f"checkpoint {found.title}: it needs {key}={value}, which this version does not "
                "have; use a later one"
            )
        set_value(config, key, value)
    try:
        validate(config)
    except InputError as error:
        raise InputError(f"checkpoint {found.title}: {error}") from error
    return config


def start_from_backbone(params: PyTree, batch_stats: PyTree, config: ConfigDict):
    """Fresh variables whose backbone is that of `config.model.backbone.checkpoint`.

    Args:
      params: of a whole network, with a branch `backbone`.
      batch_stats: likewise.
      config: names the file.

    Returns:
      (params, batch_stats) with the file's values in the place of the backbone's.

    Raises:
      InputError: the file cannot be read, or does not fit the config.
    """
    expected = {"params": params["backbone"], "batch_stats": batch_stats["backbone"]}
    loaded, found = import_backbone(config.model.backbone.checkpoint, flatten(config), expected)
    for note in found.notes:
        _logger.info("%s: %s", found.path, note)
    _logger.info("the backbone starts from %s", found.title)
    merged = {name: _merged(expected[name], loaded[name]) for name in expected}
    return (
        {**params, "backbone": merged["params"]},
        {**batch_stats, "backbone": merged["batch_stats"]},
    )


def _merged(fresh: PyTree, loaded: PyTree) -> PyTree:
    """`fresh` with the leaves that are in `loaded`."""
    if not isinstance(fresh, dict):
        return loaded
    return {
        name: _merged(value, loaded[name]) if name in loaded else value
        for name, value in fresh.items()
    }
