"""Images with classes to be recognised: one each (class folders) or several (a COCO json)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from solojax.data.coco import load_coco
from solojax.data.image_folder import FileStore, ImageList, list_folder
from solojax.errors import InputError

SHOWN, ABSENT, UNDECIDED = 1, 0, -1


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images and the classes they show.

    Attributes:
      images: the files.
      targets: (n, K) int8: SHOWN, ABSENT, or UNDECIDED where nothing but crowds of the class is
        there (a place for VOC's difficult objects).
      class_names: K names.
      multi_label: whether an image may show several classes, or none.
    """

    images: ImageList
    targets: np.ndarray
    class_names: tuple[str, ...]
    multi_label: bool


def labelled_folder(folder: str | Path) -> LabelledImages:
    """Images in class folders, see `list_folder`.

    Raises:
      InputError: there is no image, there are no class folders, or there is but one.
    """
    images = list_folder(folder)
    if images.labels is None:
        raise InputError(
            f"{folder}: the images lie in no class folders; put those of each class into a folder "
            "of its own, or give a COCO json too"
        )
    targets = np.zeros((len(images), len(images.class_names)), np.int8)
    targets[np.arange(len(images)), images.labels] = SHOWN
    return _checked(LabelledImages(images, targets, images.class_names, multi_label=False))


def labelled_coco(annotations: str | Path, folder: str | Path) -> LabelledImages:
    """The images of a COCO json; an image shows the classes of its objects.

    Raises:
      InputError: as `load_coco`; or there is but one class.
    """
    dataset = load_coco(annotations, folder)
    names = tuple(category.name for category in dataset.categories)
    targets = np.zeros((len(dataset.images), len(names)), np.int8)
    for row, image in zip(targets, dataset.images, strict=True):
        for each in image.annotations:
            if not each.iscrowd:
                row[each.label] = SHOWN
            elif row[each.label] == ABSENT:
                row[each.label] = UNDECIDED
    files = tuple(image.file_name for image in dataset.images)
    images = ImageList(str(annotations), files, None, (), FileStore(str(folder)))
    return _checked(LabelledImages(images, targets, names, multi_label=True))


def require_same_classes(train: LabelledImages, test: LabelledImages) -> None:
    """Raises an InputError unless both sets are of one kind and name the same classes."""
    if train.multi_label != test.multi_label:
        raise InputError(
            f"{train.images.source} and {test.images.source}: one has class folders, the other is "
            "a COCO json; give both in one form"
        )
    if train.class_names == test.class_names:
        return
    one, other = set(train.class_names), set(test.class_names)
    if one == other:
        raise InputError(
            f"{test.images.source}: the classes stand in another order than in "
            f"{train.images.source}; give them the same ids"
        )
    phrases = [
        f"{len(names)} only in {source} ({', '.join(sorted(names)[:3])})"
        for names, source in ((one - other, train.images.source), (other - one, test.images.source))
        if names
    ]
    raise InputError(f"the training and test classes differ: {'; '.join(phrases)}; give the same")


def _checked(labelled: LabelledImages) -> LabelledImages:
    if len(labelled.class_names) < 2:
        raise InputError(
            f"{labelled.images.source}: there is one class alone ({labelled.class_names[0]}), and "
            "nothing to tell it from; give two classes or more"
        )
    names = labelled.class_names
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{labelled.images.source}: two classes are named '{twice}'; rename one")
    return labelled
