"""Instances drawn over their image: fill, outline, name and score."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from solojax.errors import InputError
from solojax.visualize.labels import Color, Label, TextStyle, draw_label, place_labels

_FILL_OPACITY = 0.4
_DARKEST = 85  # luminance of a colour, of 255: a dark blue line is lost on a dark image
_LONG_SIDE = 800  # smaller images are enlarged by a whole number to reach it


class DrawnInstance(NamedTuple):
    """What to draw of one instance."""

    mask: np.ndarray  # (H, W) of zeros and ones
    label: str
    score: float | None = None


def instance_color(index: int) -> Color:
    """RGB of the instance at a place in its list: always the same, and no two alike.

    Hues go round by the golden ratio, so that neighbours in the list differ most.
    """
    hue = (0.02 + index * 0.61803398875) % 1.0
    saturation, value = ((0.85, 1.0), (0.55, 1.0), (0.95, 0.8))[index % 3]
    rgb = 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value))
    luminance = np.dot(rgb, (0.299, 0.587, 0.114))
    white = max(0.0, _DARKEST - luminance) / (255 - luminance)
    red, green, blue = (rgb + white * (255 - rgb)).round().astype(int).tolist()
    return red, green, blue


def overlay_results(
    image: np.ndarray,
    results: Sequence[Mapping],
    category_names: Mapping[int, str],
    score_threshold: float,
) -> np.ndarray:
    """Draws the COCO results of one image whose score reaches the threshold, over a copy of it.

    The largest first, the texts last. An image whose longer side is under 800 pixels is enlarged by
    a whole number, so that texts stay legible; the result is then that many times larger.

    Args:
      image: (H, W, 3) uint8 RGB.
      results: dicts with category_id, segmentation (compressed RLE) and score; entries without a
        score (ground truth) are always drawn. The place in this list decides the colour, whatever
        the threshold.
      category_names: category id -> name.
      score_threshold: the lowest score that is drawn.

    Returns:
      (s H, s W, 3) uint8 RGB with a whole number s.

    Raises:
      InputError: the image is not uint8 RGB, a mask has another size, or a category has no name.
    """
    drawn = {}
    for index, result in enumerate(results):
        score, category_id = result.get("score"), result["category_id"]
        if score is not None and score < score_threshold:
            continue
        if category_id not in category_names:
            raise InputError(
                f"result {index}: category_id {category_id} has no name; give the names of the "
                "data set that the results belong to"
            )
        mask = coco_mask.decode(result["segmentation"])
        drawn[index] = DrawnInstance(mask, category_names[category_id], score)
    return _draw(image, drawn)


def _draw(image: np.ndarray, instances: Mapping[int, DrawnInstance]) -> np.ndarray:
    """Draws instances, each in the colour of its number."""
    _check(image, instances)
    factor = max(1, -(-_LONG_SIDE // max(image.shape[:2])))
    height, width = (factor * side for side in image.shape[:2])
    canvas = np.array(image, order="C")
    if factor > 1:
        canvas = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_CUBIC)
    shapes = [
        _Shape(instance, instance_color(index), factor)
        for index, instance in instances.items()
        if instance.mask.any()
    ]
    shapes.sort(key=lambda shape: -np.count_nonzero(shape.mask))
    for shape in shapes:
        shape.fill(canvas)
    thickness = max(2, round(max(height, width) / 600))
    for shape in shapes:
        shape.outline(canvas, thickness)
    style = TextStyle.for_image(height, width)
    labels = [shape.text_label() for shape in reversed(shapes)]
    for label, place in zip(labels, place_labels(labels, style, height, width), strict=True):
        draw_label(canvas, label, place, style)
    return canvas


class _Shape:
    """One instance at the size it is drawn in; its mask is kept within its bounding box."""

    def __init__(self, instance: DrawnInstance, color: Color, factor: int):
        mask = np.ascontiguousarray(instance.mask, np.uint8)
        x, y, width, height = cv2.boundingRect(mask)
        cropped = mask[y : y + height, x : x + width].astype(np.float32)
        size = (factor * width, factor * height)
        self.mask = cv2.resize(cropped, size, interpolation=cv2.INTER_LINEAR) > 0.5
        self.x, self.y = factor * x, factor * y
        self.instance, self.color = instance, color

    def fill(self, canvas: np.ndarray) -> None:
        height, width = self.mask.shape
        region = canvas[self.y : self.y + height, self.x : self.x + width]
        blended = (1 - _FILL_OPACITY) * region[self.mask] + _FILL_OPACITY * np.array(self.color)
        region[self.mask] = blended.round()

    def outline(self, canvas: np.ndarray, thickness: int) -> None:
        """A coloured line on a wider black one, which shows on any background."""
        padded = np.pad(self.mask.astype(np.uint8), 1)
        contours, _ = cv2.findContours(
            padded, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(self.x - 1, self.y - 1)
        )
        for color, width in (((0, 0, 0), thickness + 2), (self.color, thickness)):
            cv2.drawContours(canvas, contours, -1, color, width, cv2.LINE_AA)

    def text_label(self) -> Label:
        score = "" if self.instance.score is None else f" {self.instance.score:.2f}"
        height, width = self.mask.shape
        target = (self.x, self.y, self.x + width, self.y + height)
        return Label(self.instance.label + score, target, self.color)


def _check(image: np.ndarray, instances: Mapping[int, DrawnInstance]) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise InputError(
            f"cannot draw on an image of shape {image.shape} and type {image.dtype}; give "
            "(H, W, 3) uint8 RGB"
        )
    for index, instance in instances.items():
        if instance.mask.shape != image.shape[:2]:
            raise InputError(
                f"instance {index}: a mask of {instance.mask.shape} (height, width) on an image of "
                f"{image.shape[:2]}; give masks at the size of the image"
            )
