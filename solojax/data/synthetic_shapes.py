"""Outlines of the synthetic data set's classes, and their rasterisation.

A shape is a tuple of closed contours, filled by the even-odd rule, so that a second contour inside
the first is a hole. Contours are float64 (n, 2) arrays of (x, y) points, centred on the origin.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

Shape = tuple[np.ndarray, ...]

SUPERSAMPLING = 4  # subpixels per pixel side behind the antialiased coverage
_FIXED_POINT_BITS = 4  # fractional bits of the coordinates that cv2.fillPoly receives


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
    corner = [(a, 1), (a, a), (1, a)]
    points = [_quarter_turns(point, turns) for turns in range(4) for point in corner]
    return (np.array(points, np.float64),)


def ring() -> Shape:
    """A circle with a concentric circular hole."""
    return (_circle(1.0), _circle(0.56))


def _circle(radius: float, points: int = 72) -> np.ndarray:
    angles = np.arange(points) * (2 * np.pi / points)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _quarter_turns(point: tuple[float, float], turns: int) -> tuple[float, float]:
    x, y = point
    for _ in range(turns):
        x, y = y, -x
    return x, y


def shape_area(shape: Shape) -> float:
    """Area inside the first contour and outside the others (which are its holes)."""
    areas = [_contour_area(contour) for contour in shape]
    return areas[0] - sum(areas[1:])


def _contour_area(contour: np.ndarray) -> float:
    x, y = contour.T
    return 0.5 * abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))))


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

    Args:
      shape: contours in pixels; pixel (x, y) is the square from (x, y) to (x + 1, y + 1).
      origin_xy: the window's upper left pixel.
      size: (height, width) of the window.

    Returns:
      float32 (height, width) in [0, 1].
    """
    height, width = size
    canvas = np.zeros((height * SUPERSAMPLING, width * SUPERSAMPLING), np.uint8)
    # fillPoly's integer coordinates are the centres of subpixels, ours are edges: hence the half.
    contours = [
        np.round(
            ((contour - np.asarray(origin_xy)) * SUPERSAMPLING - 0.5) * (1 << _FIXED_POINT_BITS)
        ).astype(np.int32)
        for contour in shape
    ]
    cv2.fillPoly(canvas, contours, 255, lineType=cv2.LINE_8, shift=_FIXED_POINT_BITS)
    coverage = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    return coverage.astype(np.float32) / 255
