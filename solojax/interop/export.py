"""Our variables as checkpoint files of other systems."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from solojax.errors import InputError
from solojax.interop.backbones import DETECTRON2_BACKBONE
from solojax.interop.layout import Layout, PyTree, export_state
from solojax.interop.load import MODEL_COLLECTIONS
from solojax.interop.safetensors_file import write_safetensors
from solojax.interop.stems import TORCHVISION, UNIT_STD, Stem, flip_stem_channels
from solojax.interop.torch_zip_writer import write_torch_zip
from solojax.interop.trees import flatten, unflatten

_RECONSTRUCT = np.empty(0).__reduce__()[0]  # what a pickle calls to make an array

SUFFIXES = (".pth", ".pt", ".pkl", ".safetensors")


def stem_of_settings(settings: Mapping[str, Any]) -> Stem:
    """The convention that a config's `model.pixel_mean`, `pixel_std` and `stride_in_1x1` make.

    Args:
      settings: the values of a config by dotted key.
    """
    return Stem(
        name="the config's",
        bgr=False,
        pixel_mean=tuple(float(x) for x in settings["model.pixel_mean"]),
        pixel_std=tuple(float(x) for x in settings["model.pixel_std"]),
        stride_in_1x1=bool(settings["model.backbone.stride_in_1x1"]),
    )


def foreign_state(
    variables: PyTree, layout: Layout, stem: Stem = TORCHVISION
) -> dict[str, np.ndarray]:
    """The state dict of a layout.

    A layout of backbones takes what it has a place for: the backbone, and of pretraining the neck,
    the key encoder and the queues. A layout of whole networks takes all. A stem is written in BGR
    where the layout's networks read BGR and this one is of their sort (deviation 1). Mean and
    deviation come along, as `pixel_mean` and `pixel_std`, where they do not follow from the layout.

    Args:
      variables: {"params": ..., "batch_stats": ...}, the stem reading RGB.
      layout: of the result.
      stem: what the network expects of an image.

    Raises:
      InputError: the layout has no place for some of it.
    """
    if not layout.holds_heads:
        variables = _backbone_parts(variables, layout)
    unit = np.allclose(stem.pixel_std, UNIT_STD, rtol=1e-3)
    bgr = layout.stem.bgr and unit
    state = export_state(layout, flip_stem_channels(variables) if bgr else variables)
    if layout is DETECTRON2_BACKBONE or not _same(stem, layout.stem):
        mean, std = np.float32(stem.pixel_mean), np.float32(stem.pixel_std)
        step = -1 if bgr else 1
        state["pixel_mean"] = mean[::step].reshape(3, 1, 1).copy()
        state["pixel_std"] = std[::step].reshape(3, 1, 1).copy()
    return {layout.prefix + name: array for name, array in state.items()}


def export_checkpoint(
    path: str | os.PathLike,
    variables: PyTree,
    layout: Layout,
    *,
    stem: Stem = TORCHVISION,
    class_names: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """Writes a checkpoint file of another system.

    Args:
      path: .pth or .pt for PyTorch's zip format, .pkl for detectron2's pickles of NumPy arrays,
        .safetensors.
      variables: {"params": ..., "batch_stats": ...}, the stem reading RGB.
      layout: see `solojax.interop.layouts`.
      stem: what the network expects of an image, see `foreign_state`.
      class_names: of the K classes; kept where the format has a place for them.

    Returns:
      The state dict that was written.

    Raises:
      InputError: another suffix, or the layout has no place for some of the variables.
    """
    path = FilePath(path)
    check_suffix(path)
    state = foreign_state(variables, layout, stem)
    if path.suffix == ".safetensors":
        write_safetensors(path, state, {"format": "pt"})
    elif path.suffix == ".pkl":
        content = {"model": state, "__author__": "solojax", "matching_heuristics": True}
        with path.open("wb") as file:
            _NumPy1Pickler(file, protocol=4).dump(content)
    elif layout.outer:
        meta = {"meta": {"CLASSES": tuple(class_names)}} if class_names else {}
        write_torch_zip(path, {layout.outer: state} | meta)
    else:
        write_torch_zip(path, state)
    return state


def check_suffix(path: FilePath) -> None:
    """Raises an InputError for a file that is in none of the formats that can be written."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: give a name that ends in {', '.join(SUFFIXES)}")


class _NumPy1Pickler(pickle._Pickler):  # the one in C looks names up by itself
    """Names arrays' constructor as NumPy 1 does, with which detectron2 runs; NumPy 2 knows both."""

    def save_global(self, obj, name=None):
        if obj is not _RECONSTRUCT:
            return super().save_global(obj, name)
        self.write(pickle.GLOBAL + b"numpy.core.multiarray\n_reconstruct\n")
        self.memoize(obj)


def _backbone_parts(variables: PyTree, layout: Layout) -> PyTree:
    """What a layout without heads can hold; the backbone must be whole, its key copy need not."""
    return unflatten(
        {
            path: leaf
            for path, leaf in flatten(variables).items()
            if (path[0] in MODEL_COLLECTIONS and path[1] == "backbone")
            or layout.to_foreign(path) is not None
        }
    )


def _same(one: Stem, other: Stem) -> bool:
    return np.allclose(one.pixel_std, other.pixel_std, rtol=1e-3) and np.allclose(
        one.pixel_mean, other.pixel_mean, rtol=1e-3
    )
