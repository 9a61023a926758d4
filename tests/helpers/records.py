"""A small data set with everything that records have to bring through, and its records."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
from helpers.tiny_run import edit_json, write_data

from solojax.conversion.preparation import prepare_instances

# Thirds have no end in binary: a box or polygon cut to 32 bits would show.
THIRD = 1 / 3


@dataclasses.dataclass(frozen=True)
class Pair:
    """The same data as json (`data/train.json`, `data/images`) and as records."""

    data: Path
    records: Path

    @property
    def json(self) -> Path:
        """The training annotations."""
        return self.data / "train.json"

    @property
    def images(self) -> Path:
        """The image folder."""
        return self.data / "images"


def write_source(root: Path) -> Path:
    """`tiny_run.write_data` with odd objects added to its training images."""
    write_data(root)
    edit_json(root / "train.json", _add_odd_objects)
    return root


def write_pair(root: Path, num_shards: int = 3) -> Pair:
    """Both splits of `write_source` and their records."""
    pair = Pair(write_source(root / "data"), root / "records")
    for split in ("train", "val"):
        prepare_instances(
            "coco",
            pair.data / f"{split}.json",
            pair.images,
            str(pair.records),
            split,
            num_shards=num_shards,
        )
    return pair


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def write_lvis(root: Path) -> Path:
    """The json of `write_source` in LVIS' form, its images in folders as in its URLs."""
    write_source(root)
    document = json.loads((root / "train.json").read_text())
    for number, image in enumerate(document["images"]):
        name = image.pop("file_name")
        folder = root / "lvis" / ("train2017" if number % 2 else "val2017")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((root / "images" / name).read_bytes())
        image["coco_url"] = f"http://images.example.org/{folder.name}/{name}"
        image["neg_category_ids"] = [3, 40] if number else []
        image["not_exhaustive_category_ids"] = [7] * number
    for annotation in document["annotations"]:
        annotation.pop("iscrowd", None)
    (root / "lvis.json").write_text(json.dumps(document))
    return root


def write_class_folders(root: Path, names: tuple[str, ...]) -> Path:
    """Class folders with one, two, ... images of 10 + n x 20 pixels, JPEG and PNG in turns."""
    for label, name in enumerate(names):
        folder = root / name / ("deep" if label == 1 else "")
        folder.mkdir(parents=True)
        for number in range(label + 1):
            image = np.full((10 + number, 20, 3), 40 * label, np.uint8)
            suffix = ("JPEG", "png")[number % 2]
            cv2.imwrite(str(folder / f"{name}_{number}.{suffix}"), image)
    return root


def _add_odd_objects(document: dict) -> None:
    first, second, *_, last = (image["id"] for image in document["images"])
    shared = {"category_id": 11, "iscrowd": 0}
    document["annotations"] += [
        # Two polygons, a box of thirds, an area that is not the mask's.
        shared
        | {
            "id": 900,
            "image_id": first,
            "segmentation": [
                [1.5, 2 + THIRD, 30.1, 2.7, 29 + THIRD, 40.2, 3.3, 38.9],
                [40.5, 41.25, 50, 41, 50 + THIRD, 55.5],
            ],
            "bbox": [1.5, 2 + THIRD, 48 + 2 * THIRD, 53.1],
            "area": 1000 + THIRD,
        },
        # Neither box nor area nor iscrowd.
        {
            "id": 901,
            "image_id": second,
            "category_id": 3,
            "segmentation": [[10.2, 8.8, 30.7, 12.1, 20.9, 33.3]],
        },
        # A crowd, as run lengths that are not compressed.
        shared
        | {
            "id": 902,
            "image_id": second,
            "iscrowd": 1,
            "segmentation": {"size": [64, 64], "counts": [64, 128, 64 * 61]},
            "bbox": [1, 0, 2, 64],
        },
    ]
    # An image without objects.
    document["annotations"] = [a for a in document["annotations"] if a["image_id"] != last]
