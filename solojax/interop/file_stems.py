"""Which stem convention the weights of a file follow."""

from __future__ import annotations

import dataclasses

import numpy as np

from solojax.errors import InputError
from solojax.interop.backbones import DETECTRON2_BACKBONE
from solojax.interop.files import ForeignFile
from solojax.interop.layout import PIXEL_TENSORS, Layout
from solojax.interop.stems import MSRA, TORCHVISION, Stem

STEMS = {"torchvision": TORCHVISION, "msra": MSRA}
_MEAN_AND_STD = (PIXEL_TENSORS, ("data_preprocessor.mean", "data_preprocessor.std"))
# Who signs detectron2's files with MSRA backbones; all others convert torchvision's.
_MSRA_AUTHORS = ("caffe2", "msra", "detectron")


def find_stem(file: ForeignFile, layout: Layout) -> Stem | None:
    """The convention by the file's own mean and deviation, else by its author or its layout.

    None: a detectron2 backbone, which may follow either, in a file that does not tell.

    Raises:
      InputError: the file's mean and deviation are not those of three channels.
    """
    for mean, std in _MEAN_AND_STD:
        if mean in file.arrays and std in file.arrays:
            return _stem_of(file.arrays[mean], file.arrays[std], file.path)
    if layout is DETECTRON2_BACKBONE:
        author = str(file.meta.get("author", "")).lower()
        if not author:
            return None
        return MSRA if author.startswith(_MSRA_AUTHORS) else TORCHVISION
    return layout.stem


def _stem_of(mean: np.ndarray, std: np.ndarray, path: str) -> Stem:
    if mean.size != 3 or std.size != 3:
        raise InputError(
            f"checkpoint {path}: its pixel mean and deviation have {mean.size} and {std.size} "
            "numbers; give a network on RGB images, which has 3"
        )
    mean, std = (tuple(round(float(x), 4) for x in array.ravel()) for array in (mean, std))
    bgr = mean[0] < mean[2]  # red is the brightest channel of every published mean
    if bgr:
        mean, std = mean[::-1], std[::-1]
    for known in (TORCHVISION, MSRA):
        if np.allclose(std, known.pixel_std, rtol=1e-3):
            return dataclasses.replace(known, bgr=bgr, pixel_mean=mean, pixel_std=std)
    return Stem("its own", bgr, mean, std, stride_in_1x1=False)
