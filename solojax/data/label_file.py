"""Label files: masks that a program found, as a COCO json that says what they were made with.

A label file is a COCO json of one class. Each annotation has, beside COCO's own keys, its "score"
and perhaps its embedding "emb" (the published key, E numbers); "info" says what made it, with a
fingerprint of the checkpoint's content and of the settings that decide the labels. Labels made by
another checkpoint, or with other settings, are refused where they would be used by mistake.

The mask files of the published FreeSOLO load too. They have no fingerprint, number the objects anew
in every merged part, give all objects one of COCO's classes, and write corners (x1, y1, x2, y2)
into "bbox", so that boxes are taken from the masks instead.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from solojax.data.coco import CocoDataset, parse_document, read_document
from solojax.data.instances import Category, ImageRecord
from solojax.errors import ForeignLabels, InputError

CATEGORY = Category(1, "object")
_HEAD = '{"info": '
_SECTION = '"{}": ['
_LONGEST_INFO = 2**20  # characters


@dataclasses.dataclass(frozen=True)
class LabelInfo:
    """What a label file says of itself.

    Attributes:
      fingerprint: of checkpoint and settings, see `fingerprint`.
      settings: what decided the labels, for a person and for messages; as a json has it, tuples as
        lists, so that it equals what is read from a file.
      checkpoint: where the checkpoint was.
      description: in words.
    """

    fingerprint: str
    settings: Mapping[str, object]
    checkpoint: str
    description: str = ""

    def __post_init__(self):
        object.__setattr__(self, "settings", json.loads(json.dumps(self.settings)))


def fingerprint(variables: Mapping, settings: Mapping[str, object]) -> str:
    """16 hex digits over the values in a checkpoint and the settings that decide labels.

    Args:
      variables: nested mappings of arrays, from any file format: the values count, not the file.
      settings: json values, such as thresholds and image sizes; the order of the keys is nothing.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    _update(digest, variables, "")
    return digest.hexdigest()[:16]


def _update(digest, value: object, path: str) -> None:
    if isinstance(value, Mapping):
        for name in sorted(value):
            _update(digest, value[name], f"{path}/{name}")
        return
    array = np.ascontiguousarray(value)
    digest.update(f"{path} {array.shape} {array.dtype}\n".encode())
    digest.update(array.data if array.size else b"")


def write(
    path: str | Path, *, images: Sequence[dict], annotations: Iterable[dict], info: LabelInfo
) -> None:
    """Writes a label file, which is whole or, where writing fails, what it was before.

    Args:
      path: of the json.
      images: COCO's entries: id, file_name, height, width. Those without objects stay in the file:
        an evaluation counts them.
      annotations: image_id, segmentation (run lengths), area, bbox (xywh), score and, if there is
        one, emb (see `embedding_as_list`). Ids, class and iscrowd are added here.
      info: what made them.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    numbered = (
        {"id": number, "category_id": CATEGORY.id, "iscrowd": 0} | annotation
        for number, annotation in enumerate(annotations, start=1)
    )
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with open(temporary, "w") as file:
            # First in the file, so that it can be read without the rest.
            file.write(_HEAD + json.dumps(dataclasses.asdict(info)))
            file.write(f', "categories": {json.dumps([dataclasses.asdict(CATEGORY)])}')
            for name, entries in (("images", images), ("annotations", numbered)):
                file.write(",\n" + _SECTION.format(name))
                for number, entry in enumerate(entries):
                    file.write((",\n" if number else "\n") + json.dumps(entry))
                file.write("\n]")
            file.write("}\n")
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def image_entries(records: Iterable[ImageRecord]) -> list[dict]:
    """COCO's entries of images, as `write` wants them."""
    keys = ("id", "file_name", "height", "width")
    return [{key: getattr(record, key) for key in keys} for record in records]


def embedding_as_list(embedding: np.ndarray) -> list[float]:
    """(E,) floats as numbers for json, in the nine digits that bring every float32 back."""
    return [float(f"{value:.9g}") for value in np.asarray(embedding, np.float32).tolist()]


def read_info(path: str | Path) -> LabelInfo | None:
    """What a label file says of itself; None if it says nothing, as the published ones do.

    Raises:
      InputError: the file cannot be read or is no json.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            head = file.read(_LONGEST_INFO)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot read the labels ({reason}); check the path") from None
    info = None
    if head.startswith(_HEAD):
        try:
            info, _ = json.JSONDecoder().raw_decode(head, len(_HEAD))
        except json.JSONDecodeError:
            pass  # cut off, or damaged: the whole file will tell
    if info is None:
        info = read_document(str(path)).get("info")
    return _parse_info(info)


def read_entries(path: str | Path, section: str) -> Iterator[dict]:
    """The entries of a section of a label file, one in memory at a time.

    Args:
      path: of the json, laid out as `write` does it: an entry a line.
      section: "images" or "annotations".

    Raises:
      InputError: the file cannot be read, or is laid out otherwise.
    """
    begins, ends = _SECTION.format(section), False
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                if line.rstrip() == begins:
                    break
            for line in file:
                if ends := line.startswith("]"):
                    break
                yield json.loads(line.rstrip().removesuffix(","))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f'{path}: cannot read its "{section}" ({reason}); remove the file to have it made again'
        ) from None
    if not ends:
        raise InputError(
            f'{path}: its "{section}" have no end, or are not an entry a line as when it was '
            "written; remove the file to have it made again"
        )


def check_fingerprint(
    path: str | Path,
    expected: str,
    made_with: str,
    settings: Mapping[str, object] | None = None,
) -> None:
    """Refuses a label file that was not made by the checkpoint and settings at hand.

    Args:
      path: the label file.
      expected: the fingerprint that it should have.
      made_with: the checkpoint at hand, for the message.
      settings: at hand, to name those that differ; None names none.

    Raises:
      ForeignLabels: the fingerprint is another, or there is none.
    """
    info = read_info(path)
    if info is None:
        raise ForeignLabels(
            f"{path}: it does not say what made it (no fingerprint in its info); remove it to have "
            "it made again, or name it as labels yourself"
        )
    if info.fingerprint != expected:
        raise ForeignLabels(
            f"{path}: stale or foreign labels, made by {info.checkpoint} "
            f"(fingerprint {info.fingerprint}) and not by {made_with} as it is now, with these "
            f"settings ({expected}){_differences(info.settings, settings)}; remove the file to "
            "have it made again, or give another folder"
        )


def _differences(before: Mapping[str, object], now: Mapping[str, object] | None) -> str:
    if now is None:
        return ""
    now = json.loads(json.dumps(now))
    names = sorted(k for k in {*before, *now} if before.get(k) != now.get(k))
    return f": other {', '.join(names)}" if names else ": other weights"


def load_labels(path: str | Path, images: str | Path) -> CocoDataset:
    """The objects of a label file, or of any COCO json, as one class.

    Args:
      path: the json, with or without embeddings, the published ones included.
      images: the folder of the image files.

    Raises:
      InputError: as `load_coco`; or some objects have an embedding and others none, or of another
        length.
    """
    if not os.path.isdir(images):
        raise InputError(f"{images}: no such image folder; give the folder of the image files")
    document = read_document(str(path))
    if _parse_info(document.get("info")) is None:
        _mend_published(document)
    dataset = parse_document(str(path), document, images)
    records = tuple(
        dataclasses.replace(
            record,
            annotations=tuple(dataclasses.replace(a, label=0) for a in record.annotations),
        )
        for record in dataset.images
    )
    dataset = dataclasses.replace(dataset, categories=(CATEGORY,), images=records)
    embedding_size(dataset)
    return dataset


def embedding_size(dataset: CocoDataset) -> int | None:
    """E of a data set whose objects have embeddings, None if none has any.

    Raises:
      InputError: objects differ in it.
    """
    sizes = {
        None if annotation.embedding is None else annotation.embedding.size
        for record in dataset.images
        for annotation in record.annotations
    }
    if len(sizes) > 1:
        listing = ", ".join(sorted("none" if size is None else str(size) for size in sizes))
        raise InputError(
            f'{dataset.annotation_path}: its objects have embeddings ("emb") of different lengths '
            f"({listing}); write the file again"
        )
    return next(iter(sizes), None)


def without_empty_images(dataset: CocoDataset) -> tuple[CocoDataset, int]:
    """The data set without the images that have no object to learn from, and how many those are."""
    kept = tuple(
        record for record in dataset.images if any(not a.iscrowd for a in record.annotations)
    )
    return dataclasses.replace(dataset, images=kept), len(dataset.images) - len(kept)


def _parse_info(info: object) -> LabelInfo | None:
    if not isinstance(info, Mapping) or not isinstance(info.get("fingerprint"), str):
        return None
    settings = info.get("settings")
    return LabelInfo(
        fingerprint=info["fingerprint"],
        settings=settings if isinstance(settings, Mapping) else {},
        checkpoint=str(info.get("checkpoint", "")),
        description=str(info.get("description", "")),
    )


def _mend_published(document: dict) -> None:
    """What is wrong with the published mask files, see above; anything else stays."""
    annotations = document.get("annotations")
    if not isinstance(annotations, list):
        return
    for number, annotation in enumerate(annotations):
        if isinstance(annotation, dict) and "emb" in annotation:
            annotation["id"] = number
            annotation.pop("bbox", None)
