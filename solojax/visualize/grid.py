"""The soft mask of every cell of a grid, as one picture (thesis 3.3.2, Figure 3.4)."""

from __future__ import annotations

import math

import cv2
import numpy as np

from solojax.errors import InputError

_LONG_SIDE = 960  # pixels that the tiles of a sheet share
_SMALLEST_TILE = 12  # longer side of a tile of the finest grids
_MARGIN = 24  # around everything; the numbers of rows and columns stand in it
_PAPER, _INK, _LINE = 255, 0, 96  # grey levels
_FONT, _FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.4
_TEXT_HEIGHT, _TEXT_WIDTH = 14, 22  # room that a number of two digits wants


def draw_grid_activations(image: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Draws an image and, beside it, the soft masks of all cells of one level before any NMS.

    The mask of cell (i, j) lies in row i from the top and column j from the left of an S x S sheet:
    black is probability 0, white is 1. Rows and columns are numbered from 0. All tiles have the
    proportions of the masks; give image and masks of the same part of the canvas (both with its
    padding or both without), so that they look alike.

    Args:
      image: (H, W, 3) uint8 RGB, resized to fit a frame of the sheet's size.
      probabilities: (S * S, h, w) in [0, 1], cells in row-major order.

    Returns:
      (H', W', 3) uint8 RGB. The sheet's longer side is about 960 pixels for S up to 80.

    Raises:
      InputError: the image is not uint8 RGB, or the masks are not S * S maps of probabilities.
    """
    side = _check(image, probabilities)
    sheet, tile_size = _contact_sheet(probabilities, side)
    height, width = sheet.shape
    left, right = _MARGIN, 2 * _MARGIN + width
    picture = np.full((height + 2 * _MARGIN, right + width + _MARGIN, 3), _PAPER, np.uint8)
    fitted = _fit(image, height, width)
    picture[_MARGIN : _MARGIN + len(fitted), left : left + fitted.shape[1]] = fitted
    picture[_MARGIN : _MARGIN + height, right : right + width] = sheet[..., None]
    _draw_numbers(picture, side, tile_size, (right, _MARGIN))
    return picture


def _fit(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes to the largest size within height and width, proportions kept."""
    scale = min(height / image.shape[0], width / image.shape[1])
    size = [max(1, round(scale * length)) for length in (image.shape[1], image.shape[0])]
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(np.ascontiguousarray(image), size, interpolation=method)


def _check(image: np.ndarray, probabilities: np.ndarray) -> int:
    """S of what can be drawn."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise InputError(
            f"cannot draw beside an image of shape {image.shape} and type {image.dtype}; give "
            "(H, W, 3) uint8 RGB"
        )
    side = math.isqrt(probabilities.shape[0]) if probabilities.ndim else 0
    if probabilities.ndim != 3 or not probabilities.size or side * side != len(probabilities):
        raise InputError(
            f"masks of shape {probabilities.shape} are no square grid; give the cells of one level "
            "as (S * S, h, w)"
        )
    if not np.all((probabilities >= 0) & (probabilities <= 1)):
        raise InputError(
            "soft masks hold values outside of [0, 1]; give probabilities, not logits, without NaN"
        )
    return side


def _contact_sheet(probabilities: np.ndarray, side: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Tiles with lines around them, 2-D uint8, and the (width, height) of a tile."""
    height, width = probabilities.shape[1:]
    scale = max(_SMALLEST_TILE, _LONG_SIDE // side) / max(height, width)
    tile_height, tile_width = max(1, round(scale * height)), max(1, round(scale * width))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    sheet_size = side * (tile_height + 1) + 1, side * (tile_width + 1) + 1
    sheet = np.full(sheet_size, _LINE, np.uint8)
    for cell, mask in enumerate(probabilities):
        row, column = divmod(cell, side)
        y, x = 1 + row * (tile_height + 1), 1 + column * (tile_width + 1)
        mask = np.ascontiguousarray(mask, np.float32)
        tile = cv2.resize(mask, (tile_width, tile_height), interpolation=method)
        sheet[y : y + tile_height, x : x + tile_width] = np.rint(255 * tile)
    return sheet, (tile_width, tile_height)


def _draw_numbers(
    picture: np.ndarray, side: int, tile_size: tuple[int, int], corner: tuple[int, int]
) -> None:
    """Numbers columns above the sheet and rows to its left, as many as there is room for."""
    for axis, room in ((0, _TEXT_WIDTH), (1, _TEXT_HEIGHT)):
        tile = tile_size[axis] + 1
        for number in range(0, side, math.ceil(room / tile)):
            (text_width, text_height), _ = cv2.getTextSize(str(number), _FONT, _FONT_SCALE, 1)
            middle = corner[axis] + number * tile + tile // 2
            if axis == 0:
                origin = middle - text_width // 2, corner[1] - 6
            else:
                origin = corner[0] - 5 - text_width, middle + text_height // 2
            cv2.putText(
                picture, str(number), origin, _FONT, _FONT_SCALE, (_INK,) * 3, 1, cv2.LINE_AA
            )
