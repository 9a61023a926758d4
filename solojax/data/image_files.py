"""Images named by a file, a folder or a pattern."""

from __future__ import annotations

import glob
from pathlib import Path

from solojax.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def find_images(what: str | Path) -> list[Path]:
    """Image files in order of their names.

    Args:
      what: a file, a folder (its image files, not those of folders in it) or a glob pattern.

    Raises:
      InputError: nothing there is an image file.
    """
    path = Path(what)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = path.iterdir()
    else:
        found = map(Path, glob.glob(str(what), recursive=True))
    images = sorted(p for p in found if p.suffix.lower() in SUFFIXES and p.is_file())
    if not images:
        raise InputError(
            f"--images {what}: no image there; give a file, a folder or a quoted pattern "
            f"({', '.join(SUFFIXES)})"
        )
    return images
