"""What both COCO files, annotations and results, are read and checked with."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping
from pathlib import Path

from etils import epath

from solojax.errors import InputError


def read_json(path: str | Path, what: str) -> object:
    """The contents of a json file; `what` names them in the message of an InputError."""
    try:
        # Through epath, since the annotations of records may lie in a bucket.
        return json.loads(epath.Path(path).read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise InputError(
            f"{path}: cannot read the {what} ({error.strerror}); check the path"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid json ({error}); write the file again") from None


def place(kind: str, index: int, entry: object) -> str:
    """What a person searches the file for: the position in the list, from 0, and the ids."""
    fields = entry if isinstance(entry, Mapping) else {}
    ids = [f"{key} {fields[key]!r}" for key in ("id", "image_id") if key in fields]
    return f"{kind} {index}" + (f" ({', '.join(ids)})" if ids else "")


def field(entry: Mapping, key: str):
    """entry[key], or a ValueError that says so."""
    if not isinstance(entry, Mapping):
        raise ValueError("is no json object; write it as {...}")
    if key not in entry:
        raise ValueError(f'has no "{key}"; add it')
    return entry[key]


def is_whole(value: object) -> bool:
    """An integer, NumPy's included, that is no bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_finite(value: object) -> bool:
    """A number, NumPy's included, that is neither a bool nor NaN nor infinite."""
    if type(value) is float:  # nearly all of them; asking numbers.Real takes ten times as long
        return math.isfinite(value)
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def check_box_xywh(box: object) -> None:
    """Raises ValueError unless box is [x, y, width, height] with finite numbers."""
    numeric = hasattr(box, "__len__") and len(box) == 4 and all(map(is_finite, box))
    if not numeric or box[2] < 0 or box[3] < 0:
        raise ValueError(
            f"bbox {box!r} is not [x, y, width, height] in finite numbers with width and height "
            "from 0; correct it, or leave it out to have it taken from the mask"
        )


def check_mask_size(segmentation: Mapping, image_size: tuple[int, int]) -> None:
    """Raises ValueError unless run lengths have the size of their image."""
    size = segmentation.get("size")
    if not hasattr(size, "__len__") or list(size) != list(image_size):
        raise ValueError(
            f"mask size {size!r} (height, width) differs from its image's {list(image_size)}; "
            "encode the mask at the size of the original image"
        )
