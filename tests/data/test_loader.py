"""The loader against the plan, read row by row."""

from __future__ import annotations

import functools
import logging
import multiprocessing
import threading
import time

import jax
import numpy as np
import pytest

from solojax.data.loader import eval_batches, train_batches
from solojax.data.plan import PADDING, EvalPlan, TrainPlan
from solojax.errors import BrokenImage, InputError
from solojax.structures import Batch

N = 2
SIZES = np.array([[32, 64], [64, 32]] * 3 + [[32, 64]])


def make_example(canvas, index, seed, tag):
    """Every field holds something that tells where it belongs."""
    height, width = canvas
    return {
        "image": np.full((height, width, 3), index, np.uint8),
        "image_size": np.array(canvas, np.int32),
        "original_size": np.array(canvas, np.int32) + 1,
        "valid": np.bool_(True),
        "image_index": np.int32(index),
        "seed": np.uint32(seed),
        "dropped_instances": np.int32(tag),
        "boxes": np.full((N, 4), index, np.float32),
        "labels": np.full(N, index, np.int32),
        "centers": np.full((N, 2), index + 0.5, np.float32),
        "masks": np.full((N, height // 4, width // 32), index, np.uint8),
        "instance_valid": np.array([True, False]),
        "mask_valid": np.array([False, True]),
    }


def load_row(index, short_side, flip, canvas, seed):
    return make_example(canvas, index, seed, tag=2 * short_side + flip)


def make_empty_row(canvas):
    return make_example(canvas, 0, 0, 0)


def canvas_of(shapes):
    return tuple(max(side) for side in zip(*shapes, strict=True))


def same_shape(height, width, short_side, long_side):
    return height, width


def make_plan(batch_size=4, sizes=SIZES):
    return TrainPlan(
        sizes=sizes,
        batch_size=batch_size,
        seed=5,
        short_sides=(32, 40),
        long_side=64,
        flip_probability=0.5,
        choose_canvas=canvas_of,
        resized_shape=same_shape,
        group_by_orientation=True,
    )


def make_eval_plan(batch_size=4, sizes=SIZES):
    return EvalPlan(
        sizes=sizes,
        batch_size=batch_size,
        short_side=32,
        long_side=64,
        choose_canvas=canvas_of,
        resized_shape=same_shape,
    )


def read(load=load_row, num_steps=6, plan=None, **options):
    options = {"threads": 2, **options}
    return list(train_batches(plan or make_plan(), load, make_empty_row, num_steps=num_steps,
                              **options))  # fmt: skip


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def within(seconds, function):
    """What the function returns or raises; fails if it takes longer, where it would hang."""
    outcome = {}

    def run():
        try:
            outcome["value"] = function()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert outcome, f"no answer within {seconds} s"
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]


def test_batches_hold_what_the_plan_says():
    plan = make_plan()
    for step, batch in enumerate(read()):
        expected = plan.at(step)
        assert isinstance(batch, Batch)
        np.testing.assert_array_equal(batch.image_index, expected.image_indices)
        np.testing.assert_array_equal(batch.seed, expected.seeds)
        tags = 2 * expected.short_sides + expected.flips
        np.testing.assert_array_equal(batch.dropped_instances, tags)
        assert batch.image.shape == (4, *expected.canvas, 3)
        assert batch.instances.masks.shape == (
            4,
            N,
            expected.canvas[0] // 4,
            expected.canvas[1] // 32,
        )
        np.testing.assert_array_equal(batch.image[:, 0, 0, 0], expected.image_indices)
        np.testing.assert_array_equal(batch.instances.boxes[:, 1, 3], expected.image_indices)
        np.testing.assert_array_equal(batch.instances.labels[:, 0], expected.image_indices)
        np.testing.assert_array_equal(
            batch.instances.centers[:, 0, 1], expected.image_indices + 0.5
        )
        np.testing.assert_array_equal(batch.instances.masks[:, 1, 0, 0], expected.image_indices)
        assert batch.instances.valid.tolist() == [[True, False]] * 4
        assert batch.instances.mask_valid.tolist() == [[False, True]] * 4
        assert batch.original_size.tolist() == [[side + 1 for side in expected.canvas]] * 4
        assert batch.image_size.tolist() == [list(expected.canvas)] * 4
        assert batch.valid.all()


def test_types():
    for path, leaf in jax.tree_util.tree_leaves_with_path(read(num_steps=1)[0]):
        name = path[-1].name
        in_instances = len(path) == 2
        key = "instance_valid" if in_instances and name == "valid" else name
        assert type(leaf) is np.ndarray
        assert leaf.dtype == make_empty_row((32, 64))[key].dtype, name


@pytest.mark.parametrize("process_count", [1, 2, 4])
def test_processes_together_read_the_global_batch(process_count):
    shares = [
        read(process_index=index, process_count=process_count) for index in range(process_count)
    ]
    for step, whole in enumerate(read()):
        together = jax.tree.map(lambda *a: np.concatenate(a), *[share[step] for share in shares])
        assert_same(together, whole)


def test_number_of_threads_and_order_of_completion_do_not_matter():
    def slow_at_random(index, short_side, flip, canvas, seed):
        time.sleep(seed % 7 * 1e-3)
        return load_row(index, short_side, flip, canvas, seed)

    expected = read(threads=0)
    for options in [{"threads": 1, "prefetch": 1}, {"threads": 7, "prefetch": 3}]:
        assert_same(read(slow_at_random, **options), expected)


def test_starting_at_a_step_continues_the_uninterrupted_run():
    whole = read(num_steps=9)
    for start in (1, 4, 8):
        assert_same(read(start_step=start, num_steps=9 - start), whole[start:])


def test_no_steps():
    assert read(num_steps=0) == []


def test_rows_are_read_ahead_but_not_without_bound():
    read_rows = []

    def counted(index, short_side, flip, canvas, seed):
        read_rows.append(index)
        return load_row(index, short_side, flip, canvas, seed)

    batches = train_batches(
        make_plan(), counted, make_empty_row, num_steps=1000, threads=2, prefetch=3
    )
    assert read_rows == []
    next(batches)
    expected = 4 + 3 * 4
    deadline = time.monotonic() + 10
    while len(read_rows) < expected and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(read_rows) == expected
    batches.close()


def test_broken_image_becomes_an_invalid_row_and_is_logged_once(caplog):
    def load(index, short_side, flip, canvas, seed):
        if index in (2, 3):
            raise BrokenImage(f"images/{index}.jpg is truncated; replace the file")
        return load_row(index, short_side, flip, canvas, seed)

    plan = make_plan()
    with caplog.at_level(logging.WARNING, logger="solojax.data.loader"):
        batches = read(load, num_steps=8)
    for step, (batch, whole) in enumerate(zip(batches, read(num_steps=8), strict=True)):
        broken = np.isin(plan.at(step).image_indices, (2, 3))
        np.testing.assert_array_equal(batch.valid, ~broken)
        # The row stays identifiable, and its neighbours as they were.
        np.testing.assert_array_equal(batch.image_index, whole.image_index)
        np.testing.assert_array_equal(batch.seed, whole.seed)
        np.testing.assert_array_equal(batch.image[broken], 0)
        keep = functools.partial(jax.tree.map, lambda leaf: leaf[~broken])  # noqa: B023
        assert_same(keep(batch), keep(whole))
    # Eight steps of four rows are more than four epochs of seven images.
    assert sorted(record.getMessage() for record in caplog.records) == [
        f"image left out: images/{index}.jpg is truncated; replace the file" for index in (2, 3)
    ]


class Unforeseen(Exception):
    pass


@pytest.mark.parametrize("threads", [0, 3])
def test_other_errors_surface_as_they_are_at_their_step(threads):
    plan = make_plan()
    error = Unforeseen("a programming error")
    row_seed = int(plan.at(1).seeds[0])

    def load(index, short_side, flip, canvas, seed):
        if seed == row_seed:
            raise error
        return load_row(index, short_side, flip, canvas, seed)

    batches = train_batches(plan, load, make_empty_row, num_steps=5, threads=threads)
    assert_same(next(batches), read(num_steps=1)[0])
    with pytest.raises(Unforeseen) as caught:
        within(20, lambda: next(batches))
    assert caught.value is error


def test_an_early_end_is_an_error():
    def load(*_):
        raise StopIteration

    with pytest.raises(RuntimeError, match="load_row raised StopIteration"):
        read(load)


@pytest.mark.parametrize(
    ("change", "error"),
    [({"labels": np.zeros(N + 1, np.int32)}, ValueError), ({"labels": np.zeros(N)}, TypeError)],
)
def test_rows_of_different_shape_or_dtype_are_refused(change, error):
    def load(index, short_side, flip, canvas, seed):
        example = load_row(index, short_side, flip, canvas, seed)
        return {**example, **change} if index == 3 else example

    with pytest.raises(error) as caught:
        read(load)
    assert "'labels'" in caught.value.__notes__[0]


def test_closing_ends_the_threads():
    def grain_threads():
        return [t for t in threading.enumerate() if t.name.startswith("grain-prefetch")]

    batches = train_batches(make_plan(), load_row, make_empty_row, num_steps=100, threads=3)
    next(batches)
    assert grain_threads()
    batches.close()
    deadline = time.monotonic() + 10
    while grain_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not grain_threads()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"process_count": 3}, "multiple of 3"),
        ({"process_count": 2, "process_index": 2}, r"process index 2 is not in 0 \.\. 1"),
        ({"process_count": 0}, "process index 0"),
        ({"threads": -1}, "threads=-1"),
        ({"workers": -1}, "workers=-1"),
        ({"prefetch": 0}, "prefetch=0"),
        ({"start_step": -1}, "start_step=-1"),
        ({"num_steps": -1}, "num_steps=-1"),
    ],
)
def test_bad_options_are_refused_before_the_first_batch(options, message):
    options = {"num_steps": 1, **options}
    with pytest.raises(InputError, match=message):
        train_batches(make_plan(), load_row, make_empty_row, **options)


@pytest.mark.parametrize("process_count", [1, 2, 4])
def test_evaluation_reads_every_image_once_and_pads(process_count):
    plan = make_eval_plan()
    shares = [
        list(eval_batches(plan, load_row, make_empty_row, threads=2,
                          process_index=index, process_count=process_count))
        for index in range(process_count)
    ]  # fmt: skip
    # Four images of 32 x 64 and three of 64 x 32, in global batches of four.
    assert [len(share) for share in shares] == [2] * process_count
    seen = []
    for step, canvas in enumerate([(32, 64), (64, 32)]):
        for share in shares:
            batch = share[step]
            assert batch.image.shape == (4 // process_count, *canvas, 3)
            np.testing.assert_array_equal(batch.valid, batch.image_index != PADDING)
            np.testing.assert_array_equal(batch.dropped_instances, np.where(batch.valid, 2 * 32, 0))
            seen += batch.image_index[batch.valid].tolist()
    assert seen == [0, 2, 4, 6, 1, 3, 5]
    assert [share[1].valid.tolist() for share in shares][-1][-1] is False


def test_evaluation_marks_broken_images(caplog):
    def load(index, short_side, flip, canvas, seed):
        if index == 4:
            raise BrokenImage("images/4.jpg is empty; replace the file")
        return load_row(index, short_side, flip, canvas, seed)

    first, second = eval_batches(make_eval_plan(), load, make_empty_row, threads=2)
    assert first.image_index.tolist() == [0, 2, 4, 6]
    assert first.valid.tolist() == [True, True, False, True]
    assert second.image_index.tolist() == [1, 3, 5, PADDING]
    assert second.valid.tolist() == [True, True, True, False]
    assert [r.getMessage() for r in caplog.records] == [
        "image left out: images/4.jpg is empty; replace the file"
    ]


# Worker processes start in a second or two each, so one test goes through everything that works.
def load_in_worker(index, short_side, flip, canvas, seed):
    if index == 3:
        raise BrokenImage("images/3.jpg is absent; restore the file")
    return load_row(index, short_side, flip, canvas, seed)


def test_worker_processes_read_the_same(caplog):
    # Images of 96 KiB travel through shared memory, the rest through pipes.
    plan = make_plan(sizes=SIZES * 4)
    batches = within(120, lambda: read(load_in_worker, plan=plan, num_steps=4, workers=2))
    assert_same(batches, read(load_in_worker, plan=plan, num_steps=4))
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(batches))
    assert [r.getMessage() for r in caplog.records].count(
        "image left out: images/3.jpg is absent; restore the file"
    ) == 2
    assert not multiprocessing.active_children()


class Unpicklable(Exception):
    def __init__(self, message):
        super().__init__(message)
        self.lock = threading.Lock()


def raise_error(error, *_):
    raise error("a programming error")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Unforeseen, Unforeseen),
        (Unpicklable, RuntimeError),
        (SystemExit, RuntimeError),
    ],
)
def test_errors_in_worker_processes_surface(error, expected):
    load = functools.partial(raise_error, error)
    with pytest.raises(expected, match="a programming error"):
        within(120, lambda: read(load, workers=1, threads=0))
    assert not multiprocessing.active_children()
