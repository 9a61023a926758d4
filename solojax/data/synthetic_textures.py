"""Colours, textures and backgrounds of the synthetic data set.

Objects and background clutter draw from the same palette and the same textures, so that neither
colour nor texture tells an object from what lies behind it.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

PALETTE = np.array(
    [
        (196, 62, 58), (232, 140, 60), (236, 204, 92), (120, 168, 72), (46, 110, 84),
        (84, 178, 186), (62, 98, 176), (128, 84, 164), (208, 122, 164), (136, 98, 70),
        (226, 220, 204), (92, 96, 106),
    ],
    np.float32,
)  # fmt: skip
"""float32 (12, 3) RGB in [0, 255]."""

DEFOCUS = (1.5, 3.0)  # standard deviation of the background's blur, pixels


def draw_texture(
    rng: np.random.Generator, height: int, width: int, *, contrast: float = 1.0
) -> np.ndarray:
    """A random texture between two colours of the palette, float32 (height, width, 3) RGB.

    Args:
      rng: source of every choice.
      height: of the patch, pixels.
      width: of the patch, pixels.
      contrast: 1 keeps the second colour, 0 replaces it by the first.
    """
    first, second = draw_colors(rng)
    field = contrast * draw_field(rng, height, width)
    return first + field[..., None] * (second - first)


def draw_colors(rng: np.random.Generator) -> np.ndarray:
    """Two different colours of the palette, float32 (2, 3) RGB."""
    return PALETTE[rng.choice(len(PALETTE), 2, replace=False)]


def draw_field(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """One of `TEXTURES` as the weight of its second colour, float32 (height, width) in [0, 1]."""
    return TEXTURES[rng.integers(len(TEXTURES))](rng, height, width)


def stripes(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Parallel bands, float32 (height, width) in [0, 1], as of every texture below."""
    along, _ = _turned_coordinates(rng, height, width)
    return _soft_step(np.sin(along * _radians_per_pixel(rng)))


def checks(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A turned chessboard."""
    along, across = _turned_coordinates(rng, height, width)
    rate = _radians_per_pixel(rng)
    return _soft_step(np.sin(along * rate) * np.sin(across * rate))


def dots(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A turned lattice of round dots."""
    along, across = _turned_coordinates(rng, height, width)
    rate = _radians_per_pixel(rng)
    return _soft_step(np.cos(along * rate) + np.cos(across * rate) - 0.6)


def noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Blotches a few pixels wide."""
    cell = rng.uniform(3.0, 7.0)
    field = smooth_field(rng, height, width, cell)
    return np.clip(0.5 + 0.45 * field, 0, 1)


def gradient(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A linear ramp from one side of the patch to the other."""
    along, _ = _turned_coordinates(rng, height, width)
    low, high = float(along.min()), float(along.max())
    return (along - low) / max(high - low, 1e-6)


TEXTURES = (stripes, checks, dots, noise, gradient)


def smooth_field(rng: np.random.Generator, height: int, width: int, cell: float) -> np.ndarray:
    """Gaussian noise of about unit variance that varies over `cell` pixels, float32 (H, W)."""
    rows, columns = math.ceil(height / cell) + 1, math.ceil(width / cell) + 1
    coarse = rng.standard_normal((rows, columns), np.float32)
    full_size = (math.ceil(columns * cell), math.ceil(rows * cell))
    return cv2.resize(coarse, full_size, interpolation=cv2.INTER_CUBIC)[:height, :width]


def draw_background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Clutter without objects: textured regions, torn patches, lines and a gradient of light.

    Returns float32 (height, width, 3) RGB in [0, 255]. Regions and patches have irregular outlines,
    so that none of them has the shape of a class. The whole is a little out of focus, as behind a
    subject: the objects' edges are the sharp ones.
    """
    canvas = _textured_regions(rng, height, width)
    for _ in range(rng.integers(4, 9)):
        _paint_torn_patch(rng, canvas)
    for _ in range(rng.integers(5, 12)):
        _paint_line(rng, canvas)
    canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(*DEFOCUS))
    return np.clip(canvas * _light(rng, height, width)[..., None], 0, 255)


def _textured_regions(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    count = int(rng.integers(3, 6))
    cell = max(height, width) / rng.uniform(2.5, 5.0)
    owner = np.stack([smooth_field(rng, height, width, cell) for _ in range(count)]).argmax(0)
    weight = np.zeros((height, width), np.float32)
    for region in range(count):
        field = rng.uniform(0.2, 0.6) * draw_field(rng, height, width)
        np.copyto(weight, field, where=owner == region, casting="same_kind")
    first, second = np.stack([draw_colors(rng) for _ in range(count)], axis=1)
    canvas = np.take(second - first, owner, axis=0)
    canvas *= weight[..., None]
    canvas += np.take(first, owner, axis=0)
    return canvas


def _paint_torn_patch(rng: np.random.Generator, canvas: np.ndarray) -> None:
    height, width = canvas.shape[:2]
    vertices = int(rng.integers(9, 15))
    angles = np.sort(rng.uniform(0, 2 * np.pi, vertices))
    radii = rng.uniform(0.25, 1.0, vertices) * rng.uniform(0.06, 0.2) * min(height, width)
    center = rng.uniform((0, 0), (width, height))
    points = center + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [np.round(points * 16).astype(np.int32)], 255, cv2.LINE_AA, shift=4)
    x, y, w, h = cv2.boundingRect(mask)
    if not w:
        return
    window = canvas[y : y + h, x : x + w]
    alpha = mask[y : y + h, x : x + w, None].astype(np.float32) / 255
    window += alpha * (draw_texture(rng, h, w, contrast=rng.uniform(0.1, 0.6)) - window)


def _paint_line(rng: np.random.Generator, canvas: np.ndarray) -> None:
    height, width = canvas.shape[:2]
    ends = rng.uniform((-0.1, -0.1), (1.1, 1.1), (3, 2)) * (width, height)
    t = np.linspace(0, 1, 24)[:, None]
    curve = (1 - t) ** 2 * ends[0] + 2 * t * (1 - t) * ends[1] + t**2 * ends[2]
    color = PALETTE[rng.integers(len(PALETTE))] * rng.uniform(0.4, 1.0)
    thickness = int(rng.integers(1, 5))
    points = np.round(curve).astype(np.int32)
    cv2.polylines(canvas, [points], False, color.tolist(), thickness, cv2.LINE_8)


def _light(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return (1 + rng.uniform(0.0, 0.3) * (gradient(rng, height, width) - 0.5)).astype(np.float32)


def _turned_coordinates(
    rng: np.random.Generator, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates in a frame of random angle and origin, float32 (H, W) each."""
    angle = rng.uniform(0, np.pi)
    shift = rng.uniform(0, 64, 2)
    x = np.arange(width, dtype=np.float32)[None] + np.float32(shift[0])
    y = np.arange(height, dtype=np.float32)[:, None] + np.float32(shift[1])
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return x * cos + y * sin, y * cos - x * sin


def _radians_per_pixel(rng: np.random.Generator) -> np.float32:
    period = rng.uniform(6.0, 16.0)
    return np.float32(2 * np.pi / period)


def _soft_step(wave: np.ndarray) -> np.ndarray:
    """1 above zero and 0 below, with an edge about a pixel wide at the usual periods."""
    return np.clip(0.5 + 2.0 * wave, 0, 1)
