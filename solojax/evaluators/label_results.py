"""Label files as results: masks that Free Mask or a first training found, to be scored."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from solojax.errors import InputError
from solojax.evaluators.entries import field, place, read_json
from solojax.evaluators.results import load_results

_logger = logging.getLogger(__name__)


def load_predictions(path: str | Path, annotations: str | Path) -> list[dict]:
    """Reads COCO results, or the scored masks of a label file as results.

    A label file is a COCO json whose annotations have scores, the published mask files included.
    Its images are found among those of the annotations by file name, whatever ids they have; those
    that are not there are left out, and the log says how many. Boxes come from the masks, since
    published files write corners in their place.

    Args:
      path: the json: a list of results, or a label file.
      annotations: the COCO json to be scored against.

    Raises:
      InputError: the file cannot be read or is neither; an object has no score; or no image of a
        label file is among the annotations.
    """
    document = read_json(path, "results")
    if not isinstance(document, Mapping) or "annotations" not in document:
        return load_results(path, document)
    known = _ids_by_name(read_json(annotations, "annotations"), annotations)
    names = {image_id: name for name, image_id in _ids_by_name(document, path).items()}
    ids = {image_id: known[name] for image_id, name in names.items() if name in known}
    if not ids:
        raise InputError(
            f"{path}: none of its {len(names)} images is in {annotations} by file name; score it "
            "against the labels of its images, or make it with --annotations"
        )
    for images, left_out, other in (
        (names.values(), len(names) - len(ids), f"are not in {annotations}: left out"),
        (known, len(known) - len(ids), f"of {annotations} have no masks in it: all missed"),
    ):
        if left_out:
            _logger.warning("%s: %d of %d images %s", path, left_out, len(images), other)
    if not isinstance(document["annotations"], list):
        raise InputError(f'{path}: its "annotations" are no list; write the file again')
    results = []
    for index, entry in enumerate(document["annotations"]):
        try:
            image_id, score = field(entry, "image_id"), field(entry, "score")
            if image_id not in names:
                raise ValueError(f'no image {image_id!r} under "images"; add it')
        except ValueError as problem:
            raise InputError(f"{path}: {place('annotation', index, entry)}: {problem}") from None
        if image_id in ids:
            segmentation = {k: entry[k] for k in ("segmentation",) if k in entry}
            results.append(
                {"image_id": ids[image_id], "category_id": 1, "score": score, **segmentation}
            )
    return results


def _ids_by_name(document: object, path: str | Path) -> dict[str, int]:
    images = document.get("images") if isinstance(document, Mapping) else None
    ids: dict[str, int] = {}
    try:
        for image in images:
            name, image_id = field(image, "file_name"), field(image, "id")
            if ids.setdefault(name, image_id) != image_id:
                raise ValueError(f"{name!r} is there as {ids[name]} and as {image_id}")
    except (TypeError, ValueError) as problem:
        raise InputError(
            f'{path}: its "images" need "file_name" and "id" for masks to be matched ({problem})'
        ) from None
    return ids
