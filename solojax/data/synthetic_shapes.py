"""Outlines of the synthetic data set's classes, and their rasterisation.

A shape is a tuple of closed contours: the first is the outline, those inside it are holes. Contours
are float64 (n, 2) arrays of (x, y) points, centred on the origin.
"""

from __future__ import annotations

import math

import numpy as np

Shape = tuple[np.ndarray, ...]

ROWS_PER_PIXEL = 4  # lines that sample a pixel from top to bottom


def disc() -> Shape:
    """A filled circle."""
    return (_circle(1.0),)


def square() -> Shape:
    """A filled square."""
    return (np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], np.float64),)


def triangle() -> Shape:
    """A filled equilateral triangle."""
    angles = np.pi * np.array([-1 / 2, 1 / 6, 5 / 6])
    return (np.stack([np.cos(angles), np.sin(angles)], axis=1),)


def cross() -> Shape:
    """A plus sign whose arms are just over a third of its width."""
    a = 0.36
    corner = np.array([(a, 1), (a, a), (1, a)])
    quarter_turn = np.array([(0, -1), (1, 0)])
    turns = [np.linalg.matrix_power(quarter_turn, n) for n in range(4)]
    return (np.concatenate([corner @ turn for turn in turns]),)


def ring() -> Shape:
    """A circle with a concentric circular hole."""
    return (_circle(1.0), _circle(0.56))


def _circle(radius: float, points: int = 72) -> np.ndarray:
    angles = np.arange(points) * (2 * np.pi / points)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def shape_area(shape: Shape) -> float:
    """Area inside the first contour and outside the others (which are its holes)."""
    areas = [abs(_signed_area(contour)) for contour in shape]
    return areas[0] - sum(areas[1:])


def _signed_area(contour: np.ndarray) -> float:
    """Positive where the contour turns from the x axis towards the y axis."""
    x, y = contour.T
    return 0.5 * float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))


def _with_unit_area(shape: Shape) -> Shape:
    return tuple(contour / math.sqrt(shape_area(shape)) for contour in shape)


SHAPES: dict[str, Shape] = {
    shape.__name__: _with_unit_area(shape()) for shape in (disc, square, triangle, cross, ring)
}
"""The classes, scaled to an area of 1; the class of an object is its shape and nothing else."""

CLASS_NAMES = tuple(SHAPES)


def place_shape(
    shape: Shape, *, center_xy: tuple[float, float], scale: float, aspect: float, angle: float
) -> Shape:
    """Stretches, scales, turns and moves a shape.

    Args:
      shape: contours around the origin.
      center_xy: where the origin goes, pixels.
      scale: factor on both sides; for one of `SHAPES` the square root of the area in pixels.
      aspect: width over height before the turn; the area does not depend on it.
      angle: turn in radians.
    """
    stretch = np.array([scale * math.sqrt(aspect), scale / math.sqrt(aspect)])
    cos, sin = math.cos(angle), math.sin(angle)
    turn = np.array([[cos, sin], [-sin, cos]])
    return tuple((contour * stretch) @ turn + np.asarray(center_xy) for contour in shape)


def shape_extent(shape: Shape) -> tuple[float, float, float, float]:
    """Tight box (x1, y1, x2, y2) around a shape, pixels, edges of pixels being integers."""
    low, high = shape[0].min(axis=0), shape[0].max(axis=0)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def rasterize_coverage(
    shape: Shape, *, origin_xy: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """Share of every pixel that a shape covers.

    Exact along x and sampled on `ROWS_PER_PIXEL` lines along y. OpenCV's fill would also take every
    pixel that the outline touches, and so thicken small shapes.

    Args:
      shape: contours in pixels; pixel (x, y) is the square from (x, y) to (x + 1, y + 1). The part
        to the left of the window must be empty.
      origin_xy: the window's upper left pixel.
      size: (height, width) of the window.

    Returns:
      float32 (height, width) in [0, 1].
    """
    height, width = size
    rows, columns = height * ROWS_PER_PIXEL, width + 2
    lines = (np.arange(rows) + 0.5) / ROWS_PER_PIXEL
    # A crossing at x switches the line on or off from there to the right: x's own pixel in part,
    # and the running sum does the rest.
    switches = np.zeros(rows * columns)
    for number, contour in enumerate(shape):
        row, x, direction = _crossings(contour - np.asarray(origin_xy), lines)
        x = np.clip(x, 0, width)
        column = np.floor(x).astype(np.intp)
        weight = direction if number == 0 else -direction
        place = row * columns + column
        switches += np.bincount(place, weight * (column + 1 - x), len(switches))
        switches += np.bincount(place + 1, weight * (x - column), len(switches))
    inside = switches.reshape(height, ROWS_PER_PIXEL, columns).mean(axis=1).cumsum(axis=1)
    return np.clip(inside[:, :width], 0, 1).astype(np.float32)


def _crossings(contour: np.ndarray, lines: np.ndarray) -> tuple[np.ndarray, ...]:
    """Where a contour crosses horizontal lines: the line, x, and +1 entering or -1 leaving."""
    x1, y1 = contour.T[:, :, None]
    x2, y2 = np.roll(contour, -1, axis=0).T[:, :, None]
    edge, row = np.nonzero((y1 <= lines) != (y2 <= lines))
    x1, y1, x2, y2 = (each[edge, 0] for each in (x1, y1, x2, y2))
    x = x1 + (lines[row] - y1) / (y2 - y1) * (x2 - x1)
    turning = np.sign(_signed_area(contour))
    return row, x, np.where(y2 > y1, -turning, turning)
