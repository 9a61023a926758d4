"""Every layout that is known, and which one a file has."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

from solojax.errors import InputError
from solojax.interop import adelaidet, backbones, contrastive, openmmlab
from solojax.interop.layout import Layout

LAYOUTS = (
    openmmlab.MMDET_V1_SOLO,
    openmmlab.MMDET_V1_DECOUPLED,
    openmmlab.MMDET_V1_DECOUPLED_LIGHT,
    openmmlab.MMDET_V1_SOLOV2,
    openmmlab.MMDET_SOLO,
    openmmlab.MMDET_DECOUPLED,
    openmmlab.MMDET_DECOUPLED_LIGHT,
    openmmlab.MMDET_SOLOV2,
    adelaidet.ADELAIDET,
    adelaidet.FREESOLO,
    contrastive.MOCO,
    contrastive.DENSECL,
    contrastive.MMSELFSUP,
    backbones.TORCHVISION_RESNET,
    backbones.OPENMMLAB_BACKBONE,
    backbones.DETECTRON2_BACKBONE,
    backbones.CAFFE2_BACKBONE,
)
BY_NAME = {layout.name: layout for layout in LAYOUTS}
_SHOWN = 6


def layout_named(name: str) -> Layout:
    """The layout that the command line calls so; raises an InputError for another name."""
    if name not in BY_NAME:
        near = difflib.get_close_matches(name, BY_NAME, n=1, cutoff=0.0)[0]
        raise InputError(
            f"unknown layout '{name}': did you mean '{near}'? Known are {', '.join(BY_NAME)}"
        )
    return BY_NAME[name]


def find_layout(names: Collection[str], where: str) -> Layout:
    """The layout that a state dict with these tensor names has.

    Of the layouts whose marks it bears it is the one that knows the most of its tensors.

    Args:
      names: of the tensors.
      where: the file, for messages.

    Raises:
      InputError: no layout fits, or two do so equally.
    """
    present = set(names)
    fitting = [layout for layout in LAYOUTS if present.issuperset(layout.marks)]
    known = {layout.name: _count_known(layout, names) for layout in fitting}
    best = [layout for layout in fitting if known[layout.name] == max(known.values())]
    if len(best) == 1:
        return best[0]
    shown = ", ".join(sorted(names)[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    if best:
        titles = " and ".join(layout.title for layout in best)
        raise InputError(
            f"checkpoint {where}: its tensors ({shown}) are those of {titles}; keep one model in a "
            "file"
        )
    raise InputError(
        f"checkpoint {where}: its tensors ({shown}) are of no layout that is known; known are "
        f"{'; '.join(layout.title for layout in LAYOUTS)}"
    )


def _count_known(layout: Layout, names: Iterable[str]) -> int:
    return sum(layout.from_foreign(name) is not None for name in names)
