"""Geometry of one example: image, boxes and masks resized, flipped and padded together."""

from __future__ import annotations

import cv2
import numpy as np

from solojax.data.coco import Annotation, ImageRecord
from solojax.data.image_io import check_image_size
from solojax.data.mask_window import MaskWindow, decode_window, shrink_and_pack
from solojax.data.segmentation import center_of_mass
from solojax.errors import InputError

Example = dict[str, np.ndarray | np.generic]

_CANVAS_STEP = 32  # masks at 1/4 scale are packed eight pixels a byte


def resized_shape(height: int, width: int, short_side: int, long_side: int) -> tuple[int, int]:
    """(height, width) with the short side at `short_side`, or less where the long one exceeds.

    One scale for both sides, rounded half up, as mmdetection does it (detectron2 scales twice where
    the long side exceeds, which rounds a rare tie the other way). Every side keeps at least one
    pixel.
    """
    scale = short_side / min(height, width)
    if max(height, width) * scale > long_side:
        scale = long_side / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def empty_example(
    canvas: tuple[int, int],
    max_instances: int,
    coarse_factors: tuple[int, ...] = (),
    embedding_size: int | None = None,
) -> Example:
    """A row of zeros that nothing counts (valid False): for padding and for broken images.

    Args:
      canvas: (H, W), multiples of 32.
      max_instances: N.
      coarse_factors: 8, 16, ...: further scales at which there are masks.
      embedding_size: E, or None for no embeddings.

    Returns:
      image (H, W, 3) uint8; image_size and original_size (2,) int32; valid bool; image_index int32;
      seed uint32; dropped_instances int32; boxes (N, 4) float32; labels (N,) int32; centers (N, 2)
      float32; masks (N, H/4, W/32) uint8; instance_valid and mask_valid (N,) bool; for each factor
      f masks/f (N, H/f, ceil(W/f/8)) uint8; embeddings (N, E) float32, if any. Each means what the
      field of the same name in `structures.Batch` and `structures.Instances` does.
    """
    height, width = canvas
    if min(canvas) <= 0 or height % _CANVAS_STEP or width % _CANVAS_STEP:
        raise InputError(
            f"canvas {height}x{width} (height x width): both sides have to be positive multiples "
            f"of {_CANVAS_STEP}; round them up"
        )
    example = {
        "image": np.zeros((height, width, 3), np.uint8),
        "image_size": np.zeros(2, np.int32),
        "original_size": np.zeros(2, np.int32),
        "valid": np.bool_(False),
        "image_index": np.int32(0),
        "seed": np.uint32(0),
        "dropped_instances": np.int32(0),
        "boxes": np.zeros((max_instances, 4), np.float32),
        "labels": np.zeros(max_instances, np.int32),
        "centers": np.zeros((max_instances, 2), np.float32),
        "masks": np.zeros((max_instances, height // 4, width // 32), np.uint8),
        "instance_valid": np.zeros(max_instances, np.bool_),
        "mask_valid": np.zeros(max_instances, np.bool_),
    } | {
        f"masks/{factor}": np.zeros(
            (max_instances, height // factor, -(-width // (8 * factor))), np.uint8
        )
        for factor in coarse_factors
    }
    if embedding_size is not None:
        example["embeddings"] = np.zeros((max_instances, embedding_size), np.float32)
    return example


def make_image_example(
    image: np.ndarray,
    *,
    short_side: int,
    long_side: int,
    canvas: tuple[int, int],
    max_instances: int,
    image_index: int,
) -> Example:
    """An example without ground truth, for evaluation and prediction.

    Args:
      image: (height, width, 3) uint8 RGB as read.
      short_side: see `resized_shape`.
      long_side: likewise.
      canvas: (H, W), multiples of 32 that hold the resized image.
      max_instances: N, all of them invalid; 0 will do.
      image_index: position in the data set.

    Returns:
      A valid row of the form of `empty_example`.

    Raises:
      InputError: the canvas is too small or no multiple of 32.
    """
    example = empty_example(canvas, max_instances)
    _place_image(example, image, short_side, long_side, flip=False)
    example["image_index"] = np.int32(image_index)
    return example


def make_example(
    image: np.ndarray,
    record: ImageRecord,
    *,
    short_side: int,
    long_side: int,
    flip: bool,
    canvas: tuple[int, int],
    max_instances: int,
    min_mask_area: int,
    seed: int,
    image_index: int,
    coarse_factors: tuple[int, ...] = (),
    pad_before_shrinking: bool = False,
    embedding_size: int | None = None,
) -> Example:
    """A training example: the image and its objects under one resize and one flip.

    Left out are crowds, objects whose mask has no pixel or fewer than `min_mask_area` of them in
    the resized image, and objects whose box is empty within it. The first `max_instances` of the
    rest are kept in annotation order; `dropped_instances` counts those beyond.

    Boxes are the annotation's, or the tight box of the mask where it has none. Masks are flipped as
    pixels, after rasterising, so that a flipped example is the exact mirror image of the other.

    Args:
      image: (height, width, 3) uint8 RGB as read.
      record: the image's entry with its objects.
      short_side: see `resized_shape`.
      long_side: likewise.
      flip: mirror left and right.
      canvas: (H, W), multiples of 32 that hold the resized image.
      max_instances: N.
      min_mask_area: pixels of the resized image.
      seed: the row's random seed for what happens on the device.
      image_index: position in the data set.
      coarse_factors: see `empty_example`.
      pad_before_shrinking: masks are shrunk after padding to a multiple of 32, as the published
        SOLO code does; AdelaiDet's SOLOv2 shrinks the mask of the image alone, whose sides the
        factor may not divide.
      embedding_size: E of the record's embeddings, which all its objects then have; None leaves
        embeddings out.

    Returns:
      A valid row of the form of `empty_example`.

    Raises:
      InputError: the image has not the recorded size, or the canvas does not suit.
    """
    check_image_size(image, record.height, record.width, record.file_name)
    example = empty_example(canvas, max_instances, coarse_factors, embedding_size)
    height, width = _place_image(example, image, short_side, long_side, flip)
    example["image_index"] = np.int32(image_index)
    example["seed"] = np.uint32(seed)
    # Masks are shrunk from here, each after the one before has been wiped out.
    sheet = np.zeros(_mask_shape(height, width, pad_before_shrinking), np.uint8)
    count = dropped = 0
    for annotation in record.annotations:
        if annotation.iscrowd:
            continue
        mask = _transform_mask(annotation, record, height, width, flip)
        if mask.area < max(1, min_mask_area):
            continue
        left, top, right, bottom = box = _transform_box(
            annotation, record, mask, height, width, flip
        )
        if left >= right or top >= bottom:
            continue
        if count == max_instances:
            dropped += 1
            continue
        _write_instance(example, count, box, annotation, mask)
        _write_masks(example, count, mask, sheet, coarse_factors)
        count += 1
    example["dropped_instances"] = np.int32(dropped)
    return example


def _place_image(
    example: Example, image: np.ndarray, short_side: int, long_side: int, flip: bool
) -> tuple[int, int]:
    """Puts the resized image into the canvas's top left corner; returns its (height, width)."""
    height, width = resized_shape(*image.shape[:2], short_side, long_side)
    canvas = example["image"]
    if height > canvas.shape[0] or width > canvas.shape[1]:
        raise InputError(
            f"canvas {canvas.shape[0]}x{canvas.shape[1]} (height x width) is too small for the "
            f"resized image of {height}x{width}; choose a canvas that holds it"
        )
    place = canvas[:height, :width]
    if (height, width) == image.shape[:2]:
        place[:] = image
    else:
        cv2.resize(image, (width, height), dst=place, interpolation=cv2.INTER_LINEAR)
    if flip:
        cv2.flip(place, 1, dst=place)
    example["image_size"][:] = height, width
    example["original_size"][:] = image.shape[:2]
    example["valid"] = np.bool_(True)
    return height, width


def _mask_shape(height: int, width: int, pad: bool) -> tuple[int, int]:
    """Of the masks that are shrunk: the resized image's, or the next multiples of 32."""
    if not pad:
        return height, width
    return height + -height % _CANVAS_STEP, width + -width % _CANVAS_STEP


def _transform_mask(
    annotation: Annotation, record: ImageRecord, height: int, width: int, flip: bool
) -> MaskWindow:
    """The object in the resized and perhaps flipped image of (height, width)."""
    mask = decode_window(annotation.segmentation, record.height, record.width, height, width)
    return mask.flipped(width) if flip else mask


def _transform_box(
    annotation: Annotation,
    record: ImageRecord,
    mask: MaskWindow,
    height: int,
    width: int,
    flip: bool,
) -> tuple[float, float, float, float]:
    """Box xyxy in the resized and perhaps flipped image of (height, width), clipped to it."""
    if annotation.bbox_xywh is None:
        return mask.box_xyxy
    x, y, box_width, box_height = annotation.bbox_xywh
    x_scale, y_scale = width / record.width, height / record.height
    left, right = x * x_scale, (x + box_width) * x_scale
    top, bottom = y * y_scale, (y + box_height) * y_scale
    if flip:
        left, right = width - right, width - left
    return max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height)


def _write_instance(
    example: Example,
    index: int,
    box_xyxy: tuple[float, ...],
    annotation: Annotation,
    mask: MaskWindow,
) -> None:
    example["boxes"][index] = box_xyxy
    example["labels"][index] = annotation.label
    example["centers"][index] = center_of_mass(mask.mask, mask.top, mask.left)
    example["instance_valid"][index] = True
    example["mask_valid"][index] = annotation.supervise_mask
    if "embeddings" in example:
        example["embeddings"][index] = annotation.embedding


def _write_masks(
    example: Example,
    index: int,
    mask: MaskWindow,
    sheet: np.ndarray,
    coarse_factors: tuple[int, ...],
) -> None:
    """Shrinks and packs a mask at 1/4 and at every coarser scale; the sheet is zeros again then."""
    mask.paste(sheet)
    for factor, key in ((4, "masks"), *((factor, f"masks/{factor}") for factor in coarse_factors)):
        packed, rows, columns = shrink_and_pack(sheet, mask, factor)
        example[key][index, rows, columns] = packed
    mask.erase(sheet)
