"""Canvas policies against worked sizes and the property that the canvas holds everything."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solojax.data.canvas import Buckets, multiple_of_32
from solojax.data.transforms import resized_shape
from solojax.errors import InputError

sizes = st.lists(st.tuples(st.integers(1, 2000), st.integers(1, 2000)), min_size=1, max_size=8)


def test_published_padding():
    assert multiple_of_32([(800, 1067)]) == (800, 1088)
    assert multiple_of_32([(800, 1067), (1199, 800)]) == (1216, 1088)
    assert multiple_of_32([(32, 64)]) == (32, 64)
    assert multiple_of_32([(33, 1)]) == (64, 32)


@given(sizes)
def test_smallest_multiple_of_32(batch):
    for canvas_side, sides in zip(multiple_of_32(batch), zip(*batch, strict=True), strict=True):
        assert canvas_side % 32 == 0
        assert canvas_side - 32 < max(sides) <= canvas_side


def test_buckets_pick_the_smallest_that_holds_all():
    policy = Buckets(((64, 64), (32, 96), (96, 32), (96, 96)))
    assert policy([(20, 30)]) == (32, 96)  # 3,072 pixels; the square has 4,096
    assert policy([(33, 30)]) == (96, 32)
    assert policy([(33, 40)]) == (64, 64)
    assert policy([(20, 90), (90, 20)]) == (96, 96)
    assert policy(iter([(32, 96)])) == (32, 96)


def test_no_bucket_holds_the_batch():
    with pytest.raises(InputError, match=r"holds 100x20 .* at least 128x32") as error:
        Buckets(((64, 64), (96, 96)))([(10, 20), (100, 7)])
    assert "\n" not in str(error.value)


def test_buckets_from_scales_by_hand():
    policy = Buckets.from_scales((448,), long_side=768)
    # 448 * 4/3 = 597.3 -> 608 and 448 * 3/2 = 672; the rare longer images get 768.
    assert set(policy.canvases) == {
        (448, 448), (448, 608), (608, 448), (448, 672), (672, 448), (448, 768), (768, 448),
        (768, 768),
    }  # fmt: skip
    assert policy([(448, 448)]) == (448, 448)
    assert policy([(448, 597)]) == (448, 608)
    assert policy([(448, 597), (597, 448)]) == (768, 768)
    assert policy([(448, 700)]) == (448, 768)


def test_buckets_for_images_of_many_scales():
    assert Buckets.for_images((448,), 768) == Buckets.from_scales((448,), 768)
    recipe = Buckets.for_images((800, 640, 672, 704, 736, 768), 1333)
    assert set(recipe.canvases) == {
        (704, 704), (704, 960), (960, 704), (704, 1056), (1056, 704),
        (800, 800), (800, 1088), (1088, 800), (800, 1216), (1216, 800),
        (800, 1344), (1344, 800), (1344, 1344),
    }  # fmt: skip
    # COCO's commonest photo, and one of 3/2, at the largest scale.
    assert recipe([resized_shape(480, 640, 800, 1333)]) == (800, 1088)
    assert recipe([resized_shape(427, 640, 800, 1333)]) == (800, 1216)


@given(
    st.lists(st.sampled_from([352, 384, 416, 448, 480, 512, 640, 800]), min_size=1, max_size=3),
    st.integers(300, 1400),
    st.lists(st.tuples(st.integers(1, 900), st.integers(1, 900)), min_size=1, max_size=4),
    st.data(),
)
def test_every_resized_image_has_a_bucket(short_sides, long_side, originals, data):
    policy = data.draw(st.sampled_from([Buckets.from_scales, Buckets.for_images]))(
        short_sides, long_side
    )
    batch = [
        resized_shape(*size, data.draw(st.sampled_from(short_sides)), long_side)
        for size in originals
    ]
    canvas = policy(batch)
    assert canvas in policy.canvases
    assert all(h <= canvas[0] and w <= canvas[1] for h, w in batch)


@pytest.mark.parametrize("canvases", [(), ((32, 33),), ((0, 32),), ((-32, 32),), ((32,),)])
def test_bad_buckets(canvases):
    with pytest.raises(InputError, match="canvas buckets"):
        Buckets(canvases)


@pytest.mark.parametrize(
    "arguments",
    [((), 768), ((0,), 768), ((448,), 0), ((448,), 768, (1, 0.5)), ((448,), 768, ())],
    ids=str,
)
def test_bad_scales(arguments):
    with pytest.raises(InputError, match="canvas buckets"):
        Buckets.from_scales(*arguments)
