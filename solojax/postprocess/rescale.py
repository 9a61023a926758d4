"""Mask probabilities at 1/4 scale -> binary masks of the original image -> COCO results.

NumPy on the host. The order is the published one: probabilities are upsampled x4 to the canvas,
cropped to the valid part, resized to the original size, and only then compared with the threshold
(0.5 in thesis 4.2.1, Learning and Inference; the order is the SOLOv2 release's). Both resizes
are bilinear with half-pixel centres, edges clamped, no corner alignment and no anti-aliasing. The
factor is always 4: the published code derives it from the unpadded image, and crops wrongly where
an image is much smaller than its canvas.

Rows are taken through both resizes first, columns after, which gives the same weighted sums with
far less work than a mask at canvas size; and only where a mask can exceed the threshold at all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask

from solojax.errors import InputError
from solojax.structures import Detections

_STRIDE = 4


def resize_masks(
    probabilities: np.ndarray,
    image_size: Sequence[int],
    original_size: Sequence[int],
    threshold: float = 0.5,
) -> np.ndarray:
    """Binary masks at the original size, from probabilities at 1/4 of the canvas.

    Args:
      probabilities: (M, h, w) float32 in [0, 1]; the canvas is (4h, 4w).
      image_size: (height, width) of the valid part of the canvas, in pixels.
      original_size: (height, width) of the file, H0 and W0.
      threshold: probability above which a pixel is foreground.

    Returns:
      (M, H0, W0) uint8 of 0 and 1. Every mask is laid out column by column (a transposed view of
      (M, W0, H0)), the order in which COCO's run lengths are counted.

    Raises:
      InputError: the sizes do not fit together.
    """
    resizer = _MaskResizer(probabilities.shape[1:], image_size, original_size, threshold)
    height, width = resizer.original_size
    transposed = np.zeros((len(probabilities), width, height), np.uint8)
    for mask, out in zip(probabilities, transposed, strict=True):
        resizer.resize_into(mask, out)
    return transposed.transpose(0, 2, 1)


def encode_rle(mask: np.ndarray) -> dict:
    """COCO's compressed run lengths of an (H, W) binary mask: {"size": [H, W], "counts": str}."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode("ascii")}


def encode_window_rle(mask: np.ndarray, top: int, left: int, size: Sequence[int]) -> dict:
    """`encode_rle` of an image that is empty but for a window: as much work as the window is large.

    Args:
      mask: (h, w) bool, the window.
      top: row of its upper left pixel in the image.
      left: column of it.
      size: (H, W) of the image.
    """
    height, width = (int(n) for n in size)
    # A row of background above and one below: all runs begin and end in their own column.
    columns = np.zeros((mask.shape[1], mask.shape[0] + 2), np.int8)
    columns[:, 1:-1] = mask.T
    column, row = np.nonzero(np.diff(columns))
    changes = (left + column) * height + top + row
    # Twice the same place: a run that ends at the bottom goes on at the top of the next column.
    places, times = np.unique(changes, return_counts=True)
    counts = np.diff(places[times == 1], prepend=0, append=height * width)
    if not counts[-1]:  # the last pixel is foreground
        counts = counts[:-1]
    uncompressed = {"size": [height, width], "counts": counts.tolist()}
    rle = coco_mask.frPyObjects(uncompressed, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def to_coco_results(
    scores: np.ndarray,
    labels: np.ndarray,
    masks: np.ndarray,
    *,
    image_size: Sequence[int],
    original_size: Sequence[int],
    image_id: int,
    category_ids: Sequence[int],
    mask_threshold: float = 0.5,
    drop_empty: bool = False,
    embeddings: np.ndarray | None = None,
) -> list[dict]:
    """COCO results of one image, in the order given, holding one full-size mask at a time.

    A mask can become empty when it is shrunk or when it lies in the padding. Such a result stays,
    with box [0, 0, 0, 0], as in the published code: it counts as a false positive, so leaving it
    out would raise AP over the published figures. Where results are not scored but used (as
    annotations, for an editor), pass `drop_empty=True`.

    Args:
      scores: (M,) floats.
      labels: (M,) ints, contiguous class indices.
      masks: (M, h, w) float32 probabilities at 1/4 of the canvas.
      image_size: (height, width) of the valid part of the canvas.
      original_size: (height, width) of the file.
      image_id: the image's id in the annotation file.
      category_ids: contiguous class index -> category id of the annotation file.
      mask_threshold: probability above which a pixel is foreground.
      drop_empty: leave out the masks without a pixel.
      embeddings: (M, E) floats, what each looks like (thesis 6.2.3); None where nothing says so.

    Returns:
      Dicts with image_id, category_id, score (Python float), bbox ([x, y, width, height] in pixels
      of the original image, tight around the final mask), segmentation (compressed RLE) and, where
      there are embeddings, emb (E Python floats).

    Raises:
      InputError: the sizes do not fit together, or a label is no index of `category_ids`.
    """
    resizer = _MaskResizer(masks.shape[1:], image_size, original_size, mask_threshold)
    height, width = resizer.original_size
    results = []
    for index, (score, label, mask) in enumerate(zip(scores, labels, masks, strict=True)):
        transposed = np.zeros((width, height), np.uint8)
        resizer.resize_into(mask, transposed)
        rle = encode_rle(transposed.T)
        box_xywh = [float(v) for v in coco_mask.toBbox(rle)]
        if drop_empty and not box_xywh[2]:
            continue
        results.append(
            {
                "image_id": int(image_id),
                "category_id": _category_id(category_ids, int(label), image_id),
                "score": float(score),
                "bbox": box_xywh,
                "segmentation": rle,
            }
        )
        if embeddings is not None:
            # The nine digits that bring every float32 back.
            results[-1]["emb"] = [float(f"{value:.9g}") for value in embeddings[index].tolist()]
    return results


def detections_to_coco_results(
    detections: Detections,
    *,
    image_size: np.ndarray,
    original_size: np.ndarray,
    image_valid: np.ndarray,
    image_ids: Sequence[int],
    category_ids: Sequence[int],
    mask_threshold: float = 0.5,
    drop_empty: bool = False,
) -> list[dict]:
    """`to_coco_results` for a batch: rows with `image_valid` False and invalid slots are skipped.

    Args:
      detections: Detections with a leading B axis, on the host or on a device.
      image_size: (B, 2) ints, (height, width) of the valid part of the canvas.
      original_size: (B, 2) ints, (height, width) of the file.
      image_valid: (B,) bool, False for padding rows and unreadable images.
      image_ids: B ids of the annotation file; those of skipped rows are not read.
      category_ids: contiguous class index -> category id of the annotation file.
      mask_threshold: as in `to_coco_results`.
      drop_empty: likewise.

    Returns:
      The results of all images in batch order.
    """
    scores, labels, masks, valid = (
        np.asarray(a)
        for a in (detections.scores, detections.labels, detections.masks, detections.valid)
    )
    embeddings, results = detections.embeddings, []
    for b in np.flatnonzero(np.asarray(image_valid)):
        keep = np.flatnonzero(valid[b])
        results += to_coco_results(
            scores[b, keep],
            labels[b, keep],
            masks[b, keep],
            image_size=image_size[b],
            original_size=original_size[b],
            image_id=image_ids[b],
            category_ids=category_ids,
            mask_threshold=mask_threshold,
            drop_empty=drop_empty,
            embeddings=None if embeddings is None else np.asarray(embeddings[b])[keep],
        )
    return results


def _category_id(category_ids: Sequence[int], label: int, image_id: int) -> int:
    if not 0 <= label < len(category_ids):
        raise InputError(
            f"a detection on image {image_id} has class {label}, but the data set has "
            f"{len(category_ids)} categories; use the annotation file the model was trained on"
        )
    return int(category_ids[label])


@dataclasses.dataclass(frozen=True)
class _Taps:
    """A bilinear resize along one axis: out[i] = in[low[i]] (1 - w[i]) + in[high[i]] w[i]."""

    low: np.ndarray  # (out,) int32
    high: np.ndarray  # (out,) int32
    weight: np.ndarray  # (out,) float32 in [0, 1), w above

    @classmethod
    def between(cls, in_size: int, out_size: int) -> _Taps:
        """Half-pixel centres, edges clamped.

        The scale is rounded to float32 and the coordinate once more, where PyTorch's fused
        multiply-add rounds it: that gives its figures to 5e-7, a plain float64 formula to 7e-5.
        """
        scale = np.float64(np.float32(in_size) / np.float32(out_size))
        source = (scale * (np.arange(out_size) + 0.5) - 0.5).astype(np.float32)
        source = np.maximum(source, np.float32(0))
        low = np.minimum(source.astype(np.int32), in_size - 1)
        high = np.minimum(low + 1, in_size - 1)
        return cls(low, high, source - low.astype(np.float32))

    def inputs(self, start: int, stop: int) -> tuple[int, int]:
        """Range of input rows that output rows [start, stop) read."""
        return int(self.low[start]), int(self.high[stop - 1]) + 1

    def apply(self, rows: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Output rows [start, stop), where `rows` are the input rows `inputs(start, stop)`."""
        low, high = self.low[start:stop], self.high[start:stop]
        weight = self.weight[start:stop, None]
        # Two taps a step keep a plateau of exactly 0.5 (the sigmoid where all mask features are
        # zero) at exactly 0.5, hence background. Folding both resizes into one set of weights
        # would round such a plateau to either side of the threshold.
        return rows[low - low[0]] * (1 - weight) + rows[high - low[0]] * weight


@dataclasses.dataclass(frozen=True)
class _Axis:
    """Both resizes along one axis: 1/4 scale -> canvas, of which the crop -> original size."""

    to_canvas: _Taps
    to_original: _Taps

    @classmethod
    def build(cls, quarter_size: int, image_size: int, original_size: int) -> _Axis:
        to_canvas = _Taps.between(quarter_size, quarter_size * _STRIDE)
        return cls(to_canvas, _Taps.between(image_size, original_size))

    def reach(self, first: int, last: int) -> tuple[int, int]:
        """Range [start, stop) of the outputs that read any of the inputs first..last."""
        lowest = self.to_canvas.low[self.to_original.low]
        highest = self.to_canvas.high[self.to_original.high]
        start = int(np.searchsorted(highest, first, side="left"))
        return start, int(np.searchsorted(lowest, last, side="right"))

    def inputs(self, start: int, stop: int) -> tuple[int, int]:
        """Range of the inputs that outputs [start, stop) read."""
        return self.to_canvas.inputs(*self.to_original.inputs(start, stop))

    def apply(self, rows: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Outputs [start, stop) along the first axis of `rows` = inputs `inputs(start, stop)`."""
        canvas = self.to_canvas.apply(rows, *self.to_original.inputs(start, stop))
        return self.to_original.apply(canvas, start, stop)


class _MaskResizer:
    """Resizes the masks of one image, each only where it can exceed the threshold."""

    def __init__(self, quarter_size, image_size, original_size, threshold):
        self._threshold = threshold
        self.original_size = tuple(int(n) for n in original_size)
        image_size = tuple(int(n) for n in image_size)
        canvas = tuple(_STRIDE * n for n in quarter_size)
        fits = all(1 <= n <= limit for n, limit in zip(image_size, canvas, strict=True))
        if not fits or min(self.original_size) < 1:
            raise InputError(
                f"image size {image_size} and original size {self.original_size} do not fit masks "
                f"of a {canvas} canvas; give (height, width), the image within the canvas"
            )
        sizes = zip(quarter_size, image_size, self.original_size, strict=True)
        self.vertical, self.horizontal = (_Axis.build(*axis) for axis in sizes)

    def resize_into(self, probabilities: np.ndarray, transposed: np.ndarray) -> None:
        """Sets the foreground of (h, w) float32 probabilities in (W0, H0) zeros.

        A weighted mean of values up to the threshold never exceeds it, in float32 either, so only
        outputs that read a value above it are computed.
        """
        probabilities = np.asarray(probabilities, np.float32)
        foreground = probabilities > self._threshold
        rows = np.flatnonzero(foreground.any(axis=1))
        if not rows.size:
            return
        columns = np.flatnonzero(foreground.any(axis=0))
        y0, y1 = self.vertical.reach(rows[0], rows[-1])
        x0, x1 = self.horizontal.reach(columns[0], columns[-1])
        if y0 >= y1 or x0 >= x1:  # the foreground lies in the padding
            return
        top, bottom = self.vertical.inputs(y0, y1)
        left, right = self.horizontal.inputs(x0, x1)
        region = self.vertical.apply(probabilities[top:bottom, left:right], y0, y1)
        region = self.horizontal.apply(np.ascontiguousarray(region.T), x0, x1)
        transposed[x0:x1, y0:y1] = region > self._threshold
