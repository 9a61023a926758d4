"""Two views of an image and lines between the cells that match (thesis Figures 5.4 and 5.5)."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from solojax.errors import InputError
from solojax.visualize.overlays import instance_color

_LONG_SIDE = 384  # smaller views are enlarged by a whole number to reach it
_MARGIN = 12  # around everything, and between the views
_PAPER, _INK = 255, 0  # grey levels
_FONT, _FONT_SCALE, _LINE_HEIGHT = cv2.FONT_HERSHEY_SIMPLEX, 0.5, 18


def draw_correspondence(
    views: np.ndarray,
    matches: Sequence[tuple[int, int]],
    grid: tuple[int, int],
    captions: Sequence[str] = (),
) -> np.ndarray:
    """Draws two views side by side, and a line from the centre of a cell to that of its match.

    Args:
      views: (2, H, W, 3) uint8 RGB.
      matches: (cell of the first view, cell of the second) each, in row-major order; the place in
        the list decides the colour.
      grid: (h, w), cells of either view.
      captions: lines of text above, ASCII.

    Returns:
      (H', W', 3) uint8 RGB; its size depends on H, W and the number of captions alone.

    Raises:
      InputError: the views are not two uint8 RGB images, or a cell is outside of the grid.
    """
    _check(views, matches, grid)
    height, width = views.shape[1:3]
    factor = max(1, -(-_LONG_SIDE // max(height, width)))
    height, width = factor * height, factor * width
    top = _MARGIN + _LINE_HEIGHT * len(captions)
    lefts = _MARGIN, 2 * _MARGIN + width
    picture = np.full((top + height + _MARGIN, 3 * _MARGIN + 2 * width, 3), _PAPER, np.uint8)
    for view, left in zip(views, lefts, strict=True):
        enlarged = cv2.resize(
            np.ascontiguousarray(view), (width, height), interpolation=cv2.INTER_CUBIC
        )
        picture[top : top + height, left : left + width] = enlarged
    for index, cells in enumerate(matches):
        ends = [
            _center(cell, grid, (top, left), (height, width))
            for cell, left in zip(cells, lefts, strict=True)
        ]
        _draw_line(picture, *ends, instance_color(index))
    for index, caption in enumerate(captions):
        baseline = _MARGIN // 2 + _LINE_HEIGHT * (index + 1) - 4
        cv2.putText(
            picture, caption, (_MARGIN, baseline), _FONT, _FONT_SCALE, (_INK,) * 3, 1, cv2.LINE_AA
        )
    return picture


def _center(
    cell: int, grid: tuple[int, int], corner: tuple[int, int], size: tuple[int, int]
) -> tuple[int, int]:
    """(x, y) in the picture of a cell's centre."""
    row, column = divmod(cell, grid[1])
    y = corner[0] + (row + 0.5) * size[0] / grid[0]
    x = corner[1] + (column + 0.5) * size[1] / grid[1]
    return int(x), int(y)


def _draw_line(picture: np.ndarray, start: tuple, end: tuple, color: tuple) -> None:
    """A coloured line with round ends on a wider black one, which shows on any background."""
    for ink, wider in (((0, 0, 0), 1), (color, 0)):
        cv2.line(picture, start, end, ink, 1 + 2 * wider, cv2.LINE_AA)
        for point in (start, end):
            cv2.circle(picture, point, 4 + wider, ink, cv2.FILLED, cv2.LINE_AA)


def _check(views: np.ndarray, matches: Sequence[tuple[int, int]], grid: tuple[int, int]) -> None:
    if views.ndim != 4 or len(views) != 2 or views.shape[3] != 3 or views.dtype != np.uint8:
        raise InputError(
            f"cannot draw views of shape {views.shape} and type {views.dtype}; give "
            "(2, H, W, 3) uint8 RGB"
        )
    cells = grid[0] * grid[1]
    for match in matches:
        if not all(0 <= cell < cells for cell in match):
            raise InputError(
                f"match {tuple(match)} is outside of a grid of {grid[0]} x {grid[1]} cells; give "
                f"numbers from 0 to {cells - 1}"
            )
