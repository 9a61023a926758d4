"""The fields of an example in records: how TFDS stores them, and objects in and out of them.

Imported without TensorFlow; TFDS itself takes seconds to import, so nothing imports this module
before records are written or read.
"""

from __future__ import annotations

import json
import math

import numpy as np
import tensorflow_datasets as tfds
from pycocotools import mask as mask_utils

from solojax.data.instances import Annotation, ImageRecord
from solojax.data.segmentation_json import Polygons, RunLengths, parse_coordinates

NAME = "records"
VERSION = "1.0.0"
# An image comes back as the bytes of its file.
DECODERS = {"image": tfds.decode.SkipDecoding()}


def features_of(kind: str) -> tfds.features.FeaturesDict:
    """The fields of an example of a kind (coco | lvis | folder | imagenet).

    tf.train.Example, in which TFDS stores an example, keeps floats as 32 bits. Boxes and areas are
    bytes of float64 instead, so that training from records gives the numbers of the json.
    """
    features = tfds.features
    fields = {
        "image": features.Image(doc="the image file's bytes"),
        "file_name": features.Text(),
        "height": np.int64,
        "width": np.int64,
    }
    if kind in ("folder", "imagenet"):
        fields["label"] = features.Scalar(np.int64, doc="position among the classes; -1: no class")
        return features.FeaturesDict(fields)
    fields["image_id"] = np.int64
    fields["objects"] = features.Sequence(
        {
            "id": np.int64,
            "label": features.Scalar(np.int64, doc="position among the classes"),
            "category_id": np.int64,
            "iscrowd": np.bool_,
            "counts": features.Text(doc="the mask as COCO's compressed run lengths"),
            "polygons": features.Text(doc="the source's polygons as json; empty: run lengths"),
        }
    )
    doc = "xywh in pixels; NaN where the source has none"
    fields["bbox"] = features.Tensor(shape=(None, 4), dtype=np.float64, encoding="bytes", doc=doc)
    doc = "as the source says, in pixels; NaN where it says nothing"
    fields["area"] = features.Tensor(shape=(None,), dtype=np.float64, encoding="bytes", doc=doc)
    if kind == "lvis":
        fields["neg_category_ids"] = features.Sequence(np.int64)
        fields["not_exhaustive_category_ids"] = features.Sequence(np.int64)
    return features.FeaturesDict(fields)


def labelled_example(
    image: bytes, file_name: str, size: tuple[int, int], label: int
) -> dict[str, object]:
    """An example of an image with a class, or with none (label -1)."""
    height, width = size
    return {
        "image": image,
        "file_name": file_name,
        "height": height,
        "width": width,
        "label": label,
    }


def instance_example(
    image: bytes, record: ImageRecord, category_ids: tuple[int, ...], kind: str
) -> dict[str, object]:
    """An example of an image with its objects."""
    objects = record.annotations
    boxes = [a.bbox_xywh or (math.nan,) * 4 for a in objects]
    areas = [math.nan if a.area is None else a.area for a in objects]
    example = {
        "image": image,
        "image_id": record.id,
        "file_name": record.file_name,
        "height": record.height,
        "width": record.width,
        "objects": [_encode_object(a, record, category_ids) for a in objects],
        "bbox": np.asarray(boxes, np.float64).reshape(-1, 4),
        "area": np.asarray(areas, np.float64),
    }
    if kind == "lvis":
        example["neg_category_ids"] = list(record.neg_category_ids)
        example["not_exhaustive_category_ids"] = list(record.not_exhaustive_category_ids)
    return example


def record_of(example: dict) -> ImageRecord:
    """The entry that `instance_example` was given, bit for bit."""
    height, width = int(example["height"]), int(example["width"])
    objects = example["objects"]
    annotations = tuple(
        Annotation(
            id=int(objects["id"][number]),
            label=int(objects["label"][number]),
            bbox_xywh=None if np.isnan(box[0]) else tuple(box.tolist()),
            segmentation=_decode_segmentation(
                objects["polygons"][number], objects["counts"][number], height, width
            ),
            iscrowd=bool(objects["iscrowd"][number]),
            area=None if np.isnan(area) else float(area),
        )
        for number, (box, area) in enumerate(zip(example["bbox"], example["area"], strict=True))
    )
    lists = ("neg_category_ids", "not_exhaustive_category_ids")
    return ImageRecord(
        int(example["image_id"]),
        example["file_name"].decode(),
        height,
        width,
        annotations,
        **{key: tuple(map(int, example.get(key, ()))) for key in lists},
    )


def _encode_object(
    annotation: Annotation, record: ImageRecord, category_ids: tuple[int, ...]
) -> dict[str, object]:
    return {
        "id": annotation.id,
        "label": annotation.label,
        "category_id": category_ids[annotation.label],
        "iscrowd": annotation.iscrowd,
        "counts": _run_lengths(annotation.segmentation, record.height, record.width),
        "polygons": _polygon_text(annotation.segmentation),
    }


def _run_lengths(segmentation: Polygons | RunLengths, height: int, width: int) -> bytes:
    """The mask at the image's size, drawn as evaluation draws it."""
    if not isinstance(segmentation, tuple):
        return segmentation["counts"]
    return mask_utils.merge(mask_utils.frPyObjects(list(segmentation), height, width))["counts"]


def _polygon_text(segmentation: Polygons | RunLengths) -> str:
    """Polygons as json, which brings every float64 back exactly.

    They are kept beside the run lengths because training scales polygons before it draws them:
    a mask drawn at the image's size and then resized differs from that along its edge.
    """
    if not isinstance(segmentation, tuple):
        return ""
    return json.dumps([polygon.tolist() for polygon in segmentation], separators=(",", ":"))


def _decode_segmentation(
    polygons: bytes, counts: bytes, height: int, width: int
) -> Polygons | RunLengths:
    if polygons:
        return tuple(parse_coordinates(polygon) for polygon in json.loads(polygons))
    return {"size": [height, width], "counts": counts}
