"""Segmentations as whole masks, against which those of `data.mask_window` are held."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from pycocotools import mask as mask_utils


def decode_segmentation(segmentation, height, width, out_height, out_width) -> np.ndarray:
    """The (out_height, out_width) uint8 mask of what `decode_window` takes, by its definition."""
    if not isinstance(segmentation, Mapping):
        scale = (out_width / width, out_height / height)
        scaled = [(np.reshape(points, (-1, 2)) * scale).reshape(-1) for points in segmentation]
        return mask_utils.decode(
            mask_utils.merge(mask_utils.frPyObjects(scaled, out_height, out_width))
        )
    if isinstance(segmentation["counts"], list | tuple):
        segmentation = mask_utils.frPyObjects(segmentation, height, width)
    rows = (2 * np.arange(out_height) + 1) * height // (2 * out_height)
    columns = (2 * np.arange(out_width) + 1) * width // (2 * out_width)
    return np.ascontiguousarray(mask_utils.decode(segmentation)[rows][:, columns])
