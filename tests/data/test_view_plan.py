"""The order of contrastive pre-training."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from solojax.data.plan import TrainPlan
from solojax.data.transforms import resized_shape
from solojax.data.view_plan import ViewPlan
from solojax.errors import InputError

CANVAS = (64, 48)


@pytest.mark.parametrize("batch_size", [1, 4, 7, 20])
def test_the_order_and_seeds_of_a_train_plan(batch_size):
    """Written apart from it; without grouping both are the same stream."""
    plan = ViewPlan(7, batch_size, 11, CANVAS)
    other = TrainPlan(
        sizes=np.full((7, 2), 32),
        batch_size=batch_size,
        seed=11,
        short_sides=(32,),
        long_side=64,
        flip_probability=0.0,
        choose_canvas=lambda sizes: CANVAS,
        resized_shape=resized_shape,
        group_by_orientation=False,
    )
    for step in (5, 0, 1, 33):
        ours, theirs = plan.at(step), other.at(step)
        np.testing.assert_array_equal(ours.image_indices, theirs.image_indices)
        np.testing.assert_array_equal(ours.seeds, theirs.seeds)
        assert ours.image_indices.dtype == np.int32 and ours.seeds.dtype == np.uint32
        assert ours.canvas == CANVAS and not ours.flips.any()
    assert plan.steps_per_epoch == other.steps_per_epoch


def test_every_image_once_an_epoch_whatever_the_batch():
    streams = [
        np.concatenate([ViewPlan(10, batch, 3, CANVAS).at(s).image_indices for s in range(steps)])
        for batch, steps in ((4, 15), (30, 2), (1, 60))
    ]
    np.testing.assert_array_equal(streams[0], streams[1])
    np.testing.assert_array_equal(streams[0], streams[2])
    epochs = streams[0].reshape(6, 10)
    assert (np.sort(epochs) == range(10)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_travels_to_other_processes():
    plan = ViewPlan(10, 4, 3, CANVAS)
    there = pickle.loads(pickle.dumps(plan))
    np.testing.assert_array_equal(there.at(9).image_indices, plan.at(9).image_indices)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ((0, 4, 0, CANVAS), "no images"),
        ((5, 0, 0, CANVAS), "batch size is 0"),
        ((5, 4, -1, CANVAS), "seed is -1"),
        ((5, 4, 0, (64, 0)), "size of the views"),
    ],
)
def test_settings_out_of_range(arguments, message):
    with pytest.raises(InputError, match=message):
        ViewPlan(*arguments)
