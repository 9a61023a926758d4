"""solojax.ops.queues against a NumPy ring buffer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solojax.errors import InputError
from solojax.ops.queues import enqueue, init_queue

ALL = np.ones(4, bool)


def test_a_queue_starts_as_unit_vectors_in_all_directions():
    queue = np.asarray(init_queue(jax.random.key(0), 4096, 8))
    assert queue.shape == (4096, 8) and queue.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(queue, axis=1), 1.0, rtol=1e-5)
    assert np.abs(queue.mean(axis=0)).max() < 0.03
    np.testing.assert_allclose(queue.std(axis=0), 1 / np.sqrt(8), rtol=0.05)


@pytest.mark.parametrize("start", [0, 8, 10])  # 10: left there by batches of 2
def test_keys_replace_the_oldest_and_wrap_around(start):
    rng = np.random.default_rng(0)
    expected = rng.normal(size=(12, 3)).astype(np.float32)
    queue, position = jnp.asarray(expected), jnp.int32(start)
    for step in range(7):
        keys = rng.normal(size=(4, 3)).astype(np.float32)
        queue, position = jax.jit(enqueue)(queue, position, keys, ALL)
        for row in range(4):
            expected[(start + 4 * step + row) % 12] = keys[row]
        np.testing.assert_array_equal(queue, expected)
        assert position == (start + 4 * step + 4) % 12 and position.dtype == jnp.int32


def test_rows_that_are_not_valid_keep_the_old_vector_and_the_queue_moves_on():
    old = np.arange(16.0, dtype=np.float32).reshape(8, 2)
    keys = -np.ones((4, 2), np.float32)
    valid = np.array([True, False, False, True])
    queue, position = enqueue(jnp.asarray(old), jnp.int32(4), keys, valid)
    expected = old.copy()
    expected[[4, 7]] = -1
    np.testing.assert_array_equal(queue, expected)
    assert position == 0


def test_a_batch_that_does_not_divide_the_queue_is_refused():
    with pytest.raises(InputError, match="queue of 10 vectors.*batches of 4.*multiple of 4"):
        enqueue(jnp.zeros((10, 2)), jnp.int32(0), jnp.zeros((4, 2)), ALL)
