"""Predictions for image files: COCO results and overlays on disk."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import cv2
from tqdm import tqdm

from solojax.data.image_io import read_image
from solojax.errors import BrokenImage, InputError
from solojax.inference import Segmenter
from solojax.visualize.overlays import overlay_results

_logger = logging.getLogger(__name__)


def predict_files(
    model: Segmenter, paths: Sequence[Path], output: Path, score_threshold: float
) -> tuple[int, list[str]]:
    """Writes `output/predictions.json` and `output/overlays/NAME.png`.

    Args:
      model: finds the objects.
      paths: image files.
      output: an existing folder.
      score_threshold: least score of what the overlays show.

    Returns:
      The number of results, and the files that could not be read.

    Raises:
      InputError: no file at all could be read.
    """
    results, skipped = [], []
    overlays = output / "overlays"
    overlays.mkdir(parents=True, exist_ok=True)
    names = _unique_names(paths)
    for path in tqdm(paths, desc="predict", unit="image"):
        try:
            image = read_image(path)
        except BrokenImage as error:
            _logger.warning("%s", error)
            skipped.append(str(path))
            continue
        found = [_named(result, path) for result in model.predict(image)]
        results += found
        shown = overlay_results(image, found, model.names, score_threshold)
        write_png(overlays / names[path], shown)
    if len(skipped) == len(paths):
        raise InputError(f"none of the {len(paths)} images could be read, {paths[0]} the first")
    (output / "predictions.json").write_text(json.dumps(results))
    return len(results), skipped


def write_png(path: Path, image) -> None:
    """Writes an RGB image."""
    encoded, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not encoded:
        raise InputError(f"{path}: the picture could not be encoded")
    path.write_bytes(data.tobytes())


def _named(result: dict, path: Path) -> dict:
    """A file that is in no data set has no image id: its name stands in."""
    return {"file_name": path.name} | {k: v for k, v in result.items() if k != "image_id"}


def _unique_names(paths: Sequence[Path]) -> dict[Path, str]:
    """An overlay's name per file; files of one stem keep their suffix apart (a.jpg, a.png)."""
    stems = [path.stem for path in paths]
    return {
        path: f"{path.stem}.png" if stems.count(path.stem) == 1 else f"{path.name}.png"
        for path in paths
    }
