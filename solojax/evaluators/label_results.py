"""Results whose images have other ids or names alone: label files, and what `predict` writes."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from solojax.coco_entries import image_file_name
from solojax.errors import InputError
from solojax.evaluators.entries import field, place, read_json
from solojax.evaluators.results import load_results

_logger = logging.getLogger(__name__)


def load_predictions(
    path: str | Path, annotations: str | Path, *, class_agnostic: bool
) -> list[dict]:
    """Reads COCO results, or the scored masks of a label file as results.

    Results with "file_name" in the place of "image_id", as `solojax predict` writes them, get the
    ids of the annotations' images of that name; a name without folders will do where but one image
    has it.

    A label file is a COCO json whose annotations have scores, the published mask files included.
    Its images are found among those of the annotations by file name, whatever ids they have; those
    that are not there are left out, and the log says how many. Boxes come from the masks, since
    published files write corners in their place.

    Args:
      path: the json: a list of results, or a label file.
      annotations: the COCO json to be scored against.
      class_agnostic: whether classes are to be ignored; those of a label file have to be.

    Raises:
      InputError: the file cannot be read or is neither; the annotations have no image of a result's
        name, or several; a label file is to be scored by class; an object of it has no score; or
        none of its images is among the annotations.
    """
    document = read_json(path, "results")
    if not isinstance(document, Mapping) or "annotations" not in document:
        return _with_image_ids(load_results(path, document), path, annotations)
    if not class_agnostic:
        raise InputError(
            f"{path}: a label file, which has one class of its own: add --class-agnostic"
        )
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


def _with_image_ids(results: list, path: str | Path, annotations: str | Path) -> list:
    """The results, those that name a file and no image with the image's id."""
    unnumbered = [
        isinstance(entry, Mapping) and "file_name" in entry and "image_id" not in entry
        for entry in results
    ]
    if not any(unnumbered):
        return results
    known = _ids_by_name(read_json(annotations, "annotations"), annotations)
    by_end = _names_by_end(known)
    numbered = []
    for index, (entry, lacks_id) in enumerate(zip(results, unnumbered, strict=True)):
        if lacks_id:
            try:
                name = _full_name(image_file_name(entry), known, by_end)
            except ValueError as problem:
                raise InputError(
                    f"{path}: {place('entry', index, entry)}: {problem}; give the images the names "
                    f"that they have in {annotations}, or the annotations of these images"
                ) from None
            entry = entry | {"image_id": known[name]}
        numbered.append(entry)
    return numbered


def _full_name(name: str, known: Mapping[str, int], by_end: Mapping[str, Sequence[str]]) -> str:
    """The annotations' name of an image; ValueError unless there is exactly one."""
    if name in known:
        return name
    names = by_end.get(name, ())
    if len(names) == 1:
        return names[0]
    if names:
        raise ValueError(f"image {name!r} may be {names[0]!r} or {names[1]!r} of the annotations")
    raise ValueError(f"image {name!r} is not among the annotations")


def _names_by_end(names: Iterable[str]) -> dict[str, list[str]]:
    """The names with folders by each of their ends: a/b/c.jpg by b/c.jpg and by c.jpg."""
    by_end = defaultdict(list)
    for name in names:
        end = name
        while "/" in end:
            end = end.partition("/")[2]
            by_end[end].append(name)
    return by_end


def _ids_by_name(document: object, path: str | Path) -> dict[str, int]:
    images = document.get("images") if isinstance(document, Mapping) else None
    ids: dict[str, int] = {}
    try:
        for image in images:
            image_id, name = field(image, "id"), image_file_name(image)
            if ids.setdefault(name, image_id) != image_id:
                raise ValueError(f"{name!r} is there as {ids[name]} and as {image_id}")
    except (TypeError, ValueError) as problem:
        raise InputError(
            f'{path}: its "images" need "file_name" and "id" for masks to be matched ({problem})'
        ) from None
    return ids
