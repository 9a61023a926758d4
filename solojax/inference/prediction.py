"""Predictions for image files: COCO results and overlays on disk."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2

from solojax.data.image_io import read_image
from solojax.errors import BrokenImage, InputError
from solojax.inference.evaluation import write_json
from solojax.inference.segmenter import Segmenter
from solojax.train.progress import progress_bar
from solojax.visualize.overlays import overlay_results

_logger = logging.getLogger(__name__)


def predict_files(
    model: Segmenter, paths: Sequence[Path], output: Path, score_threshold: float
) -> tuple[list[dict], list[str]]:
    """Writes `output/predictions.json` and `output/overlays/NAME.png`.

    Where something ends the work half-way, the results so far are written all the same.

    Args:
      model: finds the objects.
      paths: image files.
      output: an existing folder.
      score_threshold: least score of what the overlays show.

    Returns:
      The results, and the files that could not be read.

    Raises:
      InputError: no file at all could be read.
    """
    results, skipped, finished = [], [], 0
    overlays = output / "overlays"
    overlays.mkdir(parents=True, exist_ok=True)
    names = file_names(paths)
    pictures = picture_names(names)
    try:
        with progress_bar(len(paths), description="predict", unit="image") as bar:
            for path in paths:
                try:
                    image = read_image(path)
                except BrokenImage as error:
                    _logger.warning("image left out: %s", error)
                    skipped.append(str(path))
                else:
                    found = [_named(each, names[path]) for each in model.predict(image)]
                    results += found
                    shown = overlay_results(image, found, model.names, score_threshold)
                    write_png(overlays / pictures[path], shown)
                    finished += 1
                bar.update()
    finally:
        if finished:
            write_json(results, output / "predictions.json")
    if len(skipped) == len(paths):
        raise InputError(
            f"none of the {len(paths)} image files could be read, {paths[0]} the first: "
            "give files that are whole images"
        )
    return results, skipped


def file_names(paths: Sequence[Path]) -> dict[Path, str]:
    """What results call the files: their names or, where two share one, their paths.

    A path begins below the folder that all files have in common.
    """
    counts = Counter(path.name for path in paths)
    if max(counts.values(), default=1) == 1:
        return {path: path.name for path in paths}
    common = os.path.commonpath([path.absolute().parent for path in paths])
    return {path: path.absolute().relative_to(common).as_posix() for path in paths}


def write_png(path: Path, image) -> None:
    """Writes an RGB image."""
    encoded, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not encoded:
        raise InputError(f"{path}: the picture could not be encoded")
    path.write_bytes(data.tobytes())


def _named(result: dict, name: str) -> dict:
    """A file that is in no data set has no image id: its name stands in."""
    return {"file_name": name} | {k: v for k, v in result.items() if k != "image_id"}


def picture_names(names: Mapping[Path, str]) -> dict[Path, str]:
    """File names of pictures of files, by what `file_names` calls those.

    That of a/b.jpg is a_b.png, or a_b.jpg.png where there is an a/b.gif too.
    """
    flat = {path: name.replace("/", "_") for path, name in names.items()}
    stems = Counter(Path(name).stem for name in flat.values())
    pictures: dict[Path, str] = {}
    taken: set[str] = set()
    for path, name in flat.items():
        picture = Path(name).stem if stems[Path(name).stem] == 1 else name
        while picture in taken:
            picture += "_"
        taken.add(picture)
        pictures[path] = f"{picture}.png"
    return pictures
