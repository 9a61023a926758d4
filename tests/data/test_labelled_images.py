"""Images with classes, from folders and COCO jsons."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from helpers.records import write_class_folders

from solojax.data.labelled_images import labelled_coco, labelled_folder, require_same_classes
from solojax.errors import InputError

BOX = [[0, 0, 8, 0, 8, 8, 0, 8]]


def write_coco(folder, objects, names=("ant", "bee", "cat")):
    """A json whose image n has the objects (class, is crowd) of objects[n]; ids are far apart."""
    folder.mkdir(exist_ok=True)
    images = [
        {"id": 10 * n, "file_name": f"{n}.png", "height": 16, "width": 16}
        for n in range(len(objects))
    ]
    for image in images:
        cv2.imwrite(str(folder / image["file_name"]), np.zeros((16, 16, 3), np.uint8))
    annotations = [
        {
            "id": 1000 * n + m,
            "image_id": 10 * n,
            "category_id": 5 + 2 * label,
            "segmentation": BOX,
            "bbox": [0, 0, 8, 8],
            "area": 64,
            "iscrowd": int(crowd),
        }
        for n, found in enumerate(objects)
        for m, (label, crowd) in enumerate(found)
    ]
    categories = [{"id": 5 + 2 * label, "name": name} for label, name in enumerate(names)]
    path = folder / "labels.json"
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return path


def test_class_folders(tmp_path):
    labelled = labelled_folder(write_class_folders(tmp_path / "images", ("ant", "bee", "cat")))
    assert labelled.class_names == ("ant", "bee", "cat") and not labelled.multi_label
    assert labelled.targets.dtype == np.int8
    assert labelled.targets.argmax(axis=1).tolist() == [0, 1, 1, 2, 2, 2]
    assert (labelled.targets.sum(axis=1) == 1).all()


def test_coco_json(tmp_path):
    objects = [
        [(0, False), (2, False), (0, False)],
        [(1, True)],
        [],
        [(1, True), (1, False), (2, True)],
        [(1, False), (1, True)],
    ]
    labelled = labelled_coco(write_coco(tmp_path / "coco", objects), tmp_path / "coco")
    assert labelled.class_names == ("ant", "bee", "cat") and labelled.multi_label
    assert labelled.targets.tolist() == [
        [1, 0, 1],
        [0, -1, 0],
        [0, 0, 0],
        [0, 1, -1],
        [0, 1, 0],
    ]
    assert labelled.images.read_image(4).shape == (16, 16, 3)


def test_sets_without_classes_to_tell_apart(tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    cv2.imwrite(str(flat / "a.png"), np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(InputError, match="no class folders"):
        labelled_folder(flat)
    with pytest.raises(InputError, match="one class alone"):
        labelled_folder(write_class_folders(tmp_path / "one", ("ant",)))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match="no image there"):
        labelled_folder(tmp_path / "nothing")
    twice = write_coco(tmp_path / "twice", [[(0, False)]], names=("ant", "ant"))
    with pytest.raises(InputError, match="'ant'"):
        labelled_coco(twice, tmp_path / "twice")


def test_other_classes(tmp_path):
    one = labelled_folder(write_class_folders(tmp_path / "one", ("ant", "bee")))
    other = labelled_folder(write_class_folders(tmp_path / "other", ("ant", "cow")))
    require_same_classes(one, one)
    with pytest.raises(InputError, match=r"1 only in .*one \(bee\); 1 only in .*other \(cow\)"):
        require_same_classes(one, other)
    objects = [[(0, False)]]
    coco, reverse = (
        labelled_coco(write_coco(tmp_path / name, objects, names), tmp_path / name)
        for name, names in (("coco", ("ant", "bee")), ("reverse", ("bee", "ant")))
    )
    with pytest.raises(InputError, match="in one form"):
        require_same_classes(one, coco)
    with pytest.raises(InputError, match="another order"):
        require_same_classes(coco, reverse)
