"""What the last round finds: how much that is, and pictures of what is likely.

A folder of pictures says in `drawn.json` which predictions it shows and from which score on. Until
it has all of them it is called FOLDER.tmp: drawing that was stopped goes on there.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from solojax.data import label_file
from solojax.data.coco import CocoDataset
from solojax.data.image_io import read_image
from solojax.errors import BrokenImage
from solojax.inference.prediction import file_names, picture_names, write_png
from solojax.train.progress import progress_bar
from solojax.visualize.overlays import overlay_results

_logger = logging.getLogger(__name__)

# Of more images than these only so many are drawn, evenly spread. A picture takes about a second
# and a megabyte, so that those of all of COCO's would take days and fill a disk.
MAX_PICTURES = 1000

_OWNER = "drawn.json"
_THREADS = 4  # each holds the masks of one image, at its full size


@dataclasses.dataclass(frozen=True)
class FoundSummary:
    """How much a segmenter finds.

    Attributes:
      images: that were looked at.
      objects: of all images together and any score.
      likely: those of them with a score from `score_threshold` on.
      score_threshold: least score of what pictures show.
    """

    images: int
    objects: int
    likely: int
    score_threshold: float

    @property
    def pictures(self) -> int:
        """How many of the images are drawn."""
        return min(self.images, MAX_PICTURES)


def show_found(
    dataset: CocoDataset,
    predictions: Path,
    folder: Path,
    score_threshold: float,
    *,
    draws: bool = True,
) -> FoundSummary:
    """Counts what predictions hold and draws them, unless `folder` shows just that already.

    Args:
      dataset: the images.
      predictions: a label file of them.
      folder: for the pictures; one that shows anything else is removed.
      score_threshold: least score of what they show.
      draws: False on all processes but the first, which then only count.

    Raises:
      InputError: the predictions cannot be read.
    """
    info = label_file.read_info(predictions)
    owner = {
        "predictions": info and info.fingerprint,
        "score_threshold": score_threshold,
        "pictures": MAX_PICTURES,
    }
    draws = draws and _owner_of(folder) != owner
    summary, shown = _read(predictions, score_threshold, MAX_PICTURES if draws else 0)
    _logger.info(
        "%s: %d objects in %d images, %d of them with a score from %g on",
        predictions,
        summary.objects,
        summary.images,
        summary.likely,
        score_threshold,
    )
    if draws:
        if len(shown) < summary.images:
            _logger.info(
                "%s: pictures of %d of the %d images, evenly spread; solojax predict draws any",
                folder,
                len(shown),
                summary.images,
            )
        _draw_all(dataset, shown, folder, owner)
    return summary


def remove_pictures(folder: Path) -> None:
    """Removes a folder of pictures, if it is there.

    Its `drawn.json` goes first: a folder that is removed in part must not pass for a whole one.
    """
    (folder / _OWNER).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)


def _read(
    predictions: Path, score_threshold: float, pictures: int
) -> tuple[FoundSummary, dict[int, list[dict]]]:
    """The numbers, and what is likely in the images to draw, by their ids.

    Of all the rest, and of the embeddings, nothing stays in memory.
    """
    image_ids = [image["id"] for image in label_file.read_entries(predictions, "images")]
    shown: dict[int, list[dict]] = {image_id: [] for image_id in _spread(image_ids, pictures)}
    objects = likely = 0
    for each in label_file.read_entries(predictions, "annotations"):
        objects += 1
        if each["score"] < score_threshold:
            continue
        likely += 1
        if each["image_id"] in shown:
            each.pop("emb", None)
            shown[each["image_id"]].append(each)
    return FoundSummary(len(image_ids), objects, likely, score_threshold), shown


def _spread(items: Sequence[int], most: int) -> list[int]:
    """All items or, of more than `most`, as many of them at even distances."""
    count = min(len(items), most)
    return [items[number * len(items) // count] for number in range(count)]


def _draw_all(
    dataset: CocoDataset, shown: Mapping[int, list[dict]], folder: Path, owner: Mapping
) -> None:
    """Draws the images of `shown`; the folder is there only when all are."""
    remove_pictures(folder)
    unfinished = folder.with_name(f"{folder.name}.tmp")
    if _owner_of(unfinished) != owner:
        remove_pictures(unfinished)
        unfinished.mkdir(parents=True)
        (unfinished / _OWNER).write_text(json.dumps(owner))
    paths = {image.id: Path(dataset.image_path(image)) for image in dataset.images}
    # Those of all images, so that it is told apart of which a picture is.
    names = picture_names(file_names(list(paths.values())))
    places = {image_id: unfinished / names[paths[image_id]] for image_id in shown}
    left = [image_id for image_id, place in places.items() if not place.exists()]
    if len(left) < len(shown):
        _logger.info("%d of %d pictures are drawn", len(shown) - len(left), len(shown))

    def draw(image_id: int) -> None:
        _draw(paths[image_id], shown[image_id], places[image_id])

    pool = ThreadPoolExecutor(_THREADS)
    try:
        with progress_bar(len(left), description="draw", unit="image") as bar:
            for _ in pool.map(draw, left):
                bar.update()
    finally:
        pool.shutdown(cancel_futures=True)  # else a stop waited for all pictures
    unfinished.rename(folder)


def _draw(path: Path, found: list[dict], output: Path) -> None:
    """Writes the picture of one image with all of `found`; it is whole or not there."""
    try:
        image = read_image(path)
    except BrokenImage as error:
        _logger.warning("image left out: %s", error)
        return
    temporary = output.with_name(f"{output.name}.tmp")
    names = {label_file.CATEGORY.id: label_file.CATEGORY.name}
    write_png(temporary, overlay_results(image, found, names, score_threshold=0.0))
    os.replace(temporary, output)


def _owner_of(folder: Path) -> dict | None:
    """What a folder of pictures says that it shows; None where it does not say, or is not there."""
    try:
        return json.loads((folder / _OWNER).read_text())
    except (OSError, ValueError):
        return None
