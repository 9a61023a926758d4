"""The padding of a plan against counting pixels on drawn canvases, and worked shares."""

from __future__ import annotations

import numpy as np
import pytest

from solojax.data.canvas import Buckets, multiple_of_32
from solojax.data.padding_waste import padding_waste
from solojax.data.plan import PADDING, EvalPlan, TrainPlan
from solojax.data.transforms import resized_shape

WIDE, HIGH = (48, 96), (96, 48)


def make_plan(sizes, batch_size, choose_canvas, short_sides=(48,), long_side=96):
    return TrainPlan(
        sizes=np.array(sizes),
        batch_size=batch_size,
        seed=3,
        short_sides=short_sides,
        long_side=long_side,
        flip_probability=0.5,
        choose_canvas=choose_canvas,
        resized_shape=resized_shape,
        group_by_orientation=True,
    )


def make_eval_plan(sizes, batch_size):
    return EvalPlan(
        sizes=np.array(sizes),
        batch_size=batch_size,
        short_side=48,
        long_side=96,
        choose_canvas=multiple_of_32,
        resized_shape=resized_shape,
    )


def drawn_share(plan, steps, square=None):
    """The share of zeros when every image is painted on its canvas."""
    pixels = []
    for step in steps:
        rows = plan.at(step)
        canvases = np.zeros((plan.batch_size, *(square or rows.canvas)), bool)
        for canvas, index, side in zip(canvases, rows.image_indices, rows.short_sides, strict=True):
            if index != PADDING:
                height, width = resized_shape(*plan.sizes[index], side, plan.long_side)
                canvas[:height, :width] = True
        pixels.append(canvases.reshape(-1))
    return 1 - np.concatenate(pixels).mean()


@pytest.mark.parametrize("policy", [multiple_of_32, Buckets.for_images((32, 40, 48), 96)])
def test_agrees_with_drawing(policy):
    sizes = np.random.default_rng(0).integers(20, 200, (13, 2))
    plan = make_plan(sizes, 4, policy, short_sides=(32, 40, 48))
    steps = range(2, 12)
    waste = padding_waste(plan, steps)
    assert waste.share == pytest.approx(drawn_share(plan, steps), rel=1e-12)
    assert waste.square_share == pytest.approx(drawn_share(plan, steps, waste.square), rel=1e-12)
    canvases = [plan.at(step).canvas for step in steps]
    assert set(waste.canvases) == set(canvases)
    for canvas, (count, share) in waste.canvases.items():
        own = [step for step in steps if plan.at(step).canvas == canvas]
        assert count == len(own)
        assert share == pytest.approx(drawn_share(plan, own), rel=1e-12)
    counts = [count for count, _ in waste.canvases.values()]
    assert counts == sorted(counts, reverse=True)


def test_worked_example():
    # 48 of 64 rows of the canvas hold pixels; a square of 96 is half empty.
    plan = make_plan([WIDE, WIDE, HIGH, HIGH], 2, multiple_of_32)
    waste = padding_waste(plan, range(4))
    assert waste.share == 0.25
    assert waste.canvases == {(64, 96): (2, 0.25), (96, 64): (2, 0.25)}
    assert (waste.square, waste.square_share) == ((96, 96), 0.5)
    assert str(waste) == (
        "2 canvases in 4 steps, padding 25.0% of their pixels (50.0% with one square canvas of 96)"
    )


def test_rows_without_an_image_are_padding():
    plan = make_eval_plan([WIDE, WIDE, WIDE], batch_size=2)
    waste = padding_waste(plan, range(plan.num_steps))
    assert waste.canvases == {(64, 96): (2, pytest.approx(1 - 0.75 * 0.75))}
    assert str(waste).startswith("1 canvas in 2 steps")


def test_no_steps():
    with pytest.raises(ValueError, match="at least one step"):
        padding_waste(make_eval_plan([WIDE], 1), [])
