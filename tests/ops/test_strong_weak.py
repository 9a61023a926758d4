"""The doubled batch: which rows are where, what stays, and that devices change nothing."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from helpers.pasted_rows import make_batch, make_row, random_rows, rectangle
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from solojax.errors import InputError
from solojax.ops.augment_views import augment_views
from solojax.ops.copy_paste import copy_paste
from solojax.ops.strong_weak import strong_and_weak

SHORT = {"blur_sigma": (0.1, 0.5)}  # a short kernel compiles in less time
PLAIN = SHORT | {"jitter_probability": 0.0, "grayscale_probability": 0.0, "blur_probability": 0.0}


@functools.cache
def compiled(**settings):
    return jax.jit(functools.partial(strong_and_weak, **settings))


def test_weak_rows_are_the_batch_and_strong_rows_are_pasted_from_neighbours():
    rows = random_rows(1, 4)
    batch = make_batch(rows, [3, 1, 4, 1])
    doubled = compiled(**PLAIN)(batch)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[1::2], y), doubled, batch)
    neighbours = make_batch([rows[k] for k in (1, 0, 3, 2)], [0, 0, 0, 0])
    expected = jax.jit(copy_paste)(batch, neighbours)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[::2], y), doubled, expected)


def test_colors_are_those_of_the_views_and_padding_stays():
    """Rows without padding have exactly the augmentation of pre-training; others stay zero."""
    rng = np.random.default_rng(5)
    rows = [make_row(rng, size, [rectangle(1, 1, 4, 4)]) for size in ((64, 96), (40, 60))]
    batch = make_batch(rows, [11, 12])
    doubled = compiled(paste=False, **SHORT)(batch)
    settings = {
        "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1,
        "jitter_probability": 0.8, "grayscale_probability": 0.2, "blur_probability": 0.5,
        "pixel_mean": (0, 0, 0), "pixel_std": (1, 1, 1),
    } | SHORT  # fmt: skip
    views = jax.jit(functools.partial(augment_views, **settings))(
        batch.image[:1, None], batch.seed[:1]
    )
    np.testing.assert_allclose(doubled.image[0], views[0, 0], atol=0.51)
    strong = np.asarray(doubled.image[2])
    assert not strong[40:].any() and not strong[:, 60:].any()
    assert (strong != batch.image[1]).any()
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(x[::2], y), doubled.instances, batch.instances
    )


def test_contrast_turns_around_the_images_own_mean():
    """The padded image changes as the same image without padding does."""
    rng = np.random.default_rng(6)
    padded = make_row(rng, (32, 64), [])
    batch = make_batch([padded], [2])
    only = {
        "paste": False,
        "brightness": 0.0,
        "saturation": 0.0,
        "hue": 0.0,
        "contrast": 0.9,
        "jitter_probability": 1.0,
        "grayscale_probability": 0.0,
        "blur_probability": 0.0,
    }
    only |= SHORT
    alone = batch.replace(image=batch.image[:, :32, :64])
    one, other = compiled(**only)(batch), compiled(**only)(alone)
    assert np.abs(np.asarray(one.image[0, :32, :64], int) - other.image[0]).max() <= 1
    assert np.abs(np.asarray(other.image[0], int) - batch.image[0, :32, :64]).max() > 10


def test_a_row_depends_on_its_own_seed_and_its_pair_alone():
    rows = random_rows(2, 4)
    function = compiled(**SHORT)
    whole = function(make_batch(rows, [5, 6, 7, 8]))
    other = function(make_batch(random_rows(9, 2) + rows[2:], [1, 2, 7, 8]))
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[4:], y[4:]), whole, other)


def test_the_number_of_devices_changes_nothing():
    devices = jax.devices()
    if len(devices) < 4:
        pytest.skip("needs four devices")
    batch = make_batch(random_rows(2, 8), np.arange(8))
    whole = compiled(**SHORT)(batch)
    for count in (2, 4):
        mesh = Mesh(np.array(devices[:count]), ("data",))
        spread = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
        jax.tree.map(np.testing.assert_array_equal, compiled(**SHORT)(spread), whole)


def test_nothing_moves_between_devices_with_pairs_of_rows():
    devices = jax.devices()
    if len(devices) < 2:
        pytest.skip("needs two devices")
    mesh = Mesh(np.array(devices[:2]), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    batch = jax.device_put(make_batch(random_rows(2, 4), np.arange(4)), rows)
    program = jax.jit(functools.partial(strong_and_weak, **PLAIN), out_shardings=rows)
    text = program.lower(batch).compile().as_text()
    for word in ("all-gather", "all-reduce", "collective-permute", "all-to-all"):
        assert word not in text, word


def test_an_odd_batch_is_refused():
    with pytest.raises(InputError, match="a batch of 3 images is odd"):
        strong_and_weak(make_batch(random_rows(0, 3), [0, 1, 2]))
