"""What Shuffling BatchNorm is for, and that the logged accuracy gives it away where it is broken.

The encoder reads one pixel that is the same in every image: all that it can tell of an image is
what BatchNorm lets through from the others of the group.
"""

from __future__ import annotations

from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.small_densecl import random_views, small_state, small_task
from helpers.tiny import quick_jit

from solojax.models.contrastive_encoder import ContrastiveEncoder
from solojax.models.densecl_neck import ContrastiveEmbeddings
from solojax.models.layers import BatchNorm
from solojax.ops.shuffle import FixedShuffle, GroupShuffle
from solojax.structures import ViewBatch
from solojax.tasks.densecl import DenseCL

ROWS, GROUP = 64, 4


class MarkedPixel(nn.Module):
    """The corner of the normalised image, less what it is on average."""

    group_images: int | None

    @nn.compact
    def __call__(self, image, *, train, row_mask):
        norm = BatchNorm(not train, group_images=self.group_images, name="bn1")
        return (norm(image, row_mask)[:, :1, :1] + 1.7,)


class Corner(nn.Module):
    grid: tuple | None = None
    dense: bool = False
    out: int = 3

    def __call__(self, features):
        return ContrastiveEmbeddings(features[:, 0, 0])


def views():
    """Two views: images of one brightness, each with noise of its own and a black corner."""
    rng = np.random.default_rng(0)
    brightness = rng.integers(0, 236, (ROWS, 1, 1, 1, 3))
    images = brightness + rng.integers(0, 20, (ROWS, 2, 8, 8, 3))
    images[:, :, 0, 0] = 0
    rows = np.arange(ROWS)
    return ViewBatch(images.astype(np.uint8), rows >= 0, rows, rows.astype(np.uint32))


def accuracy(group, shuffle):
    def normalize(images):
        return images.astype(jnp.float32)

    task = DenseCL(
        ContrastiveEncoder(MarkedPixel(group), Corner()),
        normalize,
        lambda images, seeds, first_view: normalize(images),
        ROWS,
        queue_length=2 * ROWS,
        dense_weight=0.0,
        shuffle=shuffle,
    )
    batch = views()
    state = SimpleNamespace(step=0, **task.init(jax.random.key(0), batch))
    weights = task.row_weights(batch)
    _, (_, metrics) = task.loss_fn(state.params, state, batch, jax.random.key(1), weights)
    return float(metrics["accuracy/global"])


@pytest.mark.parametrize(
    ("group", "shuffle"),
    [
        pytest.param(GROUP, None, id="no shuffle"),
        pytest.param(GROUP, FixedShuffle(tuple(range(ROWS))), id="a shuffle that moves nothing"),
        pytest.param(
            GROUP, FixedShuffle(tuple(row ^ 1 for row in range(ROWS))), id="one within groups"
        ),
        pytest.param(None, GroupShuffle(GROUP), id="statistics of the whole batch"),
    ],
)
def test_statistics_shared_by_query_and_key_leak(group, shuffle):
    assert accuracy(group, shuffle) > 0.7


def test_shuffled_groups_tell_nothing():
    assert accuracy(GROUP, GroupShuffle(GROUP)) < 0.2


class Forgetful(GroupShuffle):
    """Leaves the keys where the shuffle has put them."""

    def unshuffle(self, rows, key):
        del key
        return rows


@pytest.mark.slow
def test_keys_come_back_to_their_own_images():
    """Over the whole batch groups change nothing; were keys with other images, losses would."""
    losses = {}
    for name, shuffle in (("none", None), ("right", GroupShuffle(4)), ("broken", Forgetful(4))):
        task = small_task(shuffle=shuffle)
        state = small_state(task, optax.sgd(0.1))
        _, (_, metrics) = quick_jit(task.loss_fn)(
            state.params, state, random_views(), jax.random.key(1), {"row": jnp.full(16, 1 / 16)}
        )
        losses[name] = np.array([metrics["loss/global"], metrics["loss/dense"]])
    np.testing.assert_allclose(losses["right"], losses["none"], rtol=1e-5)
    assert np.all(losses["broken"] > losses["none"] + 0.05), losses
