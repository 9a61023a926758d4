"""solojax.visualize.labels: texts inside the image, beside each other, in readable colours."""

from __future__ import annotations

import numpy as np
import pytest

from solojax.visualize.labels import Label, TextStyle, draw_label, ink_on, place_labels


def labels_at(targets, text="mushroom 0.97"):
    return [Label(text, tuple(map(int, target)), (200, 40, 40)) for target in targets]


def shared_area(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(0, width) * max(0, height)


def place(targets, height=960, width=960):
    style = TextStyle.for_image(height, width)
    labels = labels_at(targets)
    return place_labels(labels, style, height, width), style.measure(labels[0].text)


@pytest.mark.parametrize("seed", range(5))
def test_every_label_is_inside_the_image_and_near_its_target(seed):
    rng = np.random.default_rng(seed)
    corners = rng.integers(-30, 960, (40, 2))
    sizes = rng.integers(1, 200, (40, 2))
    targets = np.clip(np.concatenate([corners, corners + sizes], axis=1), 0, 960)
    targets = targets[(targets[:, 2:] > targets[:, :2]).all(axis=1)]
    places, (text_width, text_height, _) = place(targets)
    for (x0, y0, x1, y1), target in zip(places, targets, strict=True):
        assert 0 <= x0 and 0 <= y0 and x1 <= 960 and y1 <= 960
        assert (x1 - x0, y1 - y0) == (text_width, text_height)
        assert max(target[0] - x1, x0 - target[2]) <= text_width
        assert max(target[1] - y1, y0 - target[3]) <= 2 * text_height


def test_one_label_goes_above_its_target():
    ((x0, y0, x1, y1),), _ = place([(300, 400, 500, 600)])
    assert (x0, y1) == (300, 400)


def test_at_the_top_edge_it_goes_below():
    ((x0, y0, x1, y1),), _ = place([(300, 0, 330, 60)])
    assert (x0, y0) == (300, 60)


def test_neighbours_do_not_cover_each_other():
    targets = [(x, y, x + 90, y + 70) for y in range(20, 900, 100) for x in range(20, 860, 140)]
    places, _ = place(targets)
    overlaps = [shared_area(a, b) for i, a in enumerate(places) for b in places[:i]]
    assert max(overlaps) == 0
    # and a small target is not hidden by anybody's text
    hidden = [sum(shared_area(p, t) for p in places) / (90 * 70) for t in targets]
    assert max(hidden) < 0.35


def test_targets_at_one_place_get_texts_side_by_side():
    places, (text_width, text_height, _) = place([(400, 400, 480, 430)] * 6)
    overlaps = [shared_area(a, b) for i, a in enumerate(places) for b in places[:i]]
    assert max(overlaps) < 0.1 * text_width * text_height


def test_no_labels():
    assert place_labels([], TextStyle.for_image(100, 100), 100, 100) == []


def test_text_grows_with_the_image():
    heights = [TextStyle.for_image(side, side).measure("A")[1] for side in (800, 1600, 4000)]
    assert heights[0] >= 14 and heights[1] > 1.4 * heights[0] and heights[2] > 2 * heights[1]


def relative_luminance(rgb):
    """WCAG 2.1."""
    linear = [
        c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(rgb) / 255
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_ink_has_contrast_on_every_color():
    for rgb in np.random.default_rng(0).integers(0, 256, (500, 3)).tolist():
        low, high = sorted((relative_luminance(rgb), relative_luminance(ink_on(tuple(rgb)))))
        assert (high + 0.05) / (low + 0.05) >= 4.5


@pytest.mark.parametrize("color", [(240, 230, 40), (40, 40, 160)])
def test_the_text_is_drawn_within_its_box(color):
    image = np.full((200, 400, 3), 127, np.uint8)
    label, style = Label("pygmy Ågot 0.97", (100, 100, 200, 180), color), TextStyle(0.6, 1, 4)
    width, height, _ = style.measure(label.text)
    draw_label(image, label, (50, 60, 50 + width, 60 + height), style)
    outside = np.ones((200, 400), bool)
    outside[60 : 60 + height, 50 : 50 + width] = False
    assert (image[outside] == 127).all()
    inner = image[62 : 58 + height, 52 : 48 + width]
    filled = (inner == color).all(axis=-1)
    inked = (np.abs(inner.astype(int) - ink_on(color)).max(axis=-1)) < 60
    assert filled.mean() > 0.4 and 0.02 < inked.mean() < 0.4
    # letters that hang below the line and reach above it keep a margin of the box
    rows = np.flatnonzero((~filled).any(axis=1))
    columns = np.flatnonzero((~filled).any(axis=0))
    assert rows[0] >= 1 and rows[-1] <= inner.shape[0] - 2
    assert columns[0] >= 1 and columns[-1] <= inner.shape[1] - 2
