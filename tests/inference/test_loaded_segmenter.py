"""A trained model from Python: files and arrays in, COCO results out."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from helpers import tiny_run
from helpers.tiny_config import TOTAL_STEPS
from helpers.tiny_run import use_nano_network
from pycocotools import mask as coco_mask

from solojax.data.image_io import read_image
from solojax.errors import InputError
from solojax.inference import segmenter
from solojax.structures import Batch
from solojax.train.checkpoints import Checkpointer, load_variables
from solojax.train.sharding import make_mesh


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of the nano network, which stays in its place."""
    with pytest.MonkeyPatch.context() as patch:
        use_nano_network(patch)
        yield tiny_run.finished_nano_run(tmp_path_factory)


@pytest.fixture(scope="module")
def model(run):
    return segmenter.load(run.workdir)


def test_the_model_knows_its_classes_its_step_and_its_config(run, model):
    assert model.step == TOTAL_STEPS and model.config.data.root == str(run.data)
    assert model.names == {category["id"]: category["name"] for category in tiny_run.CATEGORIES}
    assert model.category_ids == (3, 5, 7, 11, 40)
    assert (model.short_side, model.long_side) == (64, 64)


def test_any_path_to_the_checkpoint_will_do(run, model):
    for path in (run.workdir / "checkpoints", run.workdir / "checkpoints" / str(TOTAL_STEPS)):
        loaded = segmenter.load(str(path))
        jax.tree.map(np.testing.assert_array_equal, loaded.variables, model.variables)


def test_a_file_and_its_pixels_give_the_same(run, model):
    path = run.data / "images" / "image_7.png"
    from_file, from_pixels = model.predict(path), model.predict(read_image(path))
    assert from_file == from_pixels and from_file
    assert {result["image_id"] for result in from_file} == {0}
    assert {tuple(result["segmentation"]["size"]) for result in from_file} == {(96, 96)}


def test_images_of_any_shape(model):
    image = np.random.default_rng(0).integers(0, 256, (20, 90, 3), dtype=np.uint8)
    results = model.predict(image, image_id=17)
    assert results and {result["image_id"] for result in results} == {17}
    for result in results:
        assert coco_mask.decode(result["segmentation"]).shape == (20, 90)
        assert result["category_id"] in model.category_ids


def test_masks_without_a_pixel_are_left_out(model):
    """Such as those that are nowhere above the threshold once they are resized."""
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    detections = jax.device_get(model._predict(model.variables, model.batch_of(image)))
    assert detections.valid[0, :3].all()
    masks = np.full_like(detections.masks, 0.9)
    masks[0, 1] = 0.4
    changed = dataclasses.replace(detections, masks=masks)
    fake = dataclasses.replace(model)
    object.__setattr__(fake, "_predict", lambda variables, batch: changed)
    found = [result["score"] for result in fake.predict(image)]
    assert found == np.delete(detections.scores[0][detections.valid[0]], 1).tolist()
    assert all(result["bbox"] == [0, 0, 70, 50] for result in fake.predict(image))


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32)],
)
def test_what_is_no_rgb_image(model, image):
    with pytest.raises(InputError, match=r"is no RGB image; give \(H, W, 3\) uint8"):
        model.predict(image)


def test_a_config_over_that_of_the_checkpoint(run, model):
    def fewer(config):
        config.evaluation.max_detections = 3
        return config

    image = run.data / "images" / "image_0.png"
    results = segmenter.load(run.workdir, config=fewer).predict(image)
    assert results == model.predict(image)[:3]


def test_another_network_is_refused_with_its_leaves(run):
    def wider(config):
        config.model.mask_features.out_channels = 64
        return config

    with pytest.raises(InputError, match=r"4 leaves differ \(params/kernel/bias \(32,\) in it"):
        segmenter.load(run.workdir, config=wider)


def test_the_moving_average_is_preferred(run, model, tmp_path):
    saved = load_variables(run.workdir)
    average = jax.tree.map(lambda leaf: leaf + 1, saved.params)
    state = {"params": saved.params, "batch_stats": {}, "ema_params": average}
    with Checkpointer(tmp_path / "checkpoints") as checkpointer:
        checkpointer.save(3, state, saved.metadata)
    loaded = segmenter.load(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables["params"], average)
    assert loaded.step == 3


@pytest.mark.parametrize(
    "metadata, problem",
    [
        ({}, "'config'"),
        ({"config": "{}"}, "'categories'"),
        ({"categories": [1], "config": "{}"}, "not subscriptable"),
        ({"categories": [], "config": '{"modle": 1}'}, "unknown config key 'modle'"),
        ({"categories": [], "config": "{"}, "no JSON"),
    ],
)
def test_metadata_of_something_else(metadata, problem):
    with pytest.raises(InputError, match=f"checkpoint /here: .*{problem}"):
        segmenter.read_metadata(metadata, "/here")


def test_batches_come_back_in_order_with_their_detections():
    """`predict` doubles the image index, so that a swap of batches would show."""

    def batch_at(number):
        ones = np.ones(4, np.int32)
        return Batch(
            image=ones, image_size=ones, original_size=ones, valid=ones, seed=ones,
            image_index=np.arange(4, dtype=np.int32) + 4 * number, dropped_instances=ones,
            instances=None,
        )  # fmt: skip

    predict = jax.jit(lambda variables, batch: variables * batch.image_index)
    batches = (batch_at(number) for number in range(5))
    seen = list(segmenter.predict_batches(predict, np.int32(2), batches, make_mesh()))
    assert len(seen) == 5
    for number, (batch, doubled) in enumerate(seen):
        np.testing.assert_array_equal(batch.image_index, np.arange(4) + 4 * number)
        np.testing.assert_array_equal(doubled, 2 * batch.image_index)
        assert isinstance(doubled, np.ndarray)
