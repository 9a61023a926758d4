"""Checkpoints from one form to another: PyTorch's files, and the directories of this package."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from solojax.config import to_json
from solojax.config.schema import flatten
from solojax.errors import InputError
from solojax.foreign_models import implied_config, segmenter_of
from solojax.inference import Segmenter, load
from solojax.interop.export import SUFFIXES, check_suffix, export_checkpoint, stem_of_settings
from solojax.interop.layout import Layout
from solojax.interop.layouts import layout_named
from solojax.interop.load import ForeignCheckpoint, open_checkpoint
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


def open_source(
    path: str | os.PathLike,
    *,
    step: int | str | None = None,
    config: Callable[[ConfigDict], ConfigDict] | None = None,
    stem: str | None = None,
) -> tuple[Segmenter | None, ForeignCheckpoint | None]:
    """What a checkpoint of either form holds.

    Args:
      path: a file of another system, or a workdir or checkpoint directory of this package.
      step: of a workdir, see `solojax.inference.load`.
      config: changes the config that comes with the checkpoint.
      stem: see `open_checkpoint`; for files alone.

    Returns:
      The model (None for a backbone alone) and the description of the file (None for a directory).

    Raises:
      InputError: it cannot be read.
    """
    if not Path(path).is_file():
        if stem is not None:
            raise InputError(f"--stem is for files of other systems, and {path} is none; drop it")
        return load(path, step=step, config=config), None
    if step is not None:
        raise InputError(f"--step chooses in a workdir, and {path} is a file; drop it")
    found = open_checkpoint(path, stem)
    return None if found.is_backbone else segmenter_of(found, config), found


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
    path: Path, layout: str | None, model: Segmenter | None, found: ForeignCheckpoint | None
) -> Layout:
    """Writes a file of another system and returns its layout.

    Args:
      path: of the file; its suffix decides the format.
      layout: by name; None keeps that of a file.
      model: what is written, unless it is a backbone alone.
      found: the file that it came from, if it did.

    Raises:
      InputError: no layout is given or known, or it has no place for the network.
    """
    if layout is None and found is None:
        raise InputError(f"--output {path}: say the file's --layout, such as mmdet-v1-solov2")
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
