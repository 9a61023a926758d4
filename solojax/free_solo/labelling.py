"""Labels of every image of a data set, in parts that survive a stop, into one label file."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax

from solojax.data import label_file
from solojax.data.coco import CocoDataset
from solojax.errors import InputError
from solojax.free_solo.part_files import PartFiles, PartWriter
from solojax.train.sharding import gather_json
from solojax.train.shared_files import wait_for_files

_logger = logging.getLogger(__name__)

Labels = list[dict] | None
FindLabels = Callable[[CocoDataset], Iterator[tuple[int, Labels]]]


@dataclasses.dataclass(frozen=True)
class Labelled:
    """What came of labelling.

    Attributes:
      images: that could be read.
      objects: of all images together.
      without_objects: images in which none was found.
      unread: names of the files that could not be read.
      computed: images of this run, those left by an earlier one not counted.
      seconds: that this run took, compilation included.
    """

    images: int
    objects: int
    without_objects: int
    unread: tuple[str, ...]
    computed: int
    seconds: float


def image_settings(dataset: CocoDataset) -> dict[str, str]:
    """What the settings of a label file say of the images that it was made of.

    The frames of two videos may have the same names and sizes in pixels. Their files differ in
    bytes, which costs a look-up a file, by one process for all; files of as many bytes pass for the
    same.

    Where there are several processes, all call it together.
    """
    digest = dataset.file_digest if jax.process_index() == 0 else None
    return {"images": dataset.fingerprint, "image_files": gather_json(digest)[0]}


def label_images(
    dataset: CocoDataset, output: Path, info: label_file.LabelInfo, find: FindLabels
) -> Labelled | None:
    """Writes the label file of a data set, going on where an earlier run was stopped.

    Where there are several processes, all call it together, with the output on storage that they
    share; any number of devices and processes may go on.

    Args:
      dataset: the images; their objects are not looked at.
      output: the label file.
      info: what it says of itself; its fingerprint stands for all that decides the labels.
      find: takes the images that are left, as a data set, and yields for each of this process's
        its position in that set and its labels as `label_file.write` wants them, None where it
        cannot be read. Not called where nothing is left.

    Returns:
      What was found; None where the file is there already, with the same fingerprint.

    Raises:
      InputError: the file is there and was made otherwise, or parts of it were; no image can be
        read; or the processes do not share the output's storage.
    """
    start = time.monotonic()
    parts = PartFiles(output, info.fingerprint)
    first = jax.process_index() == 0
    progress = gather_json(_look_for_work(output, info, parts) if first else None)[0]
    if progress is None:
        return None
    finished = set(progress["finished"])
    if finished:
        _logger.info("%d of %d images are done", len(finished), len(dataset.images))
    left = [index for index in range(len(dataset.images)) if index not in finished]
    names = []
    if left:
        remaining = dataclasses.replace(dataset, images=tuple(dataset.images[i] for i in left))
        with PartWriter(parts, progress["begun"], jax.process_index()) as writer:
            for place, labels in find(remaining):
                writer.add(left[place], labels)
        names = writer.names
    names = [name for each in gather_json(names) for name in each]  # all have written their parts
    written = gather_json(_merge(dataset, parts, names, output, info) if first else None)[0]
    wait_for_files([output])  # that all may read what the first has written
    return Labelled(
        **written | {"unread": tuple(written["unread"])},
        computed=len(left),
        seconds=time.monotonic() - start,
    )


def _look_for_work(output: Path, info: label_file.LabelInfo, parts: PartFiles) -> dict | None:
    """How often the work was begun and which images are finished; None where all is done."""
    if output.exists():
        label_file.check_fingerprint(output, info.fingerprint, info.checkpoint, info.settings)
        parts.remove()  # what a run left that was stopped between writing the file and this
        return None
    return {"begun": parts.open(), "finished": sorted({index for index, _, _ in parts.scan()})}


def _merge(
    dataset: CocoDataset,
    parts: PartFiles,
    names: Sequence[str],
    output: Path,
    info: label_file.LabelInfo,
) -> dict:
    """Writes the label file of all parts, in the order of the data set, and removes them.

    Labels go from file to file, those of one image at a time: all of them would fill the memory.

    `names` are of the parts that this run has written, those of other processes included.
    """
    places, objects = {}, {}  # where an image's labels lie, and how many they are, None: unread
    for index, place, labels in parts.scan(names):
        places[index], objects[index] = place, None if labels is None else len(labels)
    images = [image for index, image in enumerate(dataset.images) if objects[index] is not None]
    if not images:
        raise InputError(
            f"none of the {len(dataset.images)} images of {dataset.annotation_path} can be read, "
            f"{dataset.images[0].file_name} the first; give files that are whole images"
        )
    label_file.write(
        output,
        images=label_file.image_entries(images),
        annotations=(
            annotation
            for index in range(len(dataset.images))
            if objects[index]
            for annotation in parts.load(places[index])
        ),
        info=info,
    )
    parts.remove()
    return {
        "images": len(images),
        "objects": sum(filter(None, objects.values())),
        "without_objects": sum(count == 0 for count in objects.values()),
        "unread": [i.file_name for n, i in enumerate(dataset.images) if objects[n] is None],
    }
