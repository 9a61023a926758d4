"""Bilinear resize with antialiasing, as Pillow and torchvision do it on 8-bit images."""

from __future__ import annotations

import functools

import cv2
import numpy as np


def resize_antialiased(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes with a triangle filter as wide as two of the coarser grid's pixels.

    Upwards this is plain bilinear interpolation. Downwards every input pixel counts, where OpenCV's
    bilinear resize skips pixels (up to 24 grey levels off on the recorded crops), and its area
    resize averages with a box (up to 33). Pillow rounds to 8 bits between the two axes; here that
    is done once, at the end, so that results differ by at most one grey level.

    Args:
      image: (H, W, 3) uint8.
      height: of the result, in pixels.
      width: likewise.

    Returns:
      (height, width, 3) uint8.
    """
    # Rows are summed, because they are contiguous: first the image's, then its columns as rows.
    resized = _resize_rows(np.ascontiguousarray(image), height)
    resized = _resize_rows(cv2.transpose(resized), width)
    return cv2.convertScaleAbs(cv2.transpose(resized))  # rounds and clips


def _resize_rows(image: np.ndarray, height: int) -> np.ndarray:
    """(H, W, 3) to (height, W, 3) float32."""
    rows, weights = _taps(len(image), height)
    flat = image.reshape(len(image), -1)
    resized = weights[0][:, None] * flat[rows[0]]
    for row, weight in zip(rows[1:], weights[1:], strict=True):
        resized += weight[:, None] * flat[row]
    return resized.reshape(height, *image.shape[1:])


@functools.lru_cache(maxsize=1024)
def _taps(length: int, new_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Which rows make up each new row: indices (T, new_length) and weights (T, new_length)."""
    scale = length / new_length
    reach = max(scale, 1.0)
    centers = (np.arange(new_length) + 0.5) * scale
    first = np.floor(centers - reach).astype(int)
    rows = first + np.arange(int(np.ceil(2 * reach)) + 1)[:, None]
    weights = np.maximum(0, 1 - np.abs(rows + 0.5 - centers) / reach)
    weights[(rows < 0) | (rows >= length)] = 0
    weights /= weights.sum(axis=0)
    is_used = weights.any(axis=1)
    return rows.clip(0, length - 1)[is_used], weights[is_used].astype(np.float32)
