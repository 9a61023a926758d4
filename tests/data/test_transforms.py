"""One example: sizes, resize, flip and padding of image, boxes and masks together."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import cv2
import numpy as np
import pytest
from helpers.whole_masks import decode_segmentation
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_utils

from solojax.data.coco import Annotation, ImageRecord
from solojax.data.packing import unpack_masks
from solojax.data.segmentation import center_of_mass, shrink_mask
from solojax.data.transforms import (
    empty_example,
    make_example,
    make_image_example,
    resized_shape,
)
from solojax.errors import InputError
from solojax.structures import Batch, Instances

HEIGHT, WIDTH = 40, 56


def rle(mask: np.ndarray) -> dict:
    return mask_utils.encode(np.asfortranarray(mask))


def box_mask(top, bottom, left, right, height=HEIGHT, width=WIDTH) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def annotate(mask: np.ndarray, label=0, bbox=None, iscrowd=False) -> Annotation:
    return Annotation(1, label, bbox, rle(mask), iscrowd)


def record_of(*annotations: Annotation, height=HEIGHT, width=WIDTH) -> ImageRecord:
    return ImageRecord(7, "seven.jpg", height, width, annotations)


def noise(height=HEIGHT, width=WIDTH, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def example_of(record: ImageRecord, image=None, **changes):
    arguments = dict(
        short_side=HEIGHT, long_side=1000, flip=False, canvas=(64, 96), max_instances=4,
        min_mask_area=1, seed=3, image_index=11,
    )  # fmt: skip
    image = noise(record.height, record.width) if image is None else image
    return make_example(image, record, **{**arguments, **changes})


def quarter_masks(example) -> np.ndarray:
    return unpack_masks(example["masks"], example["image"].shape[1] // 4)


@pytest.mark.parametrize(
    "size, short_side, long_side, expected",
    [
        ((480, 640), 800, 1333, (800, 1067)),  # the published COCO sizes
        ((640, 480), 800, 1333, (1067, 800)),
        ((427, 640), 800, 1333, (800, 1199)),
        ((480, 1280), 800, 1333, (500, 1333)),  # 2133 would be too long
        ((1280, 480), 800, 1333, (1333, 500)),
        ((320, 320), 448, 768, (448, 448)),
        ((333, 500), 333, 500, (333, 500)),
        ((10, 4), 6, 100, (15, 6)),
        ((3, 5), 2, 100, (2, 3)),  # 3.33
        ((2, 3), 1, 100, (1, 2)),  # 1.5 is rounded up
        ((1000, 1), 448, 768, (768, 1)),  # 0.77
        ((3000, 1), 448, 768, (768, 1)),  # 0.26 keeps a pixel
    ],
)
def test_resized_shape(size, short_side, long_side, expected):
    assert resized_shape(*size, short_side, long_side) == expected


@given(*[st.integers(1, 5000)] * 2, st.integers(16, 1000), st.integers(16, 1500))
def test_resized_shape_keeps_the_ratio_within_rounding(height, width, short_side, long_side):
    scale = min(Fraction(short_side, min(height, width)), Fraction(long_side, max(height, width)))
    shape = resized_shape(height, width, short_side, long_side)
    for side, resized in zip((height, width), shape, strict=True):
        assert abs(resized - side * scale) <= Fraction(1, 2) + Fraction(1, 10**6) or resized == 1
        assert 1 <= resized <= long_side


def test_rows_fit_the_batch():
    """Names, shapes and dtypes are those of structures.Batch, the same for every kind of row."""
    record = record_of(annotate(box_mask(4, 20, 8, 30)))
    rows = [
        empty_example((64, 96), 4),
        example_of(record),
        make_image_example(
            noise(), short_side=40, long_side=90, canvas=(64, 96), max_instances=4, image_index=2
        ),
    ]
    expected = {
        "image": ((64, 96, 3), np.uint8), "image_size": ((2,), np.int32),
        "original_size": ((2,), np.int32), "valid": ((), np.bool_), "image_index": ((), np.int32),
        "seed": ((), np.uint32), "dropped_instances": ((), np.int32), "boxes": ((4, 4), np.float32),
        "labels": ((4,), np.int32), "centers": ((4, 2), np.float32),
        "masks": ((4, 16, 3), np.uint8), "instance_valid": ((4,), np.bool_),
        "mask_valid": ((4,), np.bool_),
    }  # fmt: skip
    for row in rows:
        assert {k: (np.shape(v), np.asarray(v).dtype) for k, v in row.items()} == expected
    fields = {f.name for f in dataclasses.fields(Batch)} - {"instances"}
    fields |= {f.name for f in dataclasses.fields(Instances)} | {"instance_valid"}
    fields -= {"coarse_masks", "embeddings"}
    assert set(expected) == fields
    assert not any(np.any(value) for value in rows[0].values())


def test_masks_that_do_not_supervise_are_told_and_kept():
    one = annotate(box_mask(4, 20, 8, 30))
    other = dataclasses.replace(one, supervise_mask=False)
    example = example_of(record_of(one, other, one))
    assert example["instance_valid"].tolist() == [True, True, True, False]
    assert example["mask_valid"].tolist() == [True, False, True, False]
    np.testing.assert_array_equal(example["masks"][0], example["masks"][1])


def test_an_example_by_hand():
    """A photo of 40x56 at twice its size on a canvas of 96x128, nothing flipped."""
    mask = box_mask(4, 20, 8, 30)
    example = example_of(
        record_of(annotate(mask, label=2, bbox=(7.5, 4.0, 23.0, 16.0))),
        short_side=80, canvas=(96, 128),
    )  # fmt: skip
    assert example["image_size"].tolist() == [80, 112]
    assert example["original_size"].tolist() == [40, 56]
    assert (example["valid"], example["image_index"], example["seed"]) == (True, 11, 3)
    resized = cv2.resize(noise(), (112, 80), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(example["image"][:80, :112], resized)
    assert not example["image"][80:].any() and not example["image"][:, 112:].any()
    assert example["boxes"].tolist() == [[15, 8, 61, 40]] + [[0] * 4] * 3
    assert example["labels"].tolist() == [2, 0, 0, 0]
    assert example["instance_valid"].tolist() == [True, False, False, False]
    # Rows 8..39 and columns 16..59 at twice the size.
    assert example["centers"][0].tolist() == [37.5, 23.5]
    expected = np.zeros((4, 24, 32), np.uint8)
    expected[0, 2:10, 4:15] = 1
    np.testing.assert_array_equal(quarter_masks(example), expected)


def test_polygons_follow_the_resize():
    polygon = (np.array([8.0, 4, 30, 4, 30, 20, 8, 20]),)
    by_polygon = example_of(
        record_of(Annotation(1, 0, None, polygon, False)), short_side=80, canvas=(96, 128)
    )
    by_mask = example_of(
        record_of(annotate(box_mask(4, 20, 8, 30))), short_side=80, canvas=(96, 128)
    )
    for key in by_mask:
        np.testing.assert_array_equal(by_polygon[key], by_mask[key], key)


scene = st.lists(
    st.tuples(st.integers(0, 50), st.integers(0, 70), st.integers(1, 30), st.integers(1, 30)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 90), scene, st.integers(0, 1000))
def test_flipping_equals_a_mirrored_photo(height, width, objects, seed):
    """With flip, the mirror image of a photo gives the example of the photo itself."""
    rng = np.random.default_rng(seed)
    original, mirrored = [], []
    for top, left, tall, wide in objects:
        top, left = top % height, left % width
        mask = box_mask(top, top + tall, left, left + wide, height, width)
        mask &= rng.integers(0, 2, mask.shape, dtype=np.uint8)
        box = float(left), float(top), float(min(wide, width - left)), float(tall)
        original.append(annotate(mask, bbox=box))
        mirrored.append(annotate(mask[:, ::-1], bbox=(width - box[0] - box[2], *box[1:])))
    sizes = dict(short_side=min(height, width), canvas=(64, 96))
    image = noise(height, width, seed)
    plain = example_of(record_of(*original, height=height, width=width), image, **sizes)
    flipped = example_of(
        record_of(*mirrored, height=height, width=width),
        np.ascontiguousarray(image[:, ::-1]),
        **sizes,
        flip=True,
    )
    for key in plain:
        np.testing.assert_array_equal(flipped[key], plain[key], key)


@pytest.mark.parametrize("short_side", [40, 56, 63])
def test_a_flipped_example_is_the_mirror_image(short_side):
    """At any scale, resizing included; the quarter masks too where the width divides by 4."""
    rng = np.random.default_rng(2)
    blobs = [cv2.GaussianBlur(rng.random((HEIGHT, WIDTH)), (0, 0), 4) > 0.5 for _ in range(3)]
    annotations = [annotate(b.astype(np.uint8), bbox=(3.3, 1.7, 40.1, 30.9)) for b in blobs]
    annotations.append(
        Annotation(1, 0, None, (np.array([3.3, 4.1, 50.9, 9.7, 20.2, 38.8]),), False)
    )
    sizes = dict(short_side=short_side, canvas=(64, 96))
    plain = example_of(record_of(*annotations), **sizes)
    flipped = example_of(record_of(*annotations), **sizes, flip=True)
    height, width = plain["image_size"]
    np.testing.assert_array_equal(
        flipped["image"][:height, :width], plain["image"][:height, :width][:, ::-1]
    )
    assert not flipped["image"][:, width:].any()
    mirrored_boxes = plain["boxes"][:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [width, 0, width, 0]
    np.testing.assert_allclose(flipped["boxes"], mirrored_boxes, rtol=0, atol=1e-5)
    mirrored_centers = plain["centers"] * [-1, 1] + [width - 1, 0]
    np.testing.assert_allclose(flipped["centers"], mirrored_centers, rtol=0, atol=1e-5)
    if width % 4 == 0:
        plain_masks, flipped_masks = quarter_masks(plain), quarter_masks(flipped)
        np.testing.assert_array_equal(
            flipped_masks[..., : width // 4], plain_masks[..., : width // 4][..., ::-1]
        )


def test_boxes_are_scaled_by_the_true_ratio_and_clipped():
    """40x56 to a short side of 63 gives 63x88: 88/56 across, 63/40 down."""
    mask = box_mask(0, 40, 0, 56)
    example = example_of(record_of(annotate(mask, bbox=(-1.0, 3.0, 20.0, 38.5))), short_side=63)
    assert example["image_size"].tolist() == [63, 88]
    expected = np.float32([0, 3 * 63 / 40, 19 * 88 / 56, 63])
    np.testing.assert_array_equal(example["boxes"][0], expected)


def test_a_missing_box_is_the_tight_box_of_the_mask():
    example = example_of(record_of(annotate(box_mask(4, 20, 8, 30) | box_mask(30, 31, 50, 51))))
    assert example["boxes"][0].tolist() == [8, 4, 51, 31]
    flipped = example_of(record_of(annotate(box_mask(4, 20, 8, 30))), flip=True)
    assert flipped["boxes"][0].tolist() == [26, 4, 48, 20]


def test_what_is_left_out():
    annotations = [
        annotate(box_mask(0, 20, 0, 20), label=1, iscrowd=True),
        annotate(box_mask(0, 0, 0, 0), label=2, bbox=(0.0, 0.0, 9.0, 9.0)),  # no pixel
        annotate(box_mask(0, 1, 0, 3), label=3),  # 3 pixels
        annotate(box_mask(0, 2, 0, 2), label=4),  # 4 pixels
        annotate(box_mask(0, 9, 0, 9), label=5, bbox=(5.0, 5.0, 3.0, 0.0)),  # box without area
        annotate(box_mask(0, 9, 0, 9), label=6, bbox=(57.0, 5.0, 1.0, 3.0)),  # box outside
        annotate(box_mask(5, 30, 5, 30), label=7),
    ]
    example = example_of(record_of(*annotations), min_mask_area=4)
    assert example["labels"].tolist() == [4, 7, 0, 0]
    assert example["instance_valid"].tolist() == [True, True, False, False]
    assert example["dropped_instances"] == 0
    # The area counts in the resized image: 3 pixels are 12 at twice the size, 4 are 1 at half.
    larger = example_of(record_of(*annotations), min_mask_area=4, short_side=80, canvas=(96, 128))
    assert larger["labels"].tolist() == [3, 4, 7, 0]
    smaller = example_of(record_of(*annotations), min_mask_area=4, short_side=20)
    assert smaller["labels"].tolist() == [7, 0, 0, 0]
    everything = example_of(record_of(*annotations), min_mask_area=0)
    assert everything["labels"].tolist() == [3, 4, 7, 0]


def test_objects_beyond_the_limit_are_counted():
    annotations = [annotate(box_mask(i, i + 5, 0, 9), label=i) for i in range(6)]
    annotations.insert(
        1, annotate(box_mask(0, 0, 0, 0), label=9)
    )  # empty: neither kept nor counted
    example = example_of(record_of(*annotations))
    assert example["labels"].tolist() == [0, 1, 2, 3]
    assert example["dropped_instances"] == 2
    assert example_of(record_of(*annotations), max_instances=0)["dropped_instances"] == 6


def test_an_image_without_objects():
    example = example_of(record_of())
    assert example["valid"] and example["image"].any()
    assert not example["instance_valid"].any() and not example["boxes"].any()


def test_a_mask_that_vanishes_at_a_quarter_stays():
    """As published: only masks that are empty at full resolution are skipped."""
    example = example_of(record_of(annotate(box_mask(0, 1, 0, 1))))
    assert example["instance_valid"][0] and not example["masks"].any()
    assert example["boxes"][0].tolist() == [0, 0, 1, 1]


def test_the_largest_seed_is_kept():
    assert example_of(record_of(), seed=2**32 - 1)["seed"] == 2**32 - 1


def test_evaluation_examples_have_the_image_alone():
    example = make_image_example(
        noise(), short_side=63, long_side=80, canvas=(64, 96), max_instances=0, image_index=5
    )
    assert example["image_size"].tolist() == [57, 80]
    assert example["original_size"].tolist() == [40, 56]
    resized = cv2.resize(noise(), (80, 57), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(example["image"][:57, :80], resized)
    assert example["valid"] and example["image_index"] == 5
    assert example["masks"].shape == (0, 16, 3)


def test_bad_input():
    with pytest.raises(InputError, match="seven.jpg: the image is 56x40"):
        example_of(record_of(height=41), noise())
    with pytest.raises(InputError, match="canvas 32x64 .* too small .* 40x56"):
        example_of(record_of(), canvas=(32, 64))
    for canvas in [(64, 72), (40, 64), (0, 64), (-32, 64)]:
        with pytest.raises(InputError, match="positive multiples of 32"):
            empty_example(canvas, 4)


@pytest.mark.parametrize("padded", [False, True])
def test_coarse_masks_are_shrunk_from_the_whole_mask(padded):
    """A mask of 40x56: with padding to 64x64 first, factors divide the sides and it moves."""
    rng = np.random.default_rng(0)
    mask = cv2.resize(rng.integers(0, 2, (8, 11), dtype=np.uint8), (WIDTH, HEIGHT))
    record = record_of(annotate(mask), annotate(mask[:, ::-1].copy()))
    example = example_of(record, coarse_factors=(8, 16), pad_before_shrinking=padded)
    source = np.pad(mask, ((0, 24), (0, 8))) if padded else mask
    for factor, key in ((4, "masks"), (8, "masks/8"), (16, "masks/16")):
        assert example[key].shape == (4, 64 // factor, -(-96 // factor // 8))
        found = unpack_masks(example[key], 96 // factor)[0]
        height, width = (int(side / factor + 0.5) for side in source.shape)
        expected = cv2.resize(source, (width, height), interpolation=cv2.INTER_LINEAR)
        assert expected.any() and expected.shape == (height, width)
        np.testing.assert_array_equal(found[:height, :width], expected)
        assert not found[height:].any() and not found[:, width:].any()
        assert not example[key][2:].any()
    empty = empty_example((64, 96), 4, (8, 16))
    assert {k: (np.shape(v), np.asarray(v).dtype) for k, v in empty.items()} == {
        k: (np.shape(v), np.asarray(v).dtype) for k, v in example.items()
    }


def test_the_order_of_padding_and_shrinking_matters_where_sides_do_not_divide():
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[5:38, 3:55] = 1
    record = record_of(annotate(mask))
    one, other = (
        example_of(record, coarse_factors=(16,), pad_before_shrinking=padded)
        for padded in (False, True)
    )
    assert (one["masks/16"] != other["masks/16"]).any()
    np.testing.assert_array_equal(one["masks"], other["masks"])  # 4 divides both sides


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(9, 60), st.integers(9, 90)),
    st.sampled_from([32, 40, 61, 64]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_small_objects_anywhere_are_cut_from_their_whole_masks(size, short, flip, pad, seed):
    """Whatever the image's size: of the whole masks, pycocotools and OpenCV see every pixel."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 1, (3, 4, 2)) * rng.uniform(0, 0.5, (3, 1, 2)) + rng.uniform(
        0, 0.7, (3, 1, 2)
    )
    polygons = [(points * size[::-1]).reshape(-1) for points in corners]
    record = record_of(
        *(Annotation(1, 0, None, (polygon,), False) for polygon in polygons),
        height=size[0],
        width=size[1],
    )
    example = example_of(
        record, short_side=short, long_side=90, flip=flip, canvas=(96, 96), coarse_factors=(8, 16),
        pad_before_shrinking=pad,
    )  # fmt: skip
    height, width = resized_shape(*size, short, 90)
    wholes = [decode_segmentation((polygon,), *size, height, width) for polygon in polygons]
    wholes = [cv2.flip(whole, 1) if flip else whole for whole in wholes if whole.any()]
    assert example["instance_valid"].sum() == len(wholes)
    for index, whole in enumerate(wholes):
        assert example["centers"][index].tobytes() == center_of_mass(whole).tobytes()
        x, y, box_width, box_height = cv2.boundingRect(whole)
        assert example["boxes"][index].tolist() == [x, y, x + box_width, y + box_height]
        if pad:
            whole = np.pad(whole, ((0, -height % 32), (0, -width % 32)))
        for factor, key in ((4, "masks"), (8, "masks/8"), (16, "masks/16")):
            found = unpack_masks(example[key][index], 96 // factor)
            small = shrink_mask(whole, factor)
            expected = np.zeros_like(found)
            expected[: small.shape[0], : small.shape[1]] = small
            np.testing.assert_array_equal(found, expected)
