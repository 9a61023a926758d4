"""What every data set of instances is made of, whatever it is read from."""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np

from solojax.data.segmentation_json import Polygons, RunLengths
from solojax.errors import InputError


@dataclasses.dataclass(frozen=True, slots=True)
class Category:
    """A class as the json names it."""

    id: int
    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class Annotation:
    """One object of an image.

    Attributes:
      id: of the json.
      label: contiguous class index in [0, K).
      bbox_xywh: (x, y, width, height) in pixels of the image, or None where the json has none.
      segmentation: polygons as float64 vectors, or compressed run lengths.
      iscrowd: a region of many objects, which training leaves out.
      area: in pixels as the json says, or None where it says nothing.
      supervise_mask: whether the mask branch learns from this object; the category branch does in
        either case.
      embedding: (E,) float32, what a label file says that the object looks like, or None.
    """

    id: int
    label: int
    bbox_xywh: tuple[float, float, float, float] | None
    segmentation: Polygons | RunLengths
    iscrowd: bool
    area: float | None = None
    supervise_mask: bool = True
    embedding: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image and its objects in the order of the json; sizes in pixels.

    LVIS says of an image which other classes are not in it (`neg_category_ids`) and of which not
    every object is marked (`not_exhaustive_category_ids`); elsewhere both are empty.
    """

    id: int
    file_name: str
    height: int
    width: int
    annotations: tuple[Annotation, ...]
    neg_category_ids: tuple[int, ...] = ()
    not_exhaustive_category_ids: tuple[int, ...] = ()


class InstanceDataset(abc.ABC):
    """Images with objects, by position: what rows, plans and evaluation read.

    Attributes:
      annotation_path: a COCO json of the same images, which evaluation scores against.
      categories: sorted by id; the position is the contiguous label.
      images: each with id, file_name, height and width; asking one for its annotations may read a
        file, where `num_objects` and `num_crowds` read none.
    """

    annotation_path: str
    categories: tuple[Category, ...]
    images: Sequence

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The json's category id of every contiguous label."""
        return tuple(category.id for category in self.categories)

    @property
    def category_names(self) -> tuple[str, ...]:
        """The name of every contiguous label."""
        return tuple(category.name for category in self.categories)

    @property
    def labels(self) -> dict[int, int]:
        """The contiguous label of every category id of the json."""
        return {category.id: label for label, category in enumerate(self.categories)}

    @property
    @abc.abstractmethod
    def num_objects(self) -> int:
        """Objects of all images, crowds included."""

    @property
    @abc.abstractmethod
    def num_crowds(self) -> int:
        """Crowds of all images."""

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """16 hex digits that tell what training sees: see `fingerprint_of`."""

    @property
    def counts(self) -> dict[str, int]:
        """How many there are of what the data set is made of."""
        return {
            "images": len(self.images),
            "objects": self.num_objects,
            "classes": len(self.categories),
        }

    @abc.abstractmethod
    def file_states(self) -> dict[str, str]:
        """{name: what tells its contents from others} of the files that hold the images.

        No image is read, but every file may be looked up.
        """

    @abc.abstractmethod
    def image_path(self, record) -> str:
        """Where the image is kept, for messages."""

    @abc.abstractmethod
    def read(self, index: int) -> tuple[np.ndarray, ImageRecord]:
        """The (H, W, 3) uint8 RGB pixels and the entry of an image.

        Raises:
          BrokenImage: the image cannot be decoded.
        """

    @abc.abstractmethod
    def read_image(self, index: int) -> np.ndarray:
        """The pixels alone, as `read`."""

    @abc.abstractmethod
    def first(self, count: int) -> Self:
        """The data set's first `count` images."""


def require_objects(dataset: InstanceDataset) -> None:
    """Raises InputError if a data set holds nothing to train on: no object that is not a crowd."""
    if dataset.num_objects == dataset.num_crowds:
        raise InputError(
            f"{dataset.annotation_path}: none of the {len(dataset.images)} images has an object "
            'that is not a crowd; training needs entries under "annotations"'
        )


def fingerprint_of(categories: Iterable[Category], images: Iterable[ImageRecord]) -> str:
    """16 hex digits over classes, images and objects; the same wherever the files lie.

    Of an image id, file name and size count, of an object everything; the pixels do not: see
    `InstanceDataset.file_states`.
    """
    digest = hashlib.sha256()
    digest.update(json.dumps([[c.id, c.name] for c in categories]).encode())
    for image in images:
        header = [image.id, image.file_name, image.height, image.width, len(image.annotations)]
        digest.update(json.dumps(header).encode())
        for annotation in image.annotations:
            _update_object(digest, annotation)
    return digest.hexdigest()[:16]


def _update_object(digest, annotation: Annotation) -> None:
    """Adds an object; what has no fixed length comes after its length."""
    polygons = annotation.segmentation
    parts = polygons if isinstance(polygons, tuple) else (polygons["counts"],)
    header = (
        annotation.id,
        annotation.label,
        annotation.bbox_xywh,
        annotation.iscrowd,
        annotation.area,
        isinstance(polygons, tuple),
        [len(part) for part in parts],
        # Only where it differs: data without the flag keep the fingerprint that runs have recorded.
        *(() if annotation.supervise_mask else ("no mask",)),
    )
    digest.update(repr(header).encode())
    if annotation.embedding is not None:
        digest.update(annotation.embedding.astype("<f4").tobytes())
    for part in parts:
        digest.update(part if isinstance(part, bytes) else part.astype("<f8").tobytes())
