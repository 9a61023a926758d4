"""solojax.visualize.overlays: what ends up at which pixel."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from solojax.errors import InputError
from solojax.visualize import overlays
from solojax.visualize.overlays import instance_color, overlay_results


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def square(height, width, y, x, side):
    mask = np.zeros((height, width), np.uint8)
    mask[y : y + side, x : x + side] = 1
    return mask


def result(mask, **fields):
    rle = coco_mask.encode(np.asfortranarray(mask))
    return {"segmentation": {"size": list(mask.shape), "counts": rle["counts"].decode()}, **fields}


def draw(image, *masks, score=0.5):
    """All masks drawn, each labelled "cat" and, unless it is None, its score."""
    fields = {"category_id": 1} if score is None else {"category_id": 1, "score": score}
    return overlay_results(image, [result(mask, **fields) for mask in masks], {1: "cat"}, 0)


def tint(pixel, index):
    return np.round(0.6 * np.asarray(pixel, float) + 0.4 * np.array(instance_color(index)))


def test_fill_outline_and_untouched_rest():
    image = noise(600, 900)
    kept = image.copy()
    drawn = draw(image, square(600, 900, 300, 200, 150))
    np.testing.assert_array_equal(image, kept)
    assert drawn.shape == image.shape and drawn.dtype == np.uint8
    # The interior but for the lines of the outline.
    inside = np.s_[305:445, 205:345]
    np.testing.assert_array_equal(drawn[inside], tint(image[inside], 0))
    changed = (drawn != image).any(axis=-1)
    ys, xs = np.nonzero(changed)
    # The label lies above, within the width of "cat 0.50"; nothing else is touched.
    assert 250 < ys.min() < 300 and ys.max() < 455 and xs.min() > 195 and xs.max() < 355


@pytest.mark.parametrize("background", [0, 255])
def test_the_outline_is_pure_colour_with_a_dark_rim(background):
    image = np.full((600, 900, 3), background, np.uint8)
    drawn = draw(image, square(600, 900, 300, 200, 150))
    across = drawn[375, 190:203]  # the mask begins at column 200
    colored = np.flatnonzero((across == instance_color(0)).all(axis=1))
    assert 2 <= colored.size <= 4 and 200 - 190 in colored
    assert across[colored[0] - 1].max() < 160  # the rim, also on white
    assert (across[: colored[0] - 2] == background).all()


def test_small_instances_stay_visible_on_large_ones():
    image = np.full((500, 1000, 3), 120, np.uint8)
    small, large = square(500, 1000, 200, 400, 60), square(500, 1000, 50, 200, 400)
    for order in ([0, 1], [1, 0]):
        masks = [(small, large)[i] for i in order]
        drawn = draw(image, *masks, score=None)
        base = tint(image[230, 430], order.index(1))
        np.testing.assert_array_equal(drawn[230, 430], tint(base, order.index(0)))


def test_small_images_are_enlarged():
    mask = square(100, 150, 20, 30, 50)
    drawn = draw(noise(100, 150), mask)
    assert drawn.shape == (600, 900, 3)
    assert draw(noise(800, 20)).shape == (800, 20, 3)
    assert draw(noise(799, 20)).shape == (1598, 40, 3)


def test_nothing_to_draw_leaves_the_image():
    image = noise(40, 801)
    empty = np.zeros((40, 801), np.uint8)
    for masks in ([], [empty]):
        np.testing.assert_array_equal(draw(image, *masks), image)
    flipped = draw(image[:, ::-1])  # a view with a negative stride
    np.testing.assert_array_equal(flipped, image[:, ::-1])


def test_colors_are_stable_distinct_and_never_dark():
    colors = [instance_color(i) for i in range(300)]
    assert colors == [instance_color(i) for i in range(300)]
    assert len(set(colors)) == 300
    assert all(0 <= c <= 255 for color in colors for c in color)
    assert min(np.dot(color, (0.299, 0.587, 0.114)) for color in colors) > 84
    neighbours = np.abs(np.diff(np.array(colors), axis=0)).max(axis=1)
    assert neighbours.min() > 60


def test_results_over_the_threshold_in_the_same_colors(monkeypatch):
    texts = []
    monkeypatch.setattr(overlays, "draw_label", lambda image, label, *_: texts.append(label.text))
    image = noise(400, 800)
    results = [
        result(square(400, 800, 50, 50, 100), category_id=3, score=0.4),
        result(square(400, 800, 50, 250, 100), category_id=9, score=0.6),
        result(square(400, 800, 50, 450, 100), category_id=3),
    ]
    names = {3: "cat", 9: "dog"}
    drawn = overlay_results(image, results, names, score_threshold=0.5)
    assert sorted(texts) == ["cat", "dog 0.60"]
    np.testing.assert_array_equal(drawn[50:150, 50:150], image[50:150, 50:150])
    np.testing.assert_array_equal(drawn[100, 300], tint(image[100, 300], 1))
    np.testing.assert_array_equal(drawn[100, 500], tint(image[100, 500], 2))
    overlay_results(image, results[:2], names, score_threshold=0.6)
    assert texts[-1] == "dog 0.60"  # the threshold itself is drawn


def test_bad_input_is_named():
    with pytest.raises(InputError, match="uint8 RGB"):
        draw(np.zeros((5, 5, 3), np.float32))
    with pytest.raises(InputError, match="uint8 RGB"):
        draw(np.zeros((5, 5), np.uint8))
    with pytest.raises(InputError, match=r"instance 1: a mask of \(5, 6\)"):
        draw(noise(6, 5), np.ones((6, 5), np.uint8), np.ones((5, 6), np.uint8))
    with pytest.raises(InputError, match="category_id 4 has no name"):
        overlay_results(noise(9, 9), [result(np.ones((9, 9), np.uint8), category_id=4)], {3: ""}, 0)
