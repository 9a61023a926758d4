"""A checkpoint file of PyTorch as our variables, with what network they are of."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from solojax.errors import InputError
from solojax.interop.architecture import (
    backbone_settings,
    head_settings,
    is_bottleneck,
    param_shapes,
)
from solojax.interop.file_stems import STEMS, find_stem
from solojax.interop.files import read_state
from solojax.interop.fitting import check_settings, check_shapes
from solojax.interop.layout import Layout, PyTree, import_state, is_floating
from solojax.interop.layouts import find_layout
from solojax.interop.lazy_arrays import BrokenFile
from solojax.interop.published import categories_of, published_settings
from solojax.interop.stems import MSRA, Stem, flip_stem_channels
from solojax.interop.trees import Path, flatten, unflatten

MODEL_COLLECTIONS = ("params", "batch_stats")
_EMBEDDINGS = ("params", "head", "embedding_pred")


@dataclasses.dataclass(frozen=True)
class ForeignCheckpoint:
    """What a file holds, before it meets a model.

    Attributes:
      path: of the file.
      layout: its layout.
      stem: what its backbone expects of an image; None where the file does not tell.
      variables: ours, in float32 (counters apart), the stem reading RGB.
      architecture: config keys that the weights determine: the network that they fit.
      published: further keys, as the published networks of that architecture have them.
      categories: (id, name) of every class; () for a backbone alone.
      notes: sentences on what was changed, left out or assumed.
    """

    path: str
    layout: Layout
    stem: Stem | None
    variables: dict[str, PyTree]
    architecture: dict[str, Any]
    published: dict[str, Any]
    categories: tuple[tuple[int, str], ...]
    notes: tuple[str, ...]

    @property
    def is_backbone(self) -> bool:
        """Whether it holds no head: then it can be started from, not predict."""
        return "head" not in self.variables["params"]

    @property
    def title(self) -> str:
        """The file and what it is, in a few words."""
        depth, classes = (
            self.architecture.get(f"model.{key}") for key in ("backbone.depth", "num_classes")
        )
        parts = [f"R{depth}"] if depth else []
        parts += [f"{classes} classes"] if classes else []
        return f"{self.path} ({', '.join([self.layout.title, *parts])})"

    def foreign_name(self, path: Path) -> str:
        """What the file calls one of our leaves."""
        entry = self.layout.to_foreign(path)
        return entry[0] if entry else "/".join(path)


def open_checkpoint(path: str | os.PathLike, stem: str | None = None) -> ForeignCheckpoint:
    """Reads a checkpoint file, finds out its layout and what network it is of.

    Args:
      path: see `read_state`.
      stem: "torchvision" or "msra", whatever the file or its layout says.

    Raises:
      InputError: see `read_state`; or the layout or the network is unknown, or tensors are missing
        in its modules, unexpected or not floating point.
    """
    if stem is not None and stem not in STEMS:
        raise InputError(f"unknown stem '{stem}': use one of {', '.join(STEMS)}")
    file = read_state(path)
    layout = find_layout(file.arrays, file.path)
    state, casts = _in_float32(file.arrays)
    try:
        variables = import_state(layout, state)
        architecture = _architecture(param_shapes(variables))
    except (InputError, BrokenFile) as error:
        lead = "" if isinstance(error, InputError) else f"read as {layout.title}: "
        raise InputError(f"checkpoint {path}: {lead}{error}") from error
    classes = architecture.get("model.num_classes")
    found = ForeignCheckpoint(
        path=str(path),
        layout=layout,
        stem=None,
        variables=variables,
        architecture=architecture,
        published=published_settings(architecture, layout) if classes else {},
        categories=categories_of(classes, file.meta.get("classes"), layout) if classes else (),
        notes=(*file.notes, *casts),
    )
    convention = STEMS[stem] if stem else find_stem(file, layout)
    return found if convention is None else with_stem(found, convention)


def with_stem(found: ForeignCheckpoint, stem: Stem) -> ForeignCheckpoint:
    """A checkpoint, whose stem was open, with a convention: its stem reads RGB afterwards."""
    shapes = param_shapes(found.variables)
    settings = stem.settings(is_bottleneck(shapes)) if "backbone/conv1/kernel" in shapes else {}
    return dataclasses.replace(
        found,
        stem=stem,
        variables=flip_stem_channels(found.variables) if stem.bgr else found.variables,
        architecture=found.architecture | settings,
    )


def require_whole(found: ForeignCheckpoint) -> None:
    """Raises an InputError for a backbone alone."""
    if found.is_backbone:
        raise InputError(
            f"checkpoint {found.title}: it has no head; train from it with "
            f"--config.model.backbone.checkpoint={found.path}, or give a whole model"
        )


def fit(found: ForeignCheckpoint, expected: PyTree | None) -> dict[str, PyTree]:
    """The variables of a file as a model wants them.

    FreeSOLO's embeddings are left out for a model that predicts none.

    Raises:
      InputError: naming the tensors that are missing, unexpected or misshapen.
    """
    ours = _model_leaves(found)
    if expected is not None:
        wanted = flatten(expected)
        if not any(path[:3] == _EMBEDDINGS for path in wanted):
            ours = {path: leaf for path, leaf in ours.items() if path[:3] != _EMBEDDINGS}
        check_shapes(ours, wanted, found.foreign_name, where=found.title)
    return {"params": {}, "batch_stats": {}} | unflatten(ours)


def import_backbone(
    path: str | os.PathLike, settings: Mapping[str, Any], expected: PyTree | None = None
) -> tuple[dict[str, PyTree], ForeignCheckpoint]:
    """Variables to start a backbone from, out of a backbone's file or a whole model's.

    Args:
      path: see `read_state`.
      settings: the values of the config by dotted key, which the file must fit. Where the file does
        not tell its stem convention, they do.
      expected: {"params", "batch_stats"} of the backbone, as arrays or shapes; None: not compared.

    Returns:
      {"params": ..., "batch_stats": ...} of the backbone in float32, and the description of the
      file. Offsets of deformable convolutions are absent where the file has plain ones: they start
      from zero.

    Raises:
      InputError: see `open_checkpoint`; or the file does not fit the config or the backbone.
    """
    if settings.get("model.backbone.norm") == "group_norm":
        raise InputError(
            f"checkpoint {path}: pretrained backbones have BatchNorm, the config GroupNorm: use "
            "--config.model.backbone.norm=frozen_batch_norm or batch_norm"
        )
    found = open_checkpoint(path)
    if found.stem is None:
        unit = np.allclose(settings.get("model.pixel_std", ()), MSRA.pixel_std)
        found = with_stem(found, STEMS["msra" if unit else "torchvision"])
    determined = {
        key: value
        for key, value in found.architecture.items()
        if key.startswith(("model.backbone.", "model.pixel_"))
    }
    plain = determined.get("model.backbone.deformable") == "none"
    if plain:  # a start for deformable networks too
        del determined["model.backbone.deformable"]
    check_settings(determined, settings, where=found.title)
    ours = {path: leaf for path, leaf in _model_leaves(found).items() if path[1] == "backbone"}
    if expected is not None:
        wanted = {
            (path[0], "backbone", *path[1:]): leaf for path, leaf in flatten(expected).items()
        }
        if plain:
            wanted = {path: leaf for path, leaf in wanted.items() if "offset" not in path}
        check_shapes(ours, wanted, found.foreign_name, where=found.title)
    return unflatten({(path[0], *path[2:]): leaf for path, leaf in ours.items()}), found


def _model_leaves(found: ForeignCheckpoint) -> dict[Path, np.ndarray]:
    """Leaves of the network, without those of a key encoder, of queues, of a pretraining neck."""
    return {
        path: leaf
        for path, leaf in flatten(found.variables).items()
        if path[0] in MODEL_COLLECTIONS and not (found.is_backbone and path[1] == "neck")
    }


def _in_float32(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Floating-point arrays of another type cast, and a sentence for each type."""
    others = {
        name: array.dtype.name
        for name, array in arrays.items()
        if is_floating(array.dtype) and array.dtype != np.float32
    }
    cast = {name: arrays[name].astype(np.float32) for name in others}
    counts = Counter(others.values())
    return dict(arrays) | cast, [
        f"{count} tensors of {dtype} became float32" for dtype, count in counts.items()
    ]


def _architecture(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if any(path.startswith("backbone/") for path in shapes):
        settings |= backbone_settings(shapes)
    if any(path.startswith("head/") for path in shapes):
        settings |= head_settings(shapes)
    return settings
