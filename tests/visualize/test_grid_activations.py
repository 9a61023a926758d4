"""solojax.visualize.grid: which mask ends up where."""

from __future__ import annotations

import numpy as np
import pytest

from solojax.errors import InputError
from solojax.visualize.grid import draw_grid_activations

GREEN = (0, 200, 0)


def plain_image(height=60, width=80):
    return np.full((height, width, 3), GREEN, np.uint8)


def bright_box(masks, image=None):
    """(y0, x0, y1, x1) of what turns from black to white when the masks are drawn."""
    image = plain_image() if image is None else image
    dark = draw_grid_activations(image, np.zeros_like(masks))
    lit = (draw_grid_activations(image, masks) != dark).any(axis=-1)
    ys, xs = np.nonzero(lit)
    return ys.min(), xs.min(), ys.max() + 1, xs.max() + 1


@pytest.mark.parametrize("side", [1, 3])
def test_cell_i_j_lies_in_row_i_and_column_j(side):
    boxes = np.zeros((side, side, 4), int)
    for i in range(side):
        for j in range(side):
            masks = np.zeros((side * side, 6, 8), np.float32)
            masks[i * side + j] = 1
            boxes[i, j] = bright_box(masks)
    tops, lefts, bottoms, rights = np.moveaxis(boxes, -1, 0)
    for starts, stops in ((tops, bottoms), (lefts.T, rights.T)):
        assert np.all(starts == starts[:, :1]) and np.all(stops == stops[:, :1])
        assert np.all(starts[1:] - stops[:-1] == 1)  # a line between
        assert len(set((stops - starts).ravel())) == 1
    assert np.all((bottoms - tops) == np.round((rights - lefts) * 6 / 8))


@pytest.mark.parametrize("side", [5, 12, 40])
def test_cells_run_row_by_row(side):
    grey = np.random.default_rng(0).integers(0, 256, (side, side))
    masks = np.broadcast_to(grey.reshape(-1, 1, 1) / 255, (side * side, 6, 8))
    y0, x0, y1, x1 = bright_box(np.ones_like(masks))
    sheet = draw_grid_activations(plain_image(), masks)[y0:y1, x0:x1]
    middles = (np.arange(side) + 0.5) / side
    rows, columns = (middles * (y1 - y0)).astype(int), (middles * (x1 - x0)).astype(int)
    np.testing.assert_array_equal(sheet[np.ix_(rows, columns)], grey[..., None].repeat(3, -1))


def test_a_mask_keeps_its_place_and_its_grey_within_the_tile():
    masks = np.zeros((4, 10, 20), np.float32)
    masks[1] = 1
    y0, x0, y1, x1 = bright_box(masks)
    masks[1] = 0
    masks[1, 5:, 15:] = 0.5  # the lower right quarter of the quarter
    picture = draw_grid_activations(plain_image(), masks)
    tile = picture[y0:y1, x0:x1].astype(int)
    assert np.all(tile[..., 0] == tile[..., 1]) and np.all(tile[..., 0] == tile[..., 2])
    height, width = tile.shape[:2]
    assert np.all(tile[int(0.6 * height) :, int(0.8 * width) :] == 128)
    assert not tile[: int(0.4 * height)].any() and not tile[:, : int(0.7 * width)].any()


@pytest.mark.parametrize("size", [(60, 80), (50, 500), (500, 50), (1500, 2000)])
def test_the_image_stands_left_of_the_sheet_and_fits_its_size(size):
    masks = np.ones((9, 6, 8), np.float32)
    y0, x0, y1, x1 = bright_box(masks, plain_image(*size))
    picture = draw_grid_activations(plain_image(*size), masks)
    ys, xs = np.nonzero((picture == GREEN).all(axis=-1))
    assert xs.max() < x0 - 1 and ys.min() == y0 - 1  # both begin at one height
    height, width = np.ptp(ys) + 1, np.ptp(xs) + 1
    sheet_height, sheet_width = y1 - y0 + 2, x1 - x0 + 2  # with the outer lines
    assert (height == sheet_height and width <= sheet_width) or width == sheet_width
    assert height <= sheet_height
    scale = max(height / size[0], width / size[1])
    assert abs(height - scale * size[0]) <= 0.5 and abs(width - scale * size[1]) <= 0.5
    assert picture.dtype == np.uint8 and picture.shape[0] > y1 and picture.shape[1] > x1
    assert max(sheet_height, sheet_width) <= 980


def test_rows_and_columns_are_numbered_beside_the_sheet():
    masks = np.zeros((4, 6, 8), np.float32)
    y0, x0, y1, x1 = bright_box(masks + 1)
    picture = draw_grid_activations(plain_image(), masks)
    dark = (picture < 100).all(axis=-1)
    middle_y, middle_x = (y0 + y1) // 2, (x0 + x1) // 2
    above, beside = dark[: y0 - 1], dark[:, x0 - 25 : x0 - 1]
    assert above[:, x0:middle_x].any() and above[:, middle_x:x1].any()
    assert beside[y0:middle_y].any() and beside[middle_y:y1].any()
    assert not dark[:, : x0 - 25].any()


def test_inputs_are_not_changed_and_their_layout_does_not_matter():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (80, 60, 3), np.uint8)
    masks = rng.random((9, 7, 5))
    kept = image.copy(), masks.copy()
    picture = draw_grid_activations(image, masks)
    np.testing.assert_array_equal(image, kept[0])
    np.testing.assert_array_equal(masks, kept[1])
    turned = draw_grid_activations(np.asfortranarray(image), np.asfortranarray(masks))
    np.testing.assert_array_equal(picture, turned)


@pytest.mark.parametrize(
    ("image", "masks", "message"),
    [
        (plain_image() / 255, np.zeros((4, 3, 3)), "uint8 RGB"),
        (plain_image()[..., 0], np.zeros((4, 3, 3)), "uint8 RGB"),
        (plain_image(), np.zeros((5, 3, 3)), r"\(5, 3, 3\).*S \* S"),
        (plain_image(), np.zeros((2, 2, 3, 3)), "no square grid"),
        (plain_image(), np.zeros((0, 3, 3)), "no square grid"),
        (plain_image(), np.full((4, 3, 3), -2.0), "not logits"),
        (plain_image(), np.full((4, 3, 3), np.nan), "not logits"),
    ],
)
def test_what_cannot_be_drawn_is_an_error(image, masks, message):
    with pytest.raises(InputError, match=message):
        draw_grid_activations(image, masks)
