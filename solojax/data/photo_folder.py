"""A folder of photos, at any depth and without annotations, as a data set."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from solojax.data.coco import CocoDataset
from solojax.data.image_files import describe_others, no_image_there, sift_images
from solojax.data.image_folder import walk_files
from solojax.data.image_io import encoded_size
from solojax.data.instances import ImageRecord
from solojax.errors import InputError

_logger = logging.getLogger(__name__)

Size = tuple[int, int]

_HEADER_BYTES = 64 * 1024


def find_photos(folder: str | Path) -> list[str]:
    """The images in a folder and the folders in it: names below the folder, sorted.

    What lies in a folder whose name begins with a dot is passed over; other files that are no
    images by their suffix are counted in the log.

    Raises:
      InputError: there is no such folder, or no image in it.
    """
    if not os.path.isdir(folder):
        raise InputError(f"--images {folder}: no such folder; give the folder of the images")
    names, others = sift_images(walk_files(Path(folder)))
    if not names:
        raise InputError(f"--images {folder}: {no_image_there(others)}")
    if others:
        _logger.info("%s: %s passed over", folder, describe_others(others))
    return sorted(names, key=Path)


def read_sizes(folder: str | Path, names: Sequence[str], threads: int = 8) -> list[Size | None]:
    """(height, width) of each file, mostly by its header; None where it is no image."""
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        return list(pool.map(lambda name: _read_size(os.path.join(folder, name)), names))


def photo_dataset(
    folder: str | Path, names: Sequence[str], sizes: Sequence[Size | None]
) -> tuple[CocoDataset, tuple[str, ...]]:
    """The photos without objects, numbered from 1, and the names of those that are no images.

    Raises:
      InputError: not one of them is an image.
    """
    records, broken = [], []
    for number, (name, size) in enumerate(zip(names, sizes, strict=True), start=1):
        if size is None:
            broken.append(name)
        else:
            records.append(ImageRecord(number, name, size[0], size[1], ()))
    if not records:
        raise InputError(
            f"--images {folder}: none of the {len(names)} files can be read as an image, "
            f"{names[0]} the first; give files that are whole images"
        )
    return CocoDataset(str(folder), str(folder), (), tuple(records)), tuple(broken)


def _read_size(path: str) -> Size | None:
    try:
        with open(path, "rb") as file:
            head = file.read(_HEADER_BYTES)
            return encoded_size(head) or encoded_size(head + file.read())
    except OSError:
        return None
