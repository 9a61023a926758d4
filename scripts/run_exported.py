"""Finds objects with what `solojax export` wrote, without solojax.

    python run_exported.py model.jaxexport --images photo.jpg --output results.json

Needs jax (the version of the export, or a later one), numpy, opencv-python-headless, pycocotools
and flatbuffers. MODEL.json has to stand beside MODEL.jaxexport. Of several exports for different
canvases every image takes the smallest that holds it; each is compiled when it is first needed.

Results are COCO's: category_id, score, bbox (x, y, width, height) and segmentation (RLE at the
image's size), with the file's name or, where --annotations names a COCO json, the image_id of the
entry whose file_name the file's path ends in. Where the network predicts embeddings, emb has them.

OpenCV fills the missing part of a truncated JPEG with grey; `solojax predict` refuses such files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

import cv2
import jax
import numpy as np
from jax import export
from pycocotools import mask as coco_mask


def load_program(path: Path):
    """The program of a file, and the settings beside it."""
    data = path.read_bytes()
    beside = path.with_name(path.name.removesuffix(".jaxexport") + ".json")
    settings = json.loads(beside.read_text())
    if settings["program"]["sha256"] != hashlib.sha256(data).hexdigest():
        sys.exit(f"{path}: {beside.name} beside it belongs to another program; export again")
    return jax.jit(export.deserialize(bytearray(data)).call), settings


def resized_size(image: np.ndarray, settings: dict) -> tuple[int, int]:
    """(height, width) with the short side at short_side, or less where the long one exceeds."""
    height, width = image.shape[:2]
    scale = settings["short_side"] / min(height, width)
    if max(height, width) * scale > settings["long_side"]:
        scale = settings["long_side"] / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def detect(image: np.ndarray, program, settings: dict) -> list[dict]:
    """COCO results of an image (H0, W0, 3) uint8 RGB, score-descending, empty masks left out."""
    size = height, width = resized_size(image, settings)
    rows = 1 if settings["batch"] == "symbolic" else settings["batch"]
    canvas = np.zeros((rows, *settings["canvas"], 3), np.uint8)
    sizes = np.zeros((rows, 2), np.int32)  # a size of 0 marks a row without an image
    canvas[0, :height, :width] = cv2.resize(image, (width, height))
    sizes[0] = size
    found = {name: array[0] for name, array in jax.device_get(program(canvas, sizes)).items()}
    results = []
    for index in np.flatnonzero(found["valid"]):
        mask = found["masks"][index]
        # Probabilities are enlarged to the canvas, cropped to the image, resized to the file's
        # size, and compared with the threshold only then; one axis after the other.
        for valid, original in zip(size, image.shape[:2], strict=True):
            enlarged = resize_rows(mask, len(mask) * settings["mask_stride"])
            mask = resize_rows(enlarged[:valid], original).T
        binary = np.asfortranarray(mask > settings["mask_threshold"], np.uint8)
        if not binary.any():
            continue
        rle = coco_mask.encode(binary)
        category = settings["categories"][found["classes"][index]]
        results.append(
            {
                "category_id": category["id"],
                "score": float(found["scores"][index]),
                "bbox": [float(side) for side in coco_mask.toBbox(rle)],
                "segmentation": {"size": list(binary.shape), "counts": rle["counts"].decode()},
            }
        )
        if "embeddings" in found:  # nine digits are all that a float32 has
            numbers = found["embeddings"][index].tolist()
            results[-1]["emb"] = [float(f"{number:.9g}") for number in numbers]
    return results


def resize_rows(x: np.ndarray, size: int) -> np.ndarray:
    """(n, m) float32 to (size, m): bilinear, half-pixel centres, edges clamped."""
    scale = np.float64(np.float32(len(x)) / np.float32(size))
    source = np.maximum((scale * (np.arange(size) + 0.5) - 0.5).astype(np.float32), 0)
    low = np.minimum(source.astype(np.int32), len(x) - 1)
    high = np.minimum(low + 1, len(x) - 1)
    weight = (source - low.astype(np.float32))[:, None]
    return x[low] * (1 - weight) + x[high] * weight


def image_ids(annotations: Path, paths: list[Path]) -> dict[Path, int]:
    """The id of every file in a COCO json, by the longest file_name that its path ends in."""
    listed = {}
    for index, image in enumerate(json.loads(annotations.read_text())["images"]):
        if "file_name" not in image or "id" not in image:
            sys.exit(f"{annotations}: images[{index}] has no file_name or no id; give it both")
        parts = Path(image["file_name"]).parts
        if listed.setdefault(parts, image["id"]) != image["id"]:
            sys.exit(f"{annotations}: two images are {image['file_name']!r}; give one of them")
    found = {}
    for path in paths:
        parts = path.absolute().parts
        endings = (parts[start:] for start in range(len(parts)))
        found[path] = next((listed[each] for each in endings if each in listed), None)
        if found[path] is None:
            sys.exit(f"{path}: no image of {annotations} has this file_name; leave one of them out")
    return found


def main() -> None:
    """Reads the command line, runs the images, writes the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", type=Path, nargs="+", help="files of `solojax export`")
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="image files")
    parser.add_argument("--output", type=Path, required=True, help="json file for the results")
    parser.add_argument("--annotations", type=Path, help="COCO json that has the images' ids")
    args = parser.parse_args()
    ids = image_ids(args.annotations, args.images) if args.annotations else {}
    programs = sorted(map(load_program, args.models), key=lambda each: np.prod(each[1]["canvas"]))
    results = []
    for path in args.images:
        image = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if image is None:
            sys.exit(f"{path}: not an image that OpenCV can read")
        name = {"image_id": ids[path]} if args.annotations else {"file_name": path.name}
        fitting = [
            each
            for each in programs
            if np.all(np.less_equal(resized_size(image, each[1]), each[1]["canvas"]))
        ]
        if not fitting:
            height, width = resized_size(image, programs[0][1])
            sys.exit(f"{path}: {height}x{width} once resized, which fits no canvas; export one")
        rgb = np.ascontiguousarray(image[..., ::-1])  # OpenCV reads BGR
        results += [name | result for result in detect(rgb, *fitting[0])]
    args.output.write_text(json.dumps(results))
    print(f"{len(results)} objects in {len(args.images)} images: {args.output}")


if __name__ == "__main__":
    main()
