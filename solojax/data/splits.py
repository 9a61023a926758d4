"""Parts of a COCO json for learning with few labels (thesis tables 5.4, 6.5 and 6.6).

Image splits keep some images with all their objects. Mask splits keep every image and object and
say of most objects that their mask does not supervise ("supervise_mask": 0): their classes train
the category branch, the masks of the rest the mask branch.

A split is chosen by ids alone: each id has a hash of its own with the seed, and those with the
smallest are taken. The order of the file plays no part, a smaller split is part of every larger one
of the same seed, and anybody gets the same split out of the same data set.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from solojax.errors import InputError

KINDS = ("images", "masks")


@dataclasses.dataclass(frozen=True)
class Split:
    """Which part of a data set was chosen.

    Attributes:
      kind: "images" or "masks".
      fraction: of the images, or of the masks that are no crowd.
      seed: of the choice.
      chosen: how many there are.
      of: how many there were.
      sha256: 16 hex digits over the sorted ids of the chosen ones.
    """

    kind: str
    fraction: float
    seed: int
    chosen: int
    of: int
    sha256: str


def write_split(
    source: str | Path, output: str | Path, kind: str, fraction: float, seed: int = 0
) -> Split:
    """Writes the json of a split, with what it is under "split" of its "info".

    Args:
      source: a COCO json; all that it holds beside images and annotations is kept.
      output: the new json, whole or not there.
      kind: of KINDS.
      fraction: in (0, 1); the number is rounded, to 1 at least.
      seed: of the choice.

    Raises:
      InputError: the source is no COCO json, or its masks are split already; the fraction or the
        kind makes no sense.
    """
    if kind not in KINDS:
        raise InputError(f"split kind {kind!r} is unknown; give one of {', '.join(KINDS)}")
    if not 0 < fraction < 1:
        raise InputError(f"a split of {fraction:g} is none; give a fraction between 0 and 1")
    source, output = Path(source), Path(output)
    if output.exists() and source.exists() and output.samefile(source):
        raise InputError(f"{output}: this is the source; write the split into another file")
    document = _read(source)
    split = _SPLITTERS[kind](document, fraction, seed, source)
    info = document.get("info")
    document["info"] = (info if isinstance(info, dict) else {}) | {
        "split": dataclasses.asdict(split)
    }
    temporary = output.with_name(f"{output.name}.tmp")
    temporary.write_text(json.dumps(document))
    os.replace(temporary, output)
    return split


def choose(ids: Iterable[int], fraction: float, seed: int, kind: str) -> frozenset[int]:
    """The chosen ids: round(fraction * count) of them, 1 at least.

    Args:
      ids: distinct.
      fraction: in (0, 1).
      seed: of the choice.
      kind: of KINDS; the same ids are chosen apart for each.
    """

    def place(entry: int) -> tuple[bytes, int]:
        return hashlib.sha256(f"{kind}/{seed}/{entry}".encode()).digest(), entry

    ordered = sorted(ids, key=place)
    return frozenset(ordered[: max(1, int(fraction * len(ordered) + 0.5))])


def _split_images(document: dict, fraction: float, seed: int, source: Path) -> Split:
    ids = _ids(document, "images", source)
    chosen = choose(ids, fraction, seed, "images")
    document["images"] = [entry for entry in document["images"] if entry["id"] in chosen]
    document["annotations"] = [
        entry for entry in document["annotations"] if entry.get("image_id") in chosen
    ]
    return Split("images", fraction, seed, len(chosen), len(ids), _digest(chosen))


def _split_masks(document: dict, fraction: float, seed: int, source: Path) -> Split:
    _ids(document, "annotations", source)
    objects = [entry for entry in document["annotations"] if not entry.get("iscrowd", 0)]
    if not objects:
        raise InputError(f"{source}: it has no object that is not a crowd, so no mask to choose")
    if any("supervise_mask" in entry for entry in objects):
        raise InputError(
            f'{source}: its masks are split already ("supervise_mask"); give the file that it was '
            "made from"
        )
    chosen = choose((entry["id"] for entry in objects), fraction, seed, "masks")
    for entry in objects:
        entry["supervise_mask"] = int(entry["id"] in chosen)
    return Split("masks", fraction, seed, len(chosen), len(objects), _digest(chosen))


_SPLITTERS = {"images": _split_images, "masks": _split_masks}


def _digest(chosen: frozenset[int]) -> str:
    return hashlib.sha256(",".join(map(str, sorted(chosen))).encode()).hexdigest()[:16]


def _read(source: Path) -> dict:
    """The document as json has it; of its entries no more than the ids are looked at here."""
    try:
        document = json.loads(source.read_text("utf-8-sig"))
    except OSError as error:
        raise InputError(
            f"{source}: cannot read the annotations ({error.strerror}); check the path"
        ) from None
    except ValueError as error:
        raise InputError(f"{source}: not valid json ({error}); fetch the file again") from None
    if not isinstance(document, dict):
        raise InputError(f"{source}: not a COCO file; its outermost value has to be an object")
    return document


def _ids(document: dict, section: str, source: Path) -> list[int]:
    """The ids of a section's entries.

    Raises:
      InputError: a list is absent, an entry has no whole number for an id, or two have the same.
    """
    for key in ("images", "annotations"):
        if not isinstance(document.get(key), list):
            raise InputError(f'{source}: no list "{key}"; give a COCO json')
        for index, entry in enumerate(document[key]):
            if not isinstance(entry, dict) or type(entry.get("id")) is not int:
                raise InputError(
                    f'{source}: {key} entry {index} has no whole number as "id"; give it one'
                )
    ids = [entry["id"] for entry in document[section]]
    if len(set(ids)) != len(ids):
        raise InputError(f"{source}: two {section} have the same id; give each one of its own")
    if not ids:
        raise InputError(f"{source}: it has no {section}; give a file that lists some")
    return ids
