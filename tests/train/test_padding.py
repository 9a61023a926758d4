"""Room that is not used changes no bit of a training step.

What broken rows hold is in test_instance_segmentation.py, candidates in test_detections.py, the
rows of an evaluation in test_device_agreement.py and test_evaluate_command.py.
"""

from __future__ import annotations

import functools

import jax
import numpy as np
from helpers.tiny import (
    QUICK_COMPILE,
    assert_same_bits,
    random_batch,
    random_state,
    record_gradients,
    tiny_task,
)

from solojax.structures import Batch
from solojax.train.step import make_train_step

BATCH = random_batch(3, max_instances=4)
ROOM = 64  # for positive pairs: all of them


def step_of(batch: Batch, max_positives: int):
    """(metrics, gradient, batch statistics) of one step."""
    task, optimizer = tiny_task("batch_norm", max_positives=max_positives), record_gradients()
    state = random_state(task, optimizer, batch)
    step = jax.jit(make_train_step(task, optimizer), compiler_options=QUICK_COMPILE)
    state, metrics = step(state, batch)
    return jax.device_get((metrics, state.opt_state, state.batch_stats))


@functools.cache
def expected():
    metrics, gradient, batch_stats = step_of(BATCH, ROOM)
    assert metrics["targets/positive_pairs"] > 20 and metrics["targets/overflow"] == 0
    return metrics, gradient, batch_stats


def test_more_room_for_instances_changes_no_bit():
    rng = np.random.default_rng(0)

    def widen(x):
        noise = 200 * rng.random((len(x), 3, *x.shape[2:]))
        return np.concatenate([x, noise.astype(x.dtype)], axis=1)

    wider = BATCH.replace(instances=jax.tree.map(widen, BATCH.instances))
    wider.instances.valid[:, 4:] = False
    assert_same_bits(step_of(wider, ROOM), expected())


def test_more_room_for_positive_pairs_changes_no_bit():
    assert_same_bits(step_of(BATCH, 2 * ROOM), expected())
