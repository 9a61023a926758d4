"""Whether the training in a stage's folder is the one that is about to go on there.

A checkpoint carries the config that it was trained with and, of a chain, a fingerprint of the
weights that its training started from. Its labels or images are compared where it is restored.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from solojax.builders.contrast import build_contrast_task, example_views
from solojax.builders.segmentation import build_task
from solojax.config import checkpoint_config
from solojax.config.changes import changes
from solojax.data.label_file import fingerprint
from solojax.errors import InputError
from solojax.inference.segmenter import variable_shapes
from solojax.interop.trees import flatten
from solojax.runs.pretrained import start_from_backbone
from solojax.runs.pretrained_segmenter import start_from_segmenter
from solojax.structures import PyTree
from solojax.train.checkpoint_loading import newest_metadata
from solojax.train.sharding import gather_json

START = "start"  # in a checkpoint's metadata: what `starting_weights` says
NUM_CLASSES = 1

# What a training comes to does not depend on these, but for the last digits.
_FREE = {
    "contrast.shard_queues",
    "data.prefetch",
    "data.threads",
    "data.workers",
    "train.best_metric",
    "train.checkpoint_every",
    "train.eval_every",
    "train.eval_every_epochs",
    "train.keep_checkpoints",
    "train.log_every",
    "train.remat",
    "train.shard_optimizer",
    # Paths, and how they are read: what lies there is compared, so that it may move.
    "data.format",
    "data.root",
    "data.train_annotations",
    "data.train_images",
    "data.train_split",
    "data.val_annotations",
    "data.val_images",
    "data.val_split",
    "model.backbone.checkpoint",
    "model.checkpoint",
}
# Likewise of whole groups; the last two make labels, which are compared.
_FREE_GROUPS = ("evaluation.", "free_mask.", "self_training.")
_LENGTH = ("train.total_steps", "train.epochs")
_SHOWN = 4  # keys in a message
_REMEDY = "or another --workdir, or remove this folder and what was made of it"


def check_settings(folder: Path, config: ConfigDict, made_of_it: Sequence[Path] = ()) -> None:
    """Refuses a training that has begun with settings by which it would come to something else.

    A longer one is none of those: it goes on, unless something has been made of it, which would be
    refused only after that. All processes call it together.

    Args:
      folder: the stage's work directory; it may be absent.
      config: that is about to train there.
      made_of_it: files and folders of which each, if it is there, was made of the whole training.

    Raises:
      InputError: on every process, with the keys that differ; or the checkpoint does not tell.
    """
    _require(lambda: _other_settings(folder, config, any(path.exists() for path in made_of_it)))


def check_start(folder: Path, config: ConfigDict, start: str) -> None:
    """Refuses a training that has begun with other weights; arguments and errors as above.

    Of a checkpoint that does not tell, which `solojax train` has written, the paths are compared.

    Args:
      folder: see `check_settings`.
      config: likewise.
      start: what `starting_weights` says of it.
    """
    _require(lambda: _other_start(folder, config, start))


def starting_weights(config: ConfigDict) -> str:
    """A fingerprint of the weights that a config names to start from, "" where it names none.

    Raises:
      InputError: they cannot be read, or do not fit the config.
    """
    if not _start_path(config):
        return ""
    shapes = _shapes(config)
    read = start_from_segmenter if config.model.get("checkpoint") else start_from_backbone
    params, stats = read(shapes["params"], shapes.get("batch_stats", {}), config)
    leaves = flatten({"params": params, "batch_stats": stats})
    loaded = {
        "/".join(path): leaf
        for path, leaf in leaves.items()
        if not isinstance(leaf, jax.ShapeDtypeStruct)  # which begins with random numbers
    }
    return fingerprint(jax.device_get(loaded), {})


def _other_settings(folder: Path, config: ConfigDict, is_whole: bool) -> str | None:
    newest = newest_metadata(folder)
    if newest is None:  # nothing is lost or mixed
        return None
    before = checkpoint_config(*newest)
    found = [
        f"{key} {values}"
        for key, values in changes(before, config).items()
        if _decides(key, before, config, is_whole)
    ]
    if not found:
        return None
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return (
        f"{folder}: trained with other settings than those of now, {', '.join(found[:_SHOWN])}"
        f"{more}: give the former settings, {_REMEDY}"
    )


def _other_start(folder: Path, config: ConfigDict, start: str) -> str | None:
    newest = newest_metadata(folder)
    if newest is None:
        return None
    metadata, old, new = newest[0], _start_path(checkpoint_config(*newest)), _start_path(config)
    same = metadata[START] == start if START in metadata else _same_place(old, new)
    if same:
        return None
    return (
        f"{folder}: its training started from other weights, of {old or 'random numbers'}, than "
        f"those of {new or 'random numbers'} as they are now: give the former weights, {_REMEDY}"
    )


def _decides(key: str, before: ConfigDict, now: ConfigDict, is_whole: bool) -> bool:
    if key in _LENGTH:
        return is_whole or not _goes_on(before.train, now.train)
    if key == "train.accumulate_steps":  # the same gradient where no norm looks across images
        return now.model.backbone.norm == "batch_norm"
    return key not in _FREE and not key.startswith(_FREE_GROUPS)


def _goes_on(before: ConfigDict, now: ConfigDict) -> bool:
    """Whether a run is as long as it was or longer, in the same measure."""
    if before.total_steps is not None and now.total_steps is not None:
        return now.total_steps >= before.total_steps
    return before.total_steps == now.total_steps and now.epochs >= before.epochs


def _start_path(config: ConfigDict) -> str:
    return config.model.get("checkpoint") or config.model.backbone.checkpoint


def _same_place(one: str, other: str) -> bool:
    return one == other or bool(one and other) and _resolved(one) == _resolved(other)


def _resolved(path: str) -> Path:
    return Path(os.path.expanduser(path)).resolve()


def _shapes(config: ConfigDict) -> PyTree:
    if config.task != "densecl":
        return variable_shapes(build_task(config, NUM_CLASSES))
    task, key = build_contrast_task(config), jax.random.key(0)
    return jax.eval_shape(task.init, key, example_views(config))


def _require(find: Callable[[], str | None]) -> None:
    """Raises what process 0 finds, on all: another host may see the storage as it was before."""
    problem = gather_json(_in_words(find) if jax.process_index() == 0 else None)[0]
    if problem is not None:
        raise InputError(problem)


def _in_words(find: Callable[[], str | None]) -> str | None:
    try:
        return find()
    except InputError as error:
        return str(error)
