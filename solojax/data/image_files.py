"""Images named by a file, a folder or a pattern."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from solojax.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
_NAMED = 5  # suffixes of other files


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
    found = list(found)
    images = sorted(p for p in found if p.suffix.lower() in SUFFIXES and p.is_file())
    if not images:
        advice = "give a file, a folder or a quoted pattern"
        if path.is_dir() and any(p.is_dir() for p in found):
            advice = f"folders in it are not looked into: give them as '{path}/*/*'"
        raise InputError(f"--images {what}: no image there; {advice} ({', '.join(SUFFIXES)})")
    return images


def sift_images(names: Iterable[str]) -> tuple[list[str], Counter[str]]:
    """Names of image files, in their order, and how many of the others have which suffix.

    Letter case does not matter in a suffix.
    """
    images, others = [], Counter()
    for name in names:
        if name.lower().endswith(SUFFIXES):
            images.append(name)
        else:
            others[Path(name).suffix.lower()] += 1
    return images, others


def describe_others(others: Counter[str]) -> str:
    """What `sift_images` has left in words: "4 other files (3 .heic, 1 without suffix)"."""
    named, total = others.most_common(_NAMED), others.total()
    kinds = [f"{count} {suffix or 'without suffix'}" for suffix, count in named]
    rest = total - sum(count for _, count in named)
    kinds += [f"{rest} more"] * (rest > 0)
    return f"{total} other file{'s' * (total > 1)} ({', '.join(kinds)})"


def no_image_there(others: Counter[str]) -> str:
    """The end of a message about a folder in which `sift_images` finds no image."""
    wanted = f"no image there ({', '.join(SUFFIXES)})"
    if not others:
        return f"{wanted}; check the folder"
    return f"{wanted}, but {describe_others(others)}; convert them, or check the folder"
