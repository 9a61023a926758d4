"""Reading image files, and telling a whole one from a broken one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from solojax.errors import BrokenImage, InputError

_READ_FLAGS = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
# The next JPEG marker that is neither a stuffed byte (FF 00), a restart marker nor fill bytes.
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])")
_JPEG_END = 0xD9
_JPEG_WITHOUT_LENGTH = (0x01, 0xD8)
_JPEG_FRAMES = tuple(code for code in range(0xC0, 0xD0) if code not in (0xC4, 0xC8, 0xCC))
_PNG_END = b"IEND\xae\x42\x60\x82"  # the last chunk's type and checksum, always the same


def read_image(path: str | Path) -> np.ndarray:
    """Reads an image file as (H, W, 3) uint8 RGB.

    See `decode_image`.

    Raises:
      BrokenImage: the file is absent, empty, truncated or in no readable format.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise BrokenImage(
            f"{path}: cannot read the image ({error.strerror}); check the image folder"
        ) from None
    return decode_image(data, str(path))


def decode_image(data: bytes, where: str) -> np.ndarray:
    """Decodes an image file's bytes to (H, W, 3) uint8 RGB.

    Grey images are repeated over the channels, transparency is dropped, 16 bits are cut to the
    upper 8, and of an animation there is the first image. The EXIF orientation is ignored, because
    COCO annotations refer to the stored pixels.

    Whether JPEG, PNG and WebP files reach their end marker is checked here: several versions of
    OpenCV fill the missing part of a truncated file with grey and say nothing.

    Args:
      data: the file's contents.
      where: the file's path or place, for the message.

    Raises:
      BrokenImage: the file is empty, truncated or in no readable format.
    """
    if not data:
        raise BrokenImage(f"{where}: the image file is empty (0 bytes); fetch it again")
    if not _reaches_its_end(data):
        raise BrokenImage(
            f"{where}: the image is truncated (no end marker in {len(data)} bytes); fetch it again"
        )
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), _READ_FLAGS)
    except cv2.error:
        image = None
    if image is None:
        raise BrokenImage(
            f"{where}: not an image, damaged, or in a format that OpenCV cannot read; "
            "replace the file, for example by a JPEG or PNG"
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def encoded_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of an image file's bytes, without decoding JPEG, PNG and GIF; None if
    broken."""
    if data.startswith(b"\x89PNG\r\n\x1a\n") and len(data) >= 24:
        return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
    if data.startswith((b"GIF87a", b"GIF89a")) and len(data) >= 10:
        return int.from_bytes(data[8:10], "little"), int.from_bytes(data[6:8], "little")
    if data.startswith(b"\xff\xd8") and min(size := _jpeg_size(data) or (0, 0)):
        return size
    try:
        return decode_image(data, "").shape[:2]
    except BrokenImage:
        return None


def check_image_size(image: np.ndarray, height: int, width: int, where: str) -> None:
    """Holds an image against the size that the annotations give it.

    Args:
      image: (H, W, ...) the pixels read.
      height: recorded height in pixels.
      width: recorded width in pixels.
      where: the image's file name or path, for the message.

    Raises:
      InputError: the sizes differ, so that the masks would not lie on the objects.
    """
    if image.shape[:2] == (height, width):
        return
    found = f"{image.shape[1]}x{image.shape[0]}"
    hint = "use the image that was annotated, or correct its width and height in the json"
    if image.shape[:2] == (width, height):
        hint = "the file was probably rotated by its EXIF orientation; " + hint
    raise InputError(
        f"{where}: the image is {found} (width x height) but the annotations say "
        f"{width}x{height}; {hint}"
    )


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) in the first start-of-frame segment."""
    for marker, start in _jpeg_segments(data):
        if marker in _JPEG_FRAMES and len(data) >= start + 7:
            return tuple(int.from_bytes(data[at : at + 2], "big") for at in (start + 3, start + 5))
    return None


def _reaches_its_end(data: bytes) -> bool:
    """False where the file's own format says that bytes are missing at the end."""
    if data.startswith(b"\xff\xd8"):
        return _jpeg_reaches_its_end(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _PNG_END in data
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return int.from_bytes(data[4:8], "little") + 8 <= len(data)
    return True


def _jpeg_reaches_its_end(data: bytes) -> bool:
    return any(marker == _JPEG_END for marker, _ in _jpeg_segments(data))


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Every marker with the place after it.

    Segments are skipped by their length, so that the end marker of a thumbnail inside the EXIF
    block does not count; compressed pixels cannot hold the marker, they escape the byte FF.
    """
    position = 2
    while match := _JPEG_MARKER.search(data, position):
        marker, position = match[1][0], match.end()
        yield marker, position
        if marker not in _JPEG_WITHOUT_LENGTH:
            position += max(2, int.from_bytes(data[position : position + 2], "big"))
