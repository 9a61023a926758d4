"""Whose word counts on how a backbone reads images: the file's numbers, its author, its layout."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from helpers import foreign_states as foreign

from solojax.errors import InputError
from solojax.interop.file_stems import find_stem
from solojax.interop.files import ForeignFile
from solojax.interop.layouts import layout_named
from solojax.interop.load import open_checkpoint
from solojax.interop.stems import IMAGENET_MEAN, MSRA, TORCHVISION, flip_stem_channels


def file_with(author=None, **arrays):
    arrays = {name: np.asarray(value, np.float32) for name, value in arrays.items()}
    return ForeignFile("x.pkl", arrays, meta={"author": author} if author else {})


@pytest.mark.parametrize(
    ("layout", "author", "stem"),
    [
        ("torchvision", None, TORCHVISION),
        ("mmdet-v1-solov2", None, TORCHVISION),
        ("densecl", "DenseCL", TORCHVISION),
        ("freesolo", None, TORCHVISION),
        ("adelaidet", None, MSRA),
        ("caffe2", "Caffe2", MSRA),
        ("detectron2", "Caffe2", MSRA),
        ("detectron2", "MSRA", MSRA),
        ("detectron2", "torchvision", TORCHVISION),
        ("detectron2", "MOCO", TORCHVISION),
        ("detectron2", "DenseCL", TORCHVISION),
        ("detectron2", None, None),
    ],
)
def test_by_layout_and_author(layout, author, stem):
    assert find_stem(file_with(author), layout_named(layout)) == stem


def test_the_files_own_numbers_come_first():
    msra = {"pixel_mean": IMAGENET_MEAN[::-1], "pixel_std": (1, 1, 1)}
    stem = find_stem(file_with("torchvision", **msra), layout_named("detectron2"))
    assert stem.bgr and stem.stride_in_1x1 and stem.pixel_mean == pytest.approx(IMAGENET_MEAN)
    rgb = msra | {"pixel_mean": IMAGENET_MEAN}
    assert not find_stem(file_with(**rgb), layout_named("adelaidet")).bgr
    odd = find_stem(file_with(pixel_mean=(3, 2, 1), pixel_std=(7, 8, 9)), layout_named("moco"))
    assert odd.pixel_mean == (3, 2, 1) and odd.pixel_std == (7, 8, 9)
    odd = find_stem(file_with(pixel_mean=(1, 2, 3), pixel_std=(7, 8, 9)), layout_named("moco"))
    assert odd.bgr and odd.pixel_mean == (3, 2, 1) and odd.pixel_std == (9, 8, 7)
    with pytest.raises(InputError, match="1 and 3 numbers"):
        find_stem(file_with(pixel_mean=(3,), pixel_std=(1, 1, 1)), layout_named("moco"))


@pytest.mark.parametrize(("author", "bgr"), [("MSRA", True), ("DenseCL", False)])
def test_through_a_pickle(tmp_path, author, bgr):
    path = tmp_path / "R-18.pkl"
    state = foreign.fill(foreign.detectron2_resnet())
    path.write_bytes(pickle.dumps({"model": state, "__author__": author}, 2))
    found = open_checkpoint(path)
    assert found.stem.bgr is bgr


def test_turning_a_stem_round_twice():
    kernel = np.arange(2 * 2 * 3 * 4.0).reshape(2, 2, 3, 4)
    other = np.ones((1, 1, 3, 4))
    variables = {"params": {"backbone": {"conv1": {"kernel": kernel}}, "neck": {"kernel": other}}}
    once = flip_stem_channels(variables)
    np.testing.assert_array_equal(
        once["params"]["backbone"]["conv1"]["kernel"], kernel[:, :, [2, 1, 0]]
    )
    assert once["params"]["neck"]["kernel"] is other
    again = flip_stem_channels(once)["params"]["backbone"]["conv1"]["kernel"]
    np.testing.assert_array_equal(again, kernel)
