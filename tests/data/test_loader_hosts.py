"""Real images read by several hosts: together, the rows that one host alone would read."""

from __future__ import annotations

import functools
import itertools
import multiprocessing

import jax
import numpy as np
import pytest

from solojax.data.canvas import Buckets
from solojax.data.coco import load_coco
from solojax.data.loader import train_batches
from solojax.data.plan import TrainPlan
from solojax.data.rows import TrainRows
from solojax.data.synthetic import write_synthetic_dataset
from solojax.data.transforms import resized_shape

BATCH, STEPS = 4, 9
NUM_IMAGES = 7
SHORT_SIDES, LONG_SIDE = (48, 64, 96), 128


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    write_synthetic_dataset(
        root, seed=0, num_train=NUM_IMAGES, num_val=1, image_sizes=[(96, 128), (128, 96)]
    )
    return load_coco(root / "train.json", root / "train")


def read(dataset, start=0, stop=STEPS, **options):
    """One host's batches of the steps start .. stop - 1."""
    plan = TrainPlan(
        sizes=np.array([(image.height, image.width) for image in dataset.images]),
        batch_size=BATCH,
        seed=11,
        short_sides=SHORT_SIDES,
        long_side=LONG_SIDE,
        flip_probability=0.5,
        choose_canvas=Buckets.for_images(SHORT_SIDES, LONG_SIDE),
        resized_shape=resized_shape,
        group_by_orientation=True,
    )
    rows = TrainRows(dataset, LONG_SIDE, max_instances=3, coarse_factors=(8,))
    options = {"threads": 2, **options}
    return list(
        train_batches(plan, rows, rows.empty, start_step=start, num_steps=stop - start, **options)
    )


def read_by_hosts(dataset, start, stop, hosts, **options):
    """The global batches, put together from what each host reads."""
    shares = [
        read(dataset, start, stop, process_index=host, process_count=hosts, **options)
        for host in range(hosts)
    ]
    return [
        jax.tree.map(lambda *rows: np.concatenate(rows), *step)
        for step in zip(*shares, strict=True)
    ]


def assert_same_bits(batches, expected):
    assert len(batches) == len(expected)
    for one, other in zip(jax.tree.leaves(batches), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert one.tobytes() == other.tobytes()


@pytest.fixture(scope="module")
def alone(dataset):
    """What a single host reads without an interruption."""
    return read(dataset)


def test_the_steps_differ_in_every_respect(alone):
    """Otherwise the other tests would compare less than they seem to."""
    assert len({batch.image.shape for batch in alone}) > 1
    assert len({batch.image_index.tobytes() for batch in alone}) == STEPS
    assert any(batch.dropped_instances.any() for batch in alone)
    seen = np.concatenate([batch.image_index for batch in alone])
    assert set(seen.tolist()) == set(range(NUM_IMAGES))


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_together_read_the_batch_of_one(dataset, alone, hosts):
    assert_same_bits(read_by_hosts(dataset, 0, STEPS, hosts), alone)


@pytest.mark.parametrize("counts", list(itertools.permutations([1, 2, 4])), ids=str)
def test_a_run_restarted_on_other_numbers_of_hosts_goes_on_as_it_would_have(dataset, alone, counts):
    parts = zip(((0, 2), (2, 5), (5, STEPS)), counts, strict=True)
    batches = [
        batch for (start, stop), hosts in parts
        for batch in read_by_hosts(dataset, start, stop, hosts)
    ]  # fmt: skip
    assert_same_bits(batches, alone)


def test_worker_processes_of_every_host_too(dataset, alone):
    """From one host with threads to two with two workers each, in mid-run."""
    batches = read(dataset, 0, 4) + read_by_hosts(dataset, 4, STEPS, 2, workers=2)
    assert_same_bits(batches, alone)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("hosts", [2, 4])
def test_an_image_that_breaks_leaves_the_rows_of_all_other_images_alone(
    dataset, alone, hosts, caplog
):
    """The host that meets it is neither late nor a row short, and no other host notices."""
    broken = 3
    path = dataset.image_path(dataset.images[broken])
    with open(path, "rb+") as file:
        whole = file.read()
        file.truncate(len(whole) // 2)
    try:
        batches = read_by_hosts(dataset, 0, STEPS, hosts)
    finally:
        with open(path, "wb") as file:
            file.write(whole)
    for batch, expected in zip(batches, alone, strict=True):
        bad = expected.image_index == broken
        np.testing.assert_array_equal(batch.valid, ~bad)
        np.testing.assert_array_equal(batch.image_index, expected.image_index)
        np.testing.assert_array_equal(batch.seed, expected.seed)
        assert not batch.image[bad].any() and not batch.instances.valid[bad].any()
        good = functools.partial(jax.tree.map, lambda leaf: leaf[~bad])  # noqa: B023
        assert_same_bits([good(batch)], [good(expected)])
    hosts_that_met_it = {
        row // (BATCH // hosts)
        for batch in alone
        for row in np.flatnonzero(batch.image_index == broken)
    }
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == len(hosts_that_met_it)
    assert all(path in message and "truncated" in message for message in messages)
