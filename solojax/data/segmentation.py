"""What masks are made with, and what is read off them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from pycocotools import mask as mask_utils


def rasterize_polygons(
    polygons: Sequence, scale: tuple[float, float], height: int, width: int
) -> Mapping:
    """Joins polygons [[x1, y1, ...], ...], multiplied by (x, y) factors, to compressed run lengths.

    Args:
      polygons: see `mask_window.decode_window`.
      scale: of x and of y.
      height: of the mask.
      width: likewise.

    Returns:
      {"size": [height, width], "counts": bytes}.
    """
    scaled = [(np.reshape(polygon, (-1, 2)) * scale).reshape(-1) for polygon in polygons]
    return mask_utils.merge(mask_utils.frPyObjects(scaled, height, width))


@functools.lru_cache(maxsize=64)  # the same for all objects of an image
def nearest_pixels(source: int, target: int) -> np.ndarray:
    """The pixel of `source` that the centre of each of `target` falls into, along one axis.

    floor((i + 1/2) * source / target) for every i below `target`, in whole numbers; read-only.
    """
    pixels = (2 * np.arange(target) + 1) * source // (2 * target)
    pixels.setflags(write=False)
    return pixels


def shrink_mask(mask: np.ndarray, factor: int = 4) -> np.ndarray:
    """Shrinks a binary mask in the way of the published SOLO code.

    OpenCV's bilinear resize on uint8 {0, 1}. Its fixed-point arithmetic is neither nearest
    neighbour nor the rounding of an exact bilinear value: for sizes divisible by 4 and factor 4, a
    pixel is set where at least two of the four centre pixels are.

    Args:
      mask: (H, W) uint8 in {0, 1}.
      factor: the divisor of both sides.

    Returns:
      (int(H / factor + 0.5), int(W / factor + 0.5)) uint8 in {0, 1}, at least one pixel a side.
    """
    height, width = (max(1, int(side / factor + 0.5)) for side in mask.shape)
    return cv2.resize(mask, (width, height), interpolation=cv2.INTER_LINEAR)


def center_of_mass(mask: np.ndarray, top: int = 0, left: int = 0) -> np.ndarray:
    """Centre of mass (x, y) of a binary mask in pixel indices (thesis 3.2.3).

    Args:
      mask: (H, W) uint8 in {0, 1}, or the part of a mask beyond which it is 0.
      top: the row of that part's first pixel.
      left: the column likewise.

    Returns:
      (2,) float32: sum(index * mask) / sum(mask), without the half pixel; (0, 0) for an empty mask.
    """
    columns = cv2.reduce(mask, 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S)[0].astype(np.int64)
    rows = cv2.reduce(mask, 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S)[:, 0].astype(np.int64)
    area = max(1, int(columns.sum()))
    moments = (
        columns @ np.arange(left, left + columns.size),
        rows @ np.arange(top, top + rows.size),
    )
    return np.asarray([moment / area for moment in moments], np.float32)
