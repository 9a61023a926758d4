"""Checkpoints from one form to another: PyTorch's files, and the directories of this package."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from solojax.config import from_json, to_json
from solojax.config.schema import flatten
from solojax.errors import InputError
from solojax.inference.foreign_models import implied_config, segmenter_of
from solojax.inference.segmenter import Segmenter, load
from solojax.interop.export import SUFFIXES, check_suffix, export_checkpoint, stem_of_settings
from solojax.interop.layout import Layout
from solojax.interop.layouts import layout_named
from solojax.interop.load import ForeignCheckpoint, open_checkpoint
from solojax.interop.stems import Stem
from solojax.structures import PyTree
from solojax.train.checkpoint_loading import load_metadata, load_variables
from solojax.train.checkpoints import Checkpointer

# Beginnings of the keys that shape the results and leave no trace in the weights.
_NOT_IN_FILES = (
    "model.semantics",
    "model.head.align",
    "model.grid.",
    "evaluation.short_side",
    "evaluation.long_side",
)
_OTHER_FORMATS = (
    ".onnx",
    ".ckpt",
    ".bin",
    ".npz",
    ".h5",
    ".pb",
    ".tar",
    ".msgpack",
    ".torchscript",
)

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """A checkpoint of contrastive pre-training: encoders and queues, but no model that segments.

    Attributes:
      title: the checkpoint and what it is, in a few words.
      stem: what its backbone expects of an image.
      variables: in the collections of `solojax.interop.contrastive`.
      layout: None, for it is no file of another system.
    """

    title: str
    stem: Stem
    variables: dict[str, PyTree]
    layout: None = None


def open_source(
    path: str | os.PathLike,
    *,
    step: int | str | None = None,
    config: Callable[[ConfigDict], ConfigDict] | None = None,
    stem: str | None = None,
) -> tuple[Segmenter | None, ForeignCheckpoint | Pretraining | None]:
    """What a checkpoint of either form holds.

    Args:
      path: a file of another system, or a workdir or checkpoint directory of this package.
      step: of a workdir, see `solojax.inference.segmenter.load`.
      config: changes the config that comes with the checkpoint.
      stem: see `open_checkpoint`; for files alone.

    Returns:
      The model (None for a backbone alone and for pre-training), and what else is known of a file
      or a checkpoint of pre-training (None for one of a model).

    Raises:
      InputError: it cannot be read.
    """
    if not Path(path).is_file():
        if stem is not None:
            raise InputError(f"--stem is for files of other systems, and {path} is none; drop it")
        if _is_pretraining(path, step):
            return None, _open_pretraining(path, step, config)
        return load(path, step=step, config=config), None
    if step is not None:
        raise InputError(f"--step chooses in a workdir, and {path} is a file; drop it")
    found = open_checkpoint(path, stem)
    return None if found.is_backbone else segmenter_of(found, config), found


def _is_pretraining(path: str | os.PathLike, step: int | str | None) -> bool:
    kept = load_metadata(path, step=step).get("config")
    return isinstance(kept, str) and from_json(kept).task == "densecl"


def _open_pretraining(
    path: str | os.PathLike, step: int | str | None, change: Callable | None
) -> Pretraining:
    """The checkpoint of a contrastive run, with its key encoder and queues."""
    loaded = load_variables(path, step=step, extra=True)
    config = from_json(loaded.metadata["config"])
    if change is not None and to_json(change(from_json(to_json(config)))) != to_json(config):
        raise InputError(
            f"checkpoint {loaded.path} is of pre-training, whose weights belong to its own config: "
            "leave --config and its changes out"
        )
    return Pretraining(
        title=f"{loaded.path} (R{config.model.backbone.depth}, {config.task}, step {loaded.step})",
        stem=stem_of_settings(flatten(config)),
        variables={"params": loaded.best_params, "batch_stats": loaded.batch_stats, **loaded.extra},
    )


def is_file_name(path: Path) -> bool:
    """Whether a path names a file of weights, not a directory."""
    return path.suffix in SUFFIXES


def check_target(path: Path, layout: str | None) -> None:
    """Raises an InputError unless a path and a layout belong together, before long work."""
    if layout is not None:
        layout_named(layout)
        check_suffix(path)
        if path.is_dir():
            raise InputError(f"--output {path}: this is a folder: give the path of a file")
    elif path.suffix in _OTHER_FORMATS:
        raise InputError(
            f"--output {path}: {path.suffix} files cannot be written: give one of "
            f"{', '.join(SUFFIXES)}, or a folder"
        )
    elif not is_file_name(path) and path.is_file():
        raise InputError(f"--output {path}: a file is in the way: give the path of a folder")


def write_file(
    path: Path,
    layout: str | None,
    model: Segmenter | None,
    found: ForeignCheckpoint | Pretraining | None,
) -> Layout:
    """Writes a file of another system and returns its layout.

    Args:
      path: of the file; its suffix decides the format.
      layout: by name; None keeps that of a file.
      model: what is written, unless it is a backbone alone.
      found: the file or the pre-training that it came from, if it did.

    Raises:
      InputError: no layout is given or known, or it has no place for the network.
    """
    if layout is None and (found is None or found.layout is None):
        example = "torchvision" if model is None else "mmdet-v1-solov2"
        raise InputError(f"--output {path}: say the file's --layout, such as {example}")
    chosen = found.layout if layout is None else layout_named(layout)
    if model is not None:
        stem, names = stem_of_settings(flatten(model.config)), [n for _, n in model.categories]
        # What a file has beyond the network, FreeSOLO's embeddings, stays in a file of its layout.
        whole = model if found is None or chosen is not found.layout else found
        export_checkpoint(path, whole.variables, chosen, stem=stem, class_names=names)
        _warn_of_lost_settings(path, model)
    else:
        if found.stem is None:
            raise InputError(
                f"checkpoint {found.title}: the file does not tell how its stem reads images; add "
                "--stem msra (BGR, deviation 1, Caffe2's) or --stem torchvision"
            )
        export_checkpoint(path, found.variables, chosen, stem=found.stem)
    return chosen


def _warn_of_lost_settings(path: Path, model: Segmenter) -> None:
    """Names the settings that matter and that nobody can tell from the file."""
    found = open_checkpoint(path)
    if found.is_backbone:
        return
    own, implied = flatten(model.config), flatten(implied_config(found))
    lost = [key for key in own if key.startswith(_NOT_IN_FILES) and own[key] != implied[key]]
    if lost:
        _logger.warning(
            "%s does not tell these settings; give them to whatever reads it: %s",
            path,
            ", ".join(f"{key}={own[key]}" for key in lost),
        )


def write_checkpoint(directory: Path, model: Segmenter) -> Path:
    """Writes a checkpoint of this package for prediction and evaluation; returns its path.

    It holds no optimizer: a run does not go on from it.

    Raises:
      InputError: the directory cannot be written, or holds later checkpoints.
    """
    metadata = {
        "config": to_json(model.config),
        "categories": [{"id": id, "name": name} for id, name in model.categories],
    }
    state = {"step": np.int32(model.step), **model.variables}
    with Checkpointer(directory / "checkpoints", asynchronous=False) as checkpointer:
        checkpointer.save(model.step, state, metadata, wait=True)
        return Path(checkpointer.directory) / str(model.step)
