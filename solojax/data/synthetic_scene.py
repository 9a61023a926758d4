"""One picture of the synthetic data set: overlapping textured objects on clutter."""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np

from solojax.data.synthetic_shapes import (
    CLASS_NAMES,
    SHAPES,
    place_shape,
    rasterize_coverage,
    shape_extent,
)
from solojax.data.synthetic_textures import draw_background, draw_texture

SMALL_SCALES = (20.0, 30.0)  # square root of the area, pixels, whatever the picture's size
LARGE_SCALES = (0.21, 0.56)  # the same as a fraction of the root of the picture's area
SMALL_SHARE = 0.22  # small by size; others become small because they are covered
OBJECTS = (6, 10)  # how many are tried: from, up to but without
ATTEMPTS = 20  # positions tried for an object before it is left out
MIN_VISIBLE_SHARE = 0.7  # what may be covered must leave the class decidable
MIN_VISIBLE_AREA = 100  # pixels
MAX_TILT = 0.35  # radians either way: shapes mostly stand as their names make one think of them

_MARGIN = 1  # pixels between an object and the border
_HALO = 10  # pixels around an object that its shadow may darken


@dataclasses.dataclass
class SceneObject:
    """An object with the masks that an annotation needs."""

    label: int  # index into CLASS_NAMES
    full_area: int  # pixels, as if nothing covered it
    visible: np.ndarray  # bool (H, W), what the objects in front leave of it


@dataclasses.dataclass
class Scene:
    """A picture and its objects, the one at the back first."""

    image: np.ndarray  # uint8 (H, W, 3) RGB
    objects: list[SceneObject]


@dataclasses.dataclass
class _Placement:
    """An object's coverage inside a window of the picture."""

    label: int
    coverage: np.ndarray  # float32 (h, w) in [0, 1]
    window: tuple[slice, slice]
    scale: float


def draw_scene(rng: np.random.Generator, height: int, width: int) -> Scene:
    """Draws a picture.

    Every object keeps at least `MIN_VISIBLE_SHARE` of its area and `MIN_VISIBLE_AREA` pixels in
    view: a position that would cover more of another object is tried again, and an object without
    a position is left out.

    Args:
      rng: source of every choice; the same state gives the same picture.
      height: of the picture, pixels.
      width: of the picture, pixels.
    """
    canvas = draw_background(rng, height, width)
    light_angle = rng.uniform(0, 2 * np.pi)
    objects: list[SceneObject] = []
    for label, scale in _draw_labels_and_scales(rng, math.sqrt(height * width)):
        placement = _find_placement(rng, label, scale, objects, (height, width))
        if placement is None:
            continue
        _add_object(objects, placement, (height, width))
        _paint(rng, canvas, placement, light_angle)
    canvas += rng.standard_normal(canvas.shape, np.float32) * rng.uniform(2.0, 6.0)
    image = np.clip(np.round(canvas), 0, 255).astype(np.uint8)
    return Scene(image=image, objects=objects)


def _draw_labels_and_scales(rng: np.random.Generator, side: float) -> list[tuple[int, float]]:
    """Classes and sizes, roughly the largest first, so that few small objects are buried."""
    drawn = []
    for _ in range(rng.integers(*OBJECTS)):
        label = int(rng.integers(len(CLASS_NAMES)))
        if rng.random() < SMALL_SHARE:
            scale = rng.uniform(*SMALL_SCALES)
        else:
            low, high = np.log(LARGE_SCALES)
            scale = side * math.exp(low + (high - low) * rng.random() ** 1.3)
        order = scale * math.exp(rng.normal(0, 0.35))
        drawn.append((order, label, scale))
    return [(label, scale) for _, label, scale in sorted(drawn, reverse=True)]


def _find_placement(
    rng: np.random.Generator,
    label: int,
    scale: float,
    objects: list[SceneObject],
    size: tuple[int, int],
) -> _Placement | None:
    shape = SHAPES[CLASS_NAMES[label]]
    for _ in range(ATTEMPTS):
        turned = place_shape(
            shape,
            center_xy=(0.0, 0.0),
            scale=scale,
            aspect=math.exp(rng.uniform(-0.22, 0.22)),
            angle=rng.uniform(-MAX_TILT, MAX_TILT),
        )
        x1, y1, x2, y2 = shape_extent(turned)
        low = np.array([_MARGIN - x1, _MARGIN - y1])
        high = np.array([size[1] - _MARGIN - x2, size[0] - _MARGIN - y2])
        if (low >= high).any():  # too long for the picture at this angle
            continue
        offset = rng.uniform(low, high)
        placement = _rasterize(tuple(contour + offset for contour in turned), label, scale)
        if _leaves_enough_visible(placement, objects):
            return placement
    return None


def _rasterize(shape: tuple[np.ndarray, ...], label: int, scale: float) -> _Placement:
    x1, y1, x2, y2 = shape_extent(shape)
    left, top = math.floor(x1), math.floor(y1)
    right, bottom = math.ceil(x2), math.ceil(y2)
    coverage = rasterize_coverage(shape, origin_xy=(left, top), size=(bottom - top, right - left))
    return _Placement(label, coverage, (slice(top, bottom), slice(left, right)), scale)


def _leaves_enough_visible(placement: _Placement, objects: list[SceneObject]) -> bool:
    """Whether every object that the placement covers in part can still be recognised."""
    mask = placement.coverage >= 0.5
    for other in objects:
        taken = np.count_nonzero(other.visible[placement.window] & mask)
        left = np.count_nonzero(other.visible) - taken
        if taken and left < max(MIN_VISIBLE_AREA, MIN_VISIBLE_SHARE * other.full_area):
            return False
    return True


def _add_object(objects: list[SceneObject], placement: _Placement, size: tuple[int, int]) -> None:
    mask = np.zeros(size, bool)
    mask[placement.window] = placement.coverage >= 0.5
    for other in objects:
        other.visible &= ~mask
    objects.append(
        SceneObject(label=placement.label, full_area=int(np.count_nonzero(mask)), visible=mask)
    )


def _paint(
    rng: np.random.Generator, canvas: np.ndarray, placement: _Placement, light_angle: float
) -> None:
    """Shadow, texture, shading and outline: the edge is what makes a patch an object."""
    _paint_shadow(canvas, placement, light_angle)
    coverage = placement.coverage
    small = placement.scale < SMALL_SCALES[1]
    # Few periods of a texture fit on a small object: strong ones would hide its outline.
    contrast = rng.uniform(0.05, 0.25) if small else rng.uniform(0.15, 0.45)
    surface = draw_texture(rng, *coverage.shape, contrast=contrast)
    inside = cv2.distanceTransform(np.pad((coverage >= 0.5).astype(np.uint8), 1), cv2.DIST_L2, 5)[
        1:-1, 1:-1
    ]
    rim = np.exp(-inside / max(1.5, 0.1 * placement.scale))
    surface *= (1 - 0.4 * rim)[..., None]
    thickness = 1.0 if small else rng.uniform(1.2, 2.2)
    outline = np.clip(thickness + 0.5 - inside, 0, 1) * 0.85
    ink = _outline_color(float(surface.mean()), float(canvas[placement.window].mean()))
    surface += outline[..., None] * (ink - surface)
    canvas[placement.window] += coverage[..., None] * (surface - canvas[placement.window])


def _outline_color(surface_brightness: float, ground_brightness: float) -> np.ndarray:
    """Nearly black, or nearly white where both sides of the edge are dark."""
    dark = max(surface_brightness, ground_brightness) < 95
    return np.float32([250, 248, 240]) if dark else np.float32([22, 20, 26])


def _paint_shadow(canvas: np.ndarray, placement: _Placement, light_angle: float) -> None:
    height, width = canvas.shape[:2]
    rows, columns = placement.window
    reach = 2.0 if placement.scale < SMALL_SCALES[1] else 4.0
    dy, dx = round(reach * math.sin(light_angle)), round(reach * math.cos(light_angle))
    shadow = cv2.GaussianBlur(np.pad(placement.coverage, _HALO), (0, 0), 0.75 * reach)
    top, left = rows.start - _HALO + dy, columns.start - _HALO + dx
    y1, x1 = max(top, 0), max(left, 0)
    y2, x2 = min(top + shadow.shape[0], height), min(left + shadow.shape[1], width)
    part = shadow[y1 - top : y2 - top, x1 - left : x2 - left, None]
    canvas[y1:y2, x1:x2] *= 1 - 0.45 * part
