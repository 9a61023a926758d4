"""Text boxes on an image: measured, placed where they do not cover each other, and drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import cv2
import numpy as np

Rectangle = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels, x1 and y1 excluded
Color = tuple[int, int, int]

_FONT = cv2.FONT_HERSHEY_SIMPLEX
# What a spot for a label costs; only the proportions matter.
_COVERING = 3.0  # lying wholly on another label
_HIDING = 0.3  # hiding a whole target
_TRESPASSING = 0.15  # lying wholly on the target of another label
_LEAVING = 0.2  # being away from the own target by the height of a text
_LATER = 0.005  # coming one place later in the list of spots


def ink_on(rgb: Color) -> Color:
    """Black or white, whichever has the higher contrast by WCAG 2.1: 4.5 to 1 or more."""
    linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
    relative_luminance = np.dot(linear, (0.2126, 0.7152, 0.0722))
    return (0, 0, 0) if relative_luminance > 0.179 else (255, 255, 255)


@dataclasses.dataclass(frozen=True)
class Label:
    """A text that names what lies in a rectangle of the image."""

    text: str
    target: Rectangle
    color: Color


@dataclasses.dataclass(frozen=True)
class TextStyle:
    """Font scale, stroke and margin, in proportion to the image."""

    scale: float
    stroke: int
    margin: int

    @classmethod
    def for_image(cls, height: int, width: int) -> TextStyle:
        """Capitals of about 1/90 of the image's longer side, and of 11 pixels at least."""
        scale = max(0.5, max(height, width) / 2000)
        return cls(scale, max(1, round(scale * 1.4)), max(2, round(scale * 6)))

    def measure(self, text: str) -> tuple[int, int, int]:
        """(width, height, distance of the baseline from the bottom) of a text's box."""
        (width, height), below = cv2.getTextSize(text, _FONT, self.scale, self.stroke)
        return width + 2 * self.margin, height + below + 2 * self.margin, below + self.margin


def place_labels(
    labels: Sequence[Label], style: TextStyle, height: int, width: int
) -> list[Rectangle]:
    """Where to draw each label: inside the image, near its target, hiding as little as it can.

    Labels are placed in the order given. Each takes the spot with the least cost: how much of
    itself lies on earlier labels and on the targets of others, how much of every target it hides,
    and how far it went for that.

    Args:
      labels: what to place.
      style: decides the sizes.
      height: of the image, pixels.
      width: likewise.

    Returns:
      One rectangle per label.
    """
    targets = np.array([label.target for label in labels], np.int64).reshape(-1, 4)
    target_areas = (targets[:, 2:] - targets[:, :2]).prod(axis=1)
    taken = np.zeros((0, 4), np.int64)
    for index, label in enumerate(labels):
        box_width, box_height, _ = style.measure(label.text)
        spots = np.array(list(_spots(label.target, box_width, box_height)))
        spots = np.clip(spots, 0, np.maximum(0, (width - box_width, height - box_height)))
        candidates = np.concatenate([spots, spots + (box_width, box_height)], axis=1)
        on_labels = _overlap(candidates, taken).sum(axis=1) / (box_width * box_height)
        on_targets = _overlap(candidates, targets)
        hidden = (on_targets / target_areas).sum(axis=1)
        on_targets[:, index] = 0
        on_others = on_targets.max(axis=1) / (box_width * box_height)
        cost = _COVERING * on_labels + _HIDING * hidden + _TRESPASSING * on_others
        cost += _LEAVING * _gap(candidates, targets[index]) / box_height
        cost += _LATER * np.arange(len(spots))
        taken = np.concatenate([taken, candidates[[np.argmin(cost)]]])
    return [tuple(rectangle) for rectangle in taken.tolist()]


def _spots(target: Rectangle, width: int, height: int) -> Iterator[tuple[int, int]]:
    """Top left corners to try, best first: above, below, within, beside, then further around."""
    x0, y0, x1, y1 = target
    middle_x, middle_y = (x0 + x1 - width) // 2, (y0 + y1 - height) // 2
    yield from ((x0, y0 - height), (x0, y1), (middle_x, middle_y), (x1, middle_y))
    yield from ((x0 - width, middle_y), (x0, y0), (x1 - width, y0 - height), (x1 - width, y1))
    for step in (0.5, 1, 1.5, 2):
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                yield middle_x + int(dx * step * width), middle_y + int(dy * step * height)


def _overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(A, B) shared areas of (A, 4) and (B, 4) rectangles."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    return np.maximum(high - low, 0).prod(axis=-1)


def _gap(rectangles: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(A,) distances in pixels between (A, 4) rectangles and one, 0 where they touch."""
    beyond = np.maximum(rectangles[:, :2] - target[2:], target[:2] - rectangles[:, 2:])
    return np.hypot(*np.maximum(beyond, 0).T)


def draw_label(image: np.ndarray, label: Label, place: Rectangle, style: TextStyle) -> None:
    """Draws a filled box with the text in black or white, whichever is easier to read on it."""
    x0, y0, x1, y1 = place
    _, _, baseline = style.measure(label.text)
    cv2.rectangle(image, (x0, y0), (x1 - 1, y1 - 1), label.color, cv2.FILLED)
    cv2.rectangle(image, (x0, y0), (x1 - 1, y1 - 1), (0, 0, 0), 1)
    origin, ink = (x0 + style.margin, y1 - baseline), ink_on(label.color)
    cv2.putText(image, label.text, origin, _FONT, style.scale, ink, style.stroke, cv2.LINE_AA)
