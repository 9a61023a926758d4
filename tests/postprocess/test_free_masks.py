"""Free Mask against plain NumPy loops, and what padding must not change."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from solojax.errors import InputError
from solojax.postprocess.free_masks import (
    FreeMaskSettings,
    count_queries,
    find_free_masks,
    pyramid_queries,
    search_bytes,
    shorten,
)

SETTINGS = FreeMaskSettings(max_masks=12, embedding_size=4)
find = jax.jit(find_free_masks, static_argnums=2)


def random_features(seed, height, width, channels=6, blocks=3):
    """Smooth fields, so that masks have more than a cell."""
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((blocks, blocks, channels))
    ys = np.arange(height) * blocks // height
    xs = np.arange(width) * blocks // width
    return (coarse[ys][:, xs] + 0.3 * rng.standard_normal((height, width, channels))).astype("f4")


def plain_queries(features, scale):
    """Bilinear samples 1 / scale apart, as many as fit, one by one."""
    height, width, _ = features.shape
    queries = []
    for i in range(int(height * scale)):
        for j in range(int(width * scale)):
            y, x = ((n + 0.5) / scale - 0.5 for n in (i, j))
            y0, x0 = int(y), int(x)
            total = 0
            for row, wy in ((y0, 1 - (y - y0)), (y0 + 1, y - y0)):
                for column, wx in ((x0, 1 - (x - x0)), (x0 + 1, x - x0)):
                    if wy * wx:
                        total = total + wy * wx * features[row, column]
            queries.append(total)
    return queries


def plain_free_masks(features, settings):
    """[(score, mask, embedding)] of one image, best first, as equations 6.1 to 6.3 say."""
    features = features.astype(np.float64)
    height, width, channels = features.shape
    found = []
    for scale in settings.scales:
        for query in plain_queries(features, scale):
            query = query / np.linalg.norm(query)
            soft = np.array([[query @ f / np.linalg.norm(f) for f in row] for row in features])
            soft = (soft - soft.min()) / (soft.max() - soft.min())
            binary = soft >= settings.mask_threshold
            if binary.sum() > settings.min_cells:
                embedding = [
                    np.interp((k + 0.5) * channels / settings.embedding_size - 0.5,
                              np.arange(channels), query)
                    for k in range(settings.embedding_size)
                ]  # fmt: skip
                found.append((soft[binary].mean(), soft, binary, embedding))
    found.sort(key=lambda each: -each[0])

    def iou(a, b):
        return (a[2] & b[2]).sum() / (a[2] | b[2]).sum()

    decayed = []
    for j, (score, soft, _, embedding) in enumerate(found):
        factor = 1.0
        for i in range(j):
            most = max([iou(found[k], found[i]) for k in range(i)], default=0.0)
            change = iou(found[i], found[j]) ** 2 - most**2
            factor = min(factor, np.exp(-settings.nms_sigma * change))
        decayed.append((score * factor, soft, embedding))
    decayed.sort(key=lambda each: -each[0])
    return decayed[: settings.max_masks]


@pytest.mark.parametrize(("seed", "scales"), [(0, (1.0, 0.5, 0.25)), (1, (0.75, 0.3))])
def test_plain_loops(seed, scales):
    settings = FreeMaskSettings(scales=scales, max_masks=12, embedding_size=4, min_cells=3)
    features = random_features(seed, 6, 9)
    found = find(features[None], np.array([[6, 9]], np.int32), settings)
    expected = plain_free_masks(features, settings)
    count = int(found.valid.sum())
    assert count == len(expected) > 3
    scores, masks, embeddings = (np.array(part) for part in zip(*expected, strict=True))
    np.testing.assert_allclose(found.scores[0, :count], scores, atol=1e-5)
    np.testing.assert_allclose(found.masks[0, :count], masks, atol=1e-4)
    np.testing.assert_allclose(found.embeddings[0, :count], embeddings, atol=1e-5)


def test_padding_changes_nothing():
    """Images of three sizes on one canvas, with rubbish beyond them, and a row without an image."""
    sizes = [(5, 8), (7, 4), (7, 8), (0, 0)]
    canvas = np.random.default_rng(9).uniform(50, 99, (4, 7, 8, 6)).astype("f4")
    for row, (height, width) in enumerate(sizes):
        canvas[row, :height, :width] = random_features(row, max(height, 1), max(width, 1))[
            :height, :width
        ]
    together = find(canvas, np.array(sizes, np.int32), SETTINGS)
    for row, (height, width) in enumerate(sizes[:3]):
        alone = find(canvas[row : row + 1, :height, :width], np.array([[height, width]]), SETTINGS)
        np.testing.assert_array_equal(together.valid[row], alone.valid[0])
        np.testing.assert_allclose(together.scores[row], alone.scores[0], atol=1e-6)
        np.testing.assert_allclose(together.embeddings[row], alone.embeddings[0], atol=1e-6)
        cropped = together.masks[row, :, :height, :width]
        np.testing.assert_allclose(cropped, alone.masks[0], atol=1e-5)
        assert np.count_nonzero(together.masks[row]) == np.count_nonzero(cropped)
    assert not together.valid[3].any() and not np.any(together.scores[3])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(together))


@pytest.mark.parametrize("cells", [(7, 10), (1, 3)])
def test_queries_are_counted_as_they_are_made(cells):
    features, scales = random_features(0, *cells)[None], (1.0, 0.7, 0.25)
    queries, _ = pyramid_queries(features, np.array([cells]), scales)
    assert count_queries(cells, scales) == queries.shape[1]


@pytest.mark.parametrize(("cells", "scales"), [((50, 84), (1.0, 0.5, 0.25)), ((60, 90), (0.5,))])
def test_memory_is_about_what_the_compiler_says(cells, scales):
    features = jax.ShapeDtypeStruct((1, *cells, 4), np.float32)
    image = jax.ShapeDtypeStruct((1, 2), np.int32)
    program = find.lower(features, image, FreeMaskSettings(scales=scales)).compile()
    taken = program.memory_analysis().temp_size_in_bytes
    assert search_bytes(cells, scales) == pytest.approx(taken, rel=0.25)


def test_an_early_map_takes_far_more_memory():
    """Of 800 x 1333 pixels: C5, and C2 with all queries and with few."""
    usual = FreeMaskSettings().scales
    assert search_bytes((25, 42), usual) < 0.1e9
    assert count_queries((200, 336), usual) == 88_200 and search_bytes((200, 336), usual) > 100e9
    assert 4e9 < search_bytes((200, 336), (0.25,)) < 6e9


def test_fewer_queries_than_masks():
    found = find(random_features(0, 2, 3)[None], np.array([[2, 3]]), SETTINGS)
    assert found.scores.shape == (1, 12) and found.masks.shape == (1, 12, 2, 3)
    assert 0 < found.valid.sum() < 12
    assert not found.valid[0, 7:].any()


def test_a_map_too_small_for_a_query_has_no_masks():
    """A quarter of one row of cells is no row; other scales are as without that one."""
    features, cells = random_features(0, 1, 9)[None], np.array([[1, 9]], np.int32)
    none = find(features, cells, FreeMaskSettings(scales=(0.25,), max_masks=3, embedding_size=4))
    assert none.masks.shape == (1, 3, 1, 9) and not none.valid.any()
    one, both = (
        find(features, cells, FreeMaskSettings(scales=scales, max_masks=3, embedding_size=4))
        for scales in ((1.0,), (1.0, 0.25))
    )
    assert one.valid.any()
    jax.tree.map(np.testing.assert_array_equal, one, both)


def test_an_even_image_has_no_masks():
    found = find(np.ones((1, 6, 6, 5), "f4"), np.array([[6, 6]]), SETTINGS)
    assert not found.valid.any() and np.isfinite(found.masks).all()


def test_two_halves_are_found():
    features = np.zeros((1, 8, 8, 5), "f4")
    features[:, :, :3, 0] = 1
    features[:, :, 3:, 1] = 1
    found = find(features, np.array([[8, 8]]), SETTINGS)
    np.testing.assert_allclose(found.scores[0, :2], 1, atol=1e-6)
    assert found.scores[0, 2] < 0.2  # the same masks again, as other queries find them
    left = np.broadcast_to(np.arange(8) < 3, (8, 8))
    np.testing.assert_allclose(found.masks[0, 0], left)
    np.testing.assert_allclose(found.masks[0, 1], ~left)


def test_embeddings_are_interpolated():
    np.testing.assert_allclose(shorten(np.arange(8.0)[None], 4), [[0.5, 2.5, 4.5, 6.5]])
    np.testing.assert_allclose(shorten(np.array([1.0, 3.0]), 4), [1, 1.5, 2.5, 3])


@pytest.mark.parametrize("wrong", [{"scales": ()}, {"scales": (2.0,)}, {"max_masks": 0}])
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(InputError, match="Free Mask"):
        FreeMaskSettings(**wrong)
