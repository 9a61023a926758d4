"""Masks as the rectangle that holds the object, so that work follows its size, not the image's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from pycocotools import mask as mask_utils

from solojax.data.packing import pack_masks
from solojax.data.segmentation import nearest_pixels, rasterize_polygons, shrink_mask
from solojax.data.segmentation_json import decode_runs


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class MaskWindow:
    """The rows and columns of a mask that are not all zero; the rest of the mask is 0.

    Attributes:
      top: the window's first row in the mask.
      left: its first column.
      mask: (h, w) contiguous uint8 in {0, 1}; (0, 0) for an empty mask.
    """

    top: int
    left: int
    mask: np.ndarray

    @property
    def area(self) -> int:
        """Pixels of the object."""
        return cv2.countNonZero(self.mask) if self.mask.size else 0

    @property
    def box_xyxy(self) -> tuple[int, int, int, int]:
        """The tight box, with exclusive right and bottom; zeros for an empty mask."""
        height, width = self.mask.shape
        return self.left, self.top, self.left + width, self.top + height

    def flipped(self, width: int) -> MaskWindow:
        """The window of the mirrored mask, whose image is `width` pixels wide."""
        if not self.mask.size:
            return self
        return MaskWindow(self.top, width - self.left - self.mask.shape[1], cv2.flip(self.mask, 1))

    def paste(self, canvas: np.ndarray) -> None:
        """Writes the window to its place in a canvas of zeros."""
        left, top, right, bottom = self.box_xyxy
        canvas[top:bottom, left:right] = self.mask

    def erase(self, canvas: np.ndarray) -> None:
        """Undoes `paste`."""
        left, top, right, bottom = self.box_xyxy
        canvas[top:bottom, left:right] = 0


def decode_window(
    segmentation: Sequence | Mapping, height: int, width: int, out_height: int, out_width: int
) -> MaskWindow:
    """Rasterises a segmentation at a target size, within the rectangle that holds it.

    Polygons are scaled first and rasterised at the target size. Run lengths are decoded, then each
    target pixel takes the source pixel that its centre falls into: the alignment of the image's
    own bilinear resize. (OpenCV's INTER_NEAREST is half a pixel off, INTER_NEAREST_EXACT is not
    exact where a centre falls on an edge.)

    Args:
      segmentation: polygons [[x1, y1, x2, y2, ...], ...] in pixels of the image, or run lengths
        {"size", "counts"}, compressed or not. It has to be valid (`parse_segmentation` checks it):
        pycocotools reads beyond its memory on some bad input.
      height: of the image that the segmentation refers to.
      width: likewise.
      out_height: of the result.
      out_width: likewise.
    """
    if not isinstance(segmentation, Mapping):
        scale = (out_width / width, out_height / height)
        return _window(rasterize_polygons(segmentation, scale, out_height, out_width))
    if isinstance(segmentation["counts"], list | tuple):
        segmentation = mask_utils.frPyObjects(segmentation, height, width)
    source = _window(segmentation)
    if (height, width) == (out_height, out_width):
        return source
    left, top, right, bottom = source.box_xyxy
    rows, first_row = _pixels_within(height, out_height, top, bottom)
    columns, first_column = _pixels_within(width, out_width, left, right)
    if not rows.size or not columns.size:
        return MaskWindow(0, 0, np.zeros((0, 0), np.uint8))
    return _tight(first_row, first_column, source.mask[rows - top][:, columns - left])


def shrink_and_pack(
    sheet: np.ndarray, window: MaskWindow, factor: int
) -> tuple[np.ndarray, slice, slice]:
    """What is not zero of the packed and shrunken mask, and where it belongs.

    Args:
      sheet: (H, W) uint8, the mask itself (see `MaskWindow.paste`).
      window: its window, not empty.
      factor: even divisor of both sides.

    Returns:
      (packed, rows, columns) so that an array of zeros with `out[rows, columns] = packed` is
      `pack_masks(shrink_mask(sheet, factor))`.
    """
    left, top, right, bottom = window.box_xyxy
    rows = _shrinkable_part(top, bottom, sheet.shape[0], factor, step=factor)
    columns = _shrinkable_part(left, right, sheet.shape[1], factor, step=8 * factor)
    packed = pack_masks(shrink_mask(sheet[rows, columns], factor))
    top_out, left_out = rows.start // factor, columns.start // (8 * factor)
    height, width = packed.shape
    return packed, slice(top_out, top_out + height), slice(left_out, left_out + width)


def _shrinkable_part(first: int, last: int, side: int, factor: int, step: int) -> slice:
    """The pixels around [first, last) of a side, in whole steps, that shrink as if all did.

    Where the factor divides the side, every result pixel depends on its own `factor` pixels alone;
    elsewhere the scale is not quite the factor, and its phase begins at 0.
    """
    if side % factor:
        return slice(0, side)
    return slice(first // step * step, min(-(-last // step) * step, side))


def _pixels_within(source: int, target: int, first: int, last: int) -> tuple[np.ndarray, int]:
    """The pixels in [first, last) that target pixels take, and the first of these targets."""
    pixels = nearest_pixels(source, target)
    begin, end = np.searchsorted(pixels, (first, last))
    return pixels[begin:end], int(begin)


def _tight(top: int, left: int, mask: np.ndarray) -> MaskWindow:
    """Cuts off rows and columns of zeros, which a shrunken mask may have at its border."""
    x, y, width, height = cv2.boundingRect(mask)
    if not width:
        return MaskWindow(0, 0, np.zeros((0, 0), np.uint8))
    return MaskWindow(top + y, left + x, np.ascontiguousarray(mask[y : y + height, x : x + width]))


def _window(rle: Mapping) -> MaskWindow:
    """Decodes compressed run lengths within their bounding box."""
    height = rle["size"][0]
    runs = decode_runs(rle["counts"])
    edges = np.cumsum(runs)
    starts, stops = edges[0 : 2 * (len(edges) // 2) : 2], edges[1::2]
    occupied = stops > starts
    starts, stops = starts[occupied], stops[occupied]
    if not starts.size:
        return MaskWindow(0, 0, np.zeros((0, 0), np.uint8))
    # Runs go down the columns.
    columns, tops = np.divmod(starts, height)
    last_columns, last_rows = np.divmod(stops - 1, height)
    left, right = int(columns[0]), int(last_columns[-1]) + 1
    top, bottom = 0, height
    if np.array_equal(columns, last_columns):
        top, bottom = int(tops.min()), int(last_rows.max()) + 1
    # Run lengths of the window alone.
    rows = bottom - top
    begins = (columns - left) * rows + tops - top
    ends = (last_columns - left) * rows + last_rows + 1 - top
    bounds = np.concatenate([np.stack([begins, ends], axis=1).reshape(-1), [rows * (right - left)]])
    values = np.arange(len(bounds)) % 2
    mask = np.repeat(values.astype(np.uint8), np.diff(bounds, prepend=0))
    return MaskWindow(top, left, cv2.transpose(mask.reshape(right - left, rows)))
