"""A COCO-format data set of overlapping textured shapes on cluttered backgrounds.

It is written to disk once and read like any other COCO data set, so that a first run takes the
very path of a user's own data.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from solojax.data.synthetic_scene import Scene, draw_scene
from solojax.data.synthetic_shapes import CLASS_NAMES
from solojax.errors import InputError

CATEGORY_IDS = (2, 5, 11, 17, 40)
"""The json ids of `CLASS_NAMES`: neither contiguous nor from 1, as the ids of COCO itself."""

DEFAULT_IMAGE_SIZES = ((160, 160),)
MIN_IMAGE_SIDE = 96
DRAWING_VERSION = 1  # raised whenever the same arguments give other pictures
STATUS_FILE = "synthetic.json"

_SPLITS = ("train", "val")
_JPEG_QUALITY = 95


def write_synthetic_dataset(
    directory: str | os.PathLike[str],
    *,
    seed: int,
    num_train: int,
    num_val: int,
    image_sizes: Sequence[tuple[int, int]] = DEFAULT_IMAGE_SIZES,
) -> None:
    """Writes `directory/{train,val}/NNNNNN.jpg` and `directory/{train,val}.json`.

    The annotations are modal: the visible pixels of every object as compressed RLE. Each carries
    `full_area` besides COCO's own keys, the pixels that the object has when nothing covers it.
    Image i of a split depends on the seed, its split, i and the sizes alone, so a larger data set
    begins with the smaller one.

    A directory that holds the same data set already is left as it is; a half-written one is written
    anew. Several processes may write the same data set at once: each file appears whole and all
    processes write the same bytes.

    Args:
      directory: made if it is absent.
      seed: not negative.
      num_train: images of the train split, at least 1.
      num_val: images of the val split, at least 1.
      image_sizes: (height, width) pairs, at least 96 pixels a side, taken by the images in turn.

    Raises:
      InputError: for arguments out of range, or a directory that holds anything else, which this
        function never deletes.
    """
    directory = Path(directory)
    _check_counts(seed, num_train, num_val)
    sizes = _checked_sizes(image_sizes)
    arguments = {
        "drawing_version": DRAWING_VERSION,
        "seed": seed,
        "num_train": num_train,
        "num_val": num_val,
        "image_sizes": sizes,
    }
    if _is_complete(directory, arguments):
        return
    _clear_leftovers(directory, arguments)
    directory.mkdir(parents=True, exist_ok=True)
    _write_json(directory / STATUS_FILE, {"complete": False, **arguments})
    for split, count in zip(_SPLITS, (num_train, num_val), strict=True):
        _write_split(directory, split, count, seed, sizes)
    _write_json(directory / STATUS_FILE, {"complete": True, **arguments})


def _check_counts(seed: int, num_train: int, num_val: int) -> None:
    if seed < 0:
        raise InputError(f"synthetic data: seed is {seed}; give 0 or more")
    for name, count in (("num_train", num_train), ("num_val", num_val)):
        if count < 1:
            raise InputError(f"synthetic data: {name} is {count}; give at least 1")


def _checked_sizes(image_sizes: Sequence[tuple[int, int]]) -> list[list[int]]:
    try:
        sizes = np.array(image_sizes)
    except ValueError:  # rows of different lengths
        sizes = np.array([])
    is_table = sizes.ndim == 2 and sizes.shape[1] == 2 and sizes.dtype.kind == "i"
    if not is_table or sizes.min() < MIN_IMAGE_SIDE:
        raise InputError(
            f"synthetic data: image_sizes is {image_sizes}; give (height, width) pairs of at least "
            f"{MIN_IMAGE_SIDE} pixels a side"
        )
    return sizes.tolist()


def _is_complete(directory: Path, arguments: dict) -> bool:
    """Whether the directory holds exactly this data set.

    Raises InputError where it holds something that is not ours to replace.
    """
    status = _read_status(directory)
    if status is None or not status.get("complete"):
        return False
    held = {key: value for key, value in status.items() if key != "complete"}
    if held != arguments:
        different = ", ".join(k for k in arguments if held.get(k) != arguments[k])
        raise InputError(
            f"{directory} holds a synthetic data set with other settings ({different}); "
            "delete it or name another directory"
        )
    return all(
        (directory / f"{split}.json").is_file()
        and len(list((directory / split).glob("*.jpg"))) == arguments[f"num_{split}"]
        for split in _SPLITS
    )


def _read_status(directory: Path) -> dict | None:
    """What the status file says, None for an absent or empty directory."""
    if not directory.exists():
        return None
    if not directory.is_dir():
        raise InputError(f"{directory} is a file; name a directory for the synthetic data set")
    path = directory / STATUS_FILE
    try:
        status = json.loads(path.read_text())
    except FileNotFoundError:
        if any(not _is_temporary(entry) for entry in directory.iterdir()):
            raise InputError(
                f"{directory} holds files but no synthetic data set ({STATUS_FILE} is absent); "
                "name an empty directory"
            ) from None
        return None
    except ValueError:
        status = None
    if not isinstance(status, dict):
        raise InputError(f"{path} is no status file; delete the directory or name another")
    return status


def _clear_leftovers(directory: Path, arguments: dict) -> None:
    """Removes what an unfinished run with other arguments left behind.

    With the same arguments every file is about to be replaced by the same bytes, and another
    process may be writing it at this moment.
    """
    status = _read_status(directory)
    if status is None or all(status.get(key) == value for key, value in arguments.items()):
        return
    for split in _SPLITS:
        shutil.rmtree(directory / split, ignore_errors=True)
        (directory / f"{split}.json").unlink(missing_ok=True)


def _write_split(
    directory: Path, split: str, count: int, seed: int, sizes: list[list[int]]
) -> None:
    (directory / split).mkdir(exist_ok=True)
    images, annotations = [], []
    for index in range(count):
        rng = np.random.default_rng([seed, _SPLITS.index(split), index])
        height, width = sizes[index % len(sizes)]
        scene = draw_scene(rng, height, width)
        image_id = index + 1
        file_name = f"{image_id:06d}.jpg"
        _write_jpeg(directory / split / file_name, scene.image)
        images.append(
            {"id": image_id, "file_name": file_name, "height": height, "width": width, "license": 1}
        )
        annotations.extend(_annotations(scene, image_id, first_id=len(annotations) + 1))
    document = {
        "info": {
            "description": f"Synthetic shapes, {split}, seed {seed}",
            "version": str(DRAWING_VERSION),
        },
        "licenses": [{"id": 1, "name": "Generated, free of rights", "url": ""}],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": category_id, "name": name, "supercategory": "shape"}
            for category_id, name in zip(CATEGORY_IDS, CLASS_NAMES, strict=True)
        ],
    }
    _write_json(directory / f"{split}.json", document)


def _annotations(scene: Scene, image_id: int, first_id: int) -> list[dict]:
    annotations = []
    for number, scene_object in enumerate(scene.objects):
        rle = coco_mask.encode(np.asfortranarray(scene_object.visible, np.uint8))
        annotations.append(
            {
                "id": first_id + number,
                "image_id": image_id,
                "category_id": CATEGORY_IDS[scene_object.label],
                "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode()},
                "area": int(coco_mask.area(rle)),
                "bbox": coco_mask.toBbox(rle).tolist(),
                "iscrowd": 0,
                "full_area": scene_object.full_area,
            }
        )
    return annotations


def _write_jpeg(path: Path, image: np.ndarray) -> None:
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    done, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not done:
        raise RuntimeError(f"OpenCV cannot encode {path}")
    _replace_file(path, encoded.tobytes())


def _write_json(path: Path, document: dict) -> None:
    _replace_file(path, json.dumps(document).encode())


def _replace_file(path: Path, content: bytes) -> None:
    """Writes a file so that it is either absent, the old one or whole, whenever we are killed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".tmp")
