"""Checks of the coordinates and segmentations in a COCO json, before anything decodes them.

The functions raise ValueError with a text that says what is wrong and what to do; the caller, who
knows the file and the entry, adds the place. pycocotools checks almost nothing: run lengths that
end too early come back as whatever the memory held.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from pycocotools import mask as mask_utils

Polygons = tuple[np.ndarray, ...]  # each (2 n,) float64: x, y, x, y, ... in image pixels
RunLengths = Mapping[str, object]  # {"size": [height, width], "counts": bytes}, compressed


def parse_segmentation(raw: object, height: int, width: int) -> Polygons | RunLengths:
    """Checks the "segmentation" of a COCO annotation and brings it into its compact form.

    Args:
      raw: a list of polygons, or {"size", "counts"} with counts compressed (str) or not (list).
      height: of the image, pixels.
      width: of the image, pixels.

    Returns:
      A tuple of float64 coordinate vectors, or compressed run lengths with counts as bytes. Both
      are forms that pycocotools reads. Uncompressed run lengths are compressed.
    """
    if isinstance(raw, Mapping):
        return _parse_run_lengths(raw, height, width)
    if not isinstance(raw, list | tuple):
        raise ValueError('segmentation is neither a list of polygons nor {"size", "counts"}')
    if not raw:
        raise ValueError("segmentation is empty; give it a polygon or remove the annotation")
    polygons = tuple(parse_coordinates(polygon) for polygon in raw)
    for polygon in polygons:
        _check_polygon(polygon, height, width)
    return polygons


def decode_runs(counts: str | bytes) -> np.ndarray:
    """The runs of COCO's compressed string, background first: int64.

    Numbers are in characters of five bits (offset 48), the lowest first, each but the last with a
    sixth bit set, and the last one's fifth bit is the sign; from the fourth number on, they are
    differences from the run two places before.

    Args:
      counts: has to be valid, as `parse_segmentation` leaves it: nothing is checked here.
    """
    text = counts.encode("ascii") if isinstance(counts, str) else counts
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(codes & 32 == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    lengths = last - first + 1
    place = np.arange(len(codes)) - np.repeat(first, lengths)
    runs = np.add.reduceat((codes & 31) << (5 * place), first)
    negative = codes[last] & 16 != 0
    runs[negative] -= 1 << (5 * lengths[negative])
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def parse_coordinates(raw: object) -> np.ndarray:
    """A flat list of numbers as a float64 vector."""
    problem = "polygon is not a flat list of numbers; write it as [x1, y1, x2, y2, ...]"
    try:
        values = np.asarray(raw)
    except ValueError:
        raise ValueError(problem) from None
    if values.ndim != 1 or values.dtype.kind not in "iuf":
        raise ValueError(problem)
    return values.astype(np.float64, copy=False)


def max_overshoot(side: int) -> float:
    """Pixels by which boxes and polygons may leave an image of `side` pixels: 2, or 2% of it.

    Annotation tools leave the frame by rounding, and rasterising cuts that off. More than that is
    a sign of coordinates that belong to another image or another size, and is refused.
    """
    return max(2.0, 0.02 * side)


def check_extent(
    what: str, left: float, top: float, right: float, bottom: float, height: int, width: int
) -> None:
    """Refuses coordinates that are not finite or leave the image by over `max_overshoot`."""
    x_margin, y_margin = max_overshoot(width), max_overshoot(height)
    # Written so that NaN, which fails every comparison, is refused as well.
    inside_x = left >= -x_margin and right <= width + x_margin
    if inside_x and top >= -y_margin and bottom <= height + y_margin:
        return
    if not all(map(math.isfinite, (left, top, right, bottom))):
        raise ValueError(f"{what} with a coordinate that is NaN or infinite; correct or remove it")
    raise ValueError(
        f"{what} from ({left:g}, {top:g}) to ({right:g}, {bottom:g}) leaves its {width}x{height} "
        "image (width x height); clip it, or correct the image's size"
    )


def _check_polygon(polygon: np.ndarray, height: int, width: int) -> None:
    if polygon.size < 6 or polygon.size % 2:
        raise ValueError(
            f"polygon of {polygon.size} numbers; it needs an even count, at least 6: "
            "correct or remove it"
        )
    points = polygon.reshape(-1, 2)
    check_extent("polygon", *points.min(axis=0), *points.max(axis=0), height, width)


def _parse_run_lengths(raw: Mapping, height: int, width: int) -> RunLengths:
    if "size" not in raw or "counts" not in raw:
        raise ValueError('run-length segmentation without "size" or "counts"; give both')
    size, counts = raw["size"], raw["counts"]
    if not isinstance(size, list | tuple) or tuple(size) != (height, width):
        raise ValueError(
            f"mask size {size} (height, width) differs from its image's [{height}, {width}]; "
            "encode the mask at the image's size, or correct the image's size"
        )
    compressed = not isinstance(counts, list | tuple)
    if compressed:
        counts = _as_bytes(counts)
        _check_string(counts)
    runs = decode_runs(counts) if compressed else _runs_of_list(counts)
    if (runs < 0).any() or int(runs.sum()) != height * width:
        raise ValueError(
            f"run lengths do not add up to the {height * width} pixels of the mask; "
            "encode the mask again"
        )
    if compressed:
        return {"size": [height, width], "counts": counts}
    return mask_utils.frPyObjects({"size": [height, width], "counts": counts}, height, width)


def _runs_of_list(counts: list) -> np.ndarray:
    runs = np.asarray(counts)
    if runs.ndim != 1 or runs.dtype.kind not in "iu":
        raise ValueError("run lengths are no list of whole numbers; encode the mask again")
    return runs


def _check_string(counts: bytes) -> None:
    """Refuses a string that `decode_runs` would make nonsense of."""
    codes = np.frombuffer(counts, np.uint8)
    # From 80 on, an offset of 48 and bit 5, more characters of the number follow.
    if not codes.size or codes.min() < 48 or codes.max() > 111 or codes[-1] >= 80:
        raise ValueError("counts is no complete compressed run-length string; encode it again")
    ends = np.flatnonzero(codes < 80)
    if ends[0] >= 7 or (ends[1:] - ends[:-1] > 7).any():
        raise ValueError("counts holds a number of more than 35 bits; encode the mask again")


def _as_bytes(counts: object) -> bytes:
    if isinstance(counts, bytes):
        return counts
    if not isinstance(counts, str) or not counts.isascii():
        raise ValueError("counts is neither a list of run lengths nor a compressed string")
    return counts.encode("ascii")
