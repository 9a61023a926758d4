"""From soft masks at the backbone's resolution to COCO annotations: NumPy on the host."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from solojax.errors import InputError
from solojax.ops.resize import bilinear_weights
from solojax.postprocess.rescale import encode_rle, encode_window_rle

LAST_STRIDE = 32  # pixels per cell of the backbone's last map
DUPLICATE_IOU = 0.5  # above which the lower of two pieces goes, as in `solojax.ops.nms.hard_nms`


@dataclasses.dataclass(frozen=True)
class FreeMaskFilters:
    """Which masks are kept; None switches a filter off. The defaults are the published ones.

    Attributes:
      min_maskness: least score (thesis 6.3.1), of a piece its own; the next two are the published
        code's.
      min_center: a box's centre must lie lower than this fraction of the image's height.
      max_width: a box must be narrower than this fraction of the image's width.
      components: whether a mask is taken apart into its connected pieces, each an object of its
        own. Neither published nor in the thesis: it is for photos of many objects that look alike,
        where one query lights up all of them.
      min_piece_area: pieces of fewer pixels of the file are dropped; without `components` nothing.
    """

    min_maskness: float | None = 0.7
    min_center: float | None = 0.2
    max_width: float | None = 0.95
    components: bool = False
    min_piece_area: int = 0

    def passes(self, score: float) -> bool:
        """Whether a mask of this maskness is kept, a float32."""
        return self.min_maskness is None or score >= np.float32(self.min_maskness)

    def keeps(self, center: float, box_width: float, height: int, width: int) -> bool:
        """Whether the two filters on boxes let a mask of an image of height and width pass.

        Args:
          center: the row of the box's centre, in pixel indices.
          box_width: in pixels.
          height: of the image.
          width: likewise.
        """
        low_enough = self.min_center is None or center > self.min_center * height
        return low_enough and (self.max_width is None or box_width < self.max_width * width)


@dataclasses.dataclass(frozen=True)
class Piece:
    """A connected piece of a mask, in its box: a mask at the size of a photo is megabytes.

    Attributes:
      top: first row of the box in the image.
      left: first column likewise.
      mask: (h, w) bool, of the box.
    """

    top: int
    left: int
    mask: np.ndarray

    @property
    def box(self) -> tuple[slice, slice]:
        """Where the piece lies in an (H, W) image."""
        height, width = self.mask.shape
        return np.s_[self.top : self.top + height, self.left : self.left + width]


def center_and_width(mask: np.ndarray, semantics: str, top: int = 0) -> tuple[float, float]:
    """What the filters look at: the row of a box's centre, in pixel indices, and the box's width.

    Args:
      mask: (H, W) bool, not empty.
      semantics: "thesis": of the tight box. "release": the mean of the occupied rows and the number
        of occupied columns, as the published code measures, which differ where a mask has gaps.
      top: the row of the image that is the mask's first.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)) + top, np.flatnonzero(mask.any(axis=0))
    if semantics == "release":
        return float(rows.mean()), len(columns)
    return float(rows[0] + rows[-1]) / 2, columns[-1] - columns[0] + 1


def cells_of(image_size: np.ndarray, stride: int = LAST_STRIDE) -> np.ndarray:
    """Cells (..., 2) that an image of (..., 2) pixels fills, those filled in part included."""
    return -(-image_size // stride)


def extent_of(
    image_size: Sequence[int], semantics: str, stride: int = LAST_STRIDE
) -> tuple[float, float]:
    """How many cells (rows, columns) the image's height and width are.

    Args:
      image_size: (height, width) of the resized image.
      semantics: "thesis": as many as they are, 31.25 for 1000 pixels. "release": whole ones, as the
        published code has it, which thereby takes the padding for a part of the image and stretches
        masks towards the lower right corner by up to 31 pixels of the resized image.
      stride: pixels of the resized image from one cell to the next.

    Raises:
      InputError: on another word.
    """
    if semantics == "thesis":
        return tuple(int(pixels) / stride for pixels in image_size)
    if semantics == "release":
        return tuple(float(cells) for cells in cells_of(np.asarray(image_size), stride))
    raise InputError(f"Free Mask semantics {semantics!r} is unknown; use 'thesis' or 'release'")


def upsample_mask(
    mask: np.ndarray, extent: Sequence[float], original_size: Sequence[int]
) -> np.ndarray:
    """A soft mask at the size of the image file, bilinear with half-pixel centres.

    Args:
      mask: (h, w) float32 of the image's own cells.
      extent: see `extent_of`.
      original_size: (height, width) of the file.

    Returns:
      (height, width) float32.
    """
    rows, columns = (
        bilinear_weights(size, cells, step=reach / size)
        for size, cells, reach in zip(original_size, mask.shape, extent, strict=True)
    )
    return rows @ np.asarray(mask, np.float32) @ columns.T


def connected_pieces(mask: np.ndarray, min_area: int) -> Iterator[Piece]:
    """The pieces of a mask whose pixels touch by sides or corners.

    Args:
      mask: (H, W) bool.
      min_area: pieces of fewer pixels are left out.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    for label in range(1, count):  # 0 is the background
        left, top, width, height, area = (int(value) for value in stats[label])
        if area >= min_area:
            yield Piece(top, left, labels[top : top + height, left : left + width] == label)


def best_pieces(annotations: Sequence[dict], limit: int) -> list[dict]:
    """Annotations without duplicates, best first: the greedy rule of `solojax.ops.nms.hard_nms`.

    Args:
      annotations: with score, area and segmentation (RLE), all of one image.
      limit: how many remain, at most.

    Returns:
      By score, of equal scores the larger first: every one whose IoU with all that were taken
      before it is not above `DUPLICATE_IOU`.
    """
    ranked = sorted(annotations, key=lambda a: (-a["score"], -a["area"]))
    taken: list[dict] = []
    for one in ranked:
        if len(taken) == limit:
            break
        masks = [each["segmentation"] for each in taken]
        overlaps = coco_mask.iou([one["segmentation"]], masks, [0] * len(masks)) if masks else 0
        if np.max(overlaps) <= DUPLICATE_IOU:
            taken.append(one)
    return taken


def free_mask_annotations(
    scores: np.ndarray,
    masks: np.ndarray,
    embeddings: np.ndarray,
    *,
    image_size: Sequence[int],
    original_size: Sequence[int],
    filters: FreeMaskFilters,
    mask_threshold: float = 0.5,
    semantics: str = "thesis",
    max_masks: int = 20,
    stride: int = LAST_STRIDE,
) -> list[dict]:
    """The masks of one image that pass the filters, as COCO has them, in the order given.

    Where `filters.components` takes masks apart, the filters look at the pieces. Their embedding is
    that of the whole; their score is their own maskness, the mean of the soft mask over the piece
    (thesis 6.2.2), without decay: `best_pieces` says which are left, and in what order.

    Args:
      scores: (M,) of `FreeMasks`, valid ones.
      masks: (M, h, w) likewise; the canvas may be larger than the image.
      embeddings: (M, E) likewise.
      image_size: (height, width) of the resized image in pixels.
      original_size: (height, width) of the file.
      filters: which masks are kept.
      mask_threshold: from which on a pixel is foreground.
      semantics: "thesis" or "release", see `extent_of` and `center_and_width`.
      max_masks: pieces of the image, at most.
      stride: pixels of the resized image from one cell to the next.

    Returns:
      Dicts with segmentation (compressed RLE at the file's size), area, bbox (x, y, width, height:
      the published code writes corners), score and the embedding as an array under "emb". A mask
      that has no pixel of the file is left out.
    """
    height, width = (int(size) for size in original_size)
    rows, columns = cells_of(np.asarray(image_size), stride)
    extent = extent_of(image_size, semantics, stride)
    annotations = []
    for score, mask, embedding in zip(scores, masks, embeddings, strict=True):
        if not filters.components and not filters.passes(score):
            continue
        soft = upsample_mask(mask[:rows, :columns], extent, (height, width))
        binary = soft >= mask_threshold
        if filters.components:
            annotations += [
                _annotation(rle, own, embedding)
                for rle, own in _kept_pieces(soft, binary, filters, semantics)
            ]
        elif binary.any() and filters.keeps(*center_and_width(binary, semantics), height, width):
            annotations.append(_annotation(encode_rle(binary), score, embedding))
    return best_pieces(annotations, max_masks) if filters.components else annotations


def _kept_pieces(
    soft: np.ndarray, binary: np.ndarray, filters: FreeMaskFilters, semantics: str
) -> Iterator[tuple[dict, float]]:
    """(RLE, score) of the pieces of a mask that pass the filters."""
    for piece in connected_pieces(binary, filters.min_piece_area):
        score = np.mean(soft[piece.box][piece.mask], dtype=np.float32)
        measures = center_and_width(piece.mask, semantics, piece.top)
        if filters.passes(score) and filters.keeps(*measures, *binary.shape):
            yield encode_window_rle(piece.mask, piece.top, piece.left, binary.shape), score


def _annotation(rle: dict, score: float, embedding: np.ndarray) -> dict:
    return {
        "segmentation": rle,
        "area": float(coco_mask.area(rle)),
        "bbox": [float(value) for value in coco_mask.toBbox(rle)],
        "score": float(score),
        "emb": embedding,
    }
