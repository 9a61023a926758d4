"""Frozen features: what they are, and what they do not depend on."""

from __future__ import annotations

import dataclasses

import cv2
import jax
import numpy as np
import pytest
from helpers.probe_process import use_small_untrained_backbone

from solojax.config import base_config, load_config
from solojax.data.center_crop import CenterCropRows
from solojax.data.image_folder import list_folder
from solojax.errors import InputError
from solojax.features.extraction import FeatureExtraction, image_sizes, make_extractor
from solojax.features.frozen_backbone import FrozenBackbone, untrained_backbone
from solojax.train.sharding import make_mesh

needs_four = pytest.mark.skipif(jax.device_count() < 4, reason="fewer than 4 devices")
SMALL = {"short_side": 72, "crop": 64, "threads": 2}
COUNT = 11


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Eleven images of noise, the fourth and the last of which are broken."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for index in range(COUNT):
        noise = rng.integers(0, 256, (40, 50, 3), np.uint8)
        cv2.imwrite(str(root / f"{index:02}.png"), noise)
    for broken in (3, 10):
        (root / f"{broken:02}.png").write_bytes(b"")
    return list_folder(root)


@pytest.fixture(scope="module")
def backbone():
    """Two convolutions whose running statistics are those of no batch."""
    with pytest.MonkeyPatch.context() as patch:
        use_small_untrained_backbone(patch)
        fresh = untrained_backbone(load_config("configs/densecl.py:tiny", []), seed=1)
    rng = np.random.default_rng(1)
    stats = jax.tree.map(
        lambda x: np.float32(rng.uniform(0.5, 1.5, x.shape)), fresh.variables["batch_stats"]
    )
    variables = {**fresh.variables, "batch_stats": stats}
    return FrozenBackbone(
        "small", fresh.network, variables, fresh.pixel_mean, fresh.pixel_std, fresh.config
    )


@pytest.fixture(scope="module")
def alone(images, backbone):
    """Features of one image at a time, without the loader, the mesh and jit's batch."""
    reader = CenterCropRows(images)
    maps = {}
    for index in range(COUNT):
        if index not in (3, 10):
            pixels = reader(index, 72, False, (64, 64), 0)["image"][None]
            maps[index] = np.asarray(backbone.features(backbone.variables, pixels))[0]
    return maps


def extract(images, backbone, devices=1, **settings):
    mesh = make_mesh(jax.devices()[:devices])
    how = FeatureExtraction(**{**SMALL, "batch_size": 4, **settings})
    return make_extractor(backbone, how, mesh)(images, "test")


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_every_image_once_whatever_the_batch(images, backbone, alone, batch_size):
    found = extract(images, backbone, batch_size=batch_size)
    assert found.indices.tolist() == list(alone) and found.unread == 2
    expected = np.stack([each.mean(axis=(0, 1)) for each in alone.values()])
    assert found.values.dtype == np.float32
    np.testing.assert_allclose(found.values, expected, rtol=2e-5, atol=1e-6)


@needs_four
def test_whatever_the_devices(images, backbone, alone):
    found = extract(images, backbone, devices=4, batch_size=6)  # made 8
    assert found.indices.tolist() == list(alone) and found.unread == 2
    one = extract(images, backbone, batch_size=2)  # as many images on a device
    np.testing.assert_allclose(found.values, one.values, rtol=2e-6, atol=1e-7)


def test_a_grid_row_by_row(images, backbone, alone):
    found = extract(images, backbone, pool=2)
    rows = []
    for each in alone.values():  # (16, 16, C)
        quarters = each[:8, :8], each[:8, 8:], each[8:, :8], each[8:, 8:]
        rows.append(np.concatenate([quarter.mean(axis=(0, 1)) for quarter in quarters]))
    np.testing.assert_allclose(found.values, np.stack(rows), rtol=2e-5, atol=1e-6)


def test_what_is_broken_is_told(images, backbone, caplog):
    extract(images, backbone)
    assert "2 of 11 images could not be read" in caplog.text


def test_sizes_are_those_of_pretraining_unless_given(backbone):
    assert image_sizes(backbone) == {"short_side": 110, "crop": 96}
    assert image_sizes(backbone, crop=64) == {"short_side": 73, "crop": 64}
    assert image_sizes(backbone, short_side=96) == {"short_side": 96, "crop": 96}
    other = dataclasses.replace(backbone, config=base_config())
    assert image_sizes(other) == {"short_side": 256, "crop": 224}
    FeatureExtraction(**image_sizes(other))


def test_nothing_can_be_read(tmp_path, backbone):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match="none of 1 images can be read"):
        extract(list_folder(tmp_path), backbone)


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        ({"crop": 100}, "multiple of 32"),
        ({"crop": 0}, "multiple of 32"),
        ({"short_side": 200}, "smaller than the crop"),
        ({"pool": 8}, "more than the 7 cells of C5"),
        ({"pool": 0}, "1 or more"),
        ({"batch_size": 0}, "1 or more"),
        ({"threads": -1}, "0 or more"),
    ],
)
def test_settings_out_of_range(wrong, part):
    with pytest.raises(InputError, match=part):
        FeatureExtraction(**wrong)
    assert FeatureExtraction(stage=4, pool=14).pool == 14
