"""solojax.visualize.correspondence: where views and lines end up."""

from __future__ import annotations

import numpy as np
import pytest

from solojax.errors import InputError
from solojax.visualize.correspondence import draw_correspondence

GREY = 120


def views(height=96, width=192):
    return np.full((2, height, width, 3), GREY, np.uint8)


def changed(matches, grid=(2, 4)):
    """Where a picture differs from that without matches."""
    plain = draw_correspondence(views(), [], grid)
    return (draw_correspondence(views(), matches, grid) != plain).any(axis=-1)


def test_views_stand_side_by_side_enlarged():
    pair = views()
    pair[1] = 30
    picture = draw_correspondence(pair, [], (2, 4))
    grey, dark = (np.argwhere((picture == tone).all(axis=-1)) for tone in (GREY, 30))
    for where in (grey, dark):
        assert (where.max(axis=0) - where.min(axis=0) + 1).tolist() == [192, 384]  # twice the size
        assert len(where) == 192 * 384
    assert grey[:, 0].min() == dark[:, 0].min() and grey[:, 1].max() < dark[:, 1].min()


def test_a_line_goes_from_centre_to_centre():
    plain = draw_correspondence(views(), [], (2, 4))
    inside = np.argwhere((plain == GREY).all(axis=-1))
    top, left = inside.min(axis=0)
    right = inside[:, 1].max() + 1 - 384  # left edge of the second view
    lines = changed([(1, 6)])  # row 0, column 1; row 1, column 2
    ys, xs = np.nonzero(lines)
    # Ends are centres of cells of 96 x 96 pixels, with dots of a few pixels around.
    assert abs(xs.min() - (left + 1.5 * 96)) <= 7 and abs(xs.max() - (right + 2.5 * 96)) <= 7
    assert abs(ys.min() - (top + 0.5 * 96)) <= 7 and abs(ys.max() - (top + 1.5 * 96)) <= 7
    middle_y = int(top + 96)
    middle_x = int((left + 1.5 * 96 + right + 2.5 * 96) / 2)
    assert lines[middle_y - 1 : middle_y + 2, middle_x - 1 : middle_x + 2].all()
    assert lines.sum() < 6000


def test_every_match_has_its_line_and_its_colour():
    first, second = changed([(0, 0)]), changed([(7, 7)])
    assert not (first & second).any()
    np.testing.assert_array_equal(changed([(0, 0), (7, 7)]), first | second)
    picture = draw_correspondence(views(), [(0, 0), (7, 7)], (2, 4))
    colors = [set(map(tuple, picture[where])) for where in (first, second)]
    assert colors[0] != colors[1]


def test_captions_take_lines_above():
    plain = draw_correspondence(views(), [], (2, 4))
    titled = draw_correspondence(views(), [], (2, 4), ("runs/a at step 3", "2 of 5"))
    added = len(titled) - len(plain)
    assert added > 0 and titled.shape[1:] == plain.shape[1:]
    assert (titled[: added + 5] == 0).any()
    np.testing.assert_array_equal(titled[-192:], plain[-192:])


@pytest.mark.parametrize(
    ("pair", "matches", "message"),
    [
        (views()[:1], [], "cannot draw views of shape"),
        (views().astype(np.float32), [], "float32"),
        (views(), [(0, 8)], r"match \(0, 8\) is outside of a grid of 2 x 4 cells"),
        (views(), [(-1, 2)], "numbers from 0 to 7"),
    ],
)
def test_what_cannot_be_drawn_is_refused(pair, matches, message):
    with pytest.raises(InputError, match=message):
        draw_correspondence(pair, matches, (2, 4))
