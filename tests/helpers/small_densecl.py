"""DenseCL at a size that compiles in a second or two: two convolutions, 16x16 pixels."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from solojax.models.contrastive_encoder import ContrastiveEncoder
from solojax.models.densecl_neck import DenseCLNeck
from solojax.models.layers import Conv, backbone_norm
from solojax.ops.images import normalize_pixels
from solojax.structures import ViewBatch
from solojax.tasks.densecl import DenseCL
from solojax.train.state import TrainState, create_state

ROWS, SIDE, WIDTH = 16, 16, 8


class SmallBackbone(nn.Module):
    """Two convolutions with BatchNorm: (B, 16, 16, 3) to (B, 4, 4, 12)."""

    bn_group_images: int | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x, *, train=False, row_mask=None):
        for index, width in enumerate((8, 12)):
            x = Conv(width, 3, 2, use_bias=False, dtype=self.dtype, name=f"conv{index}")(x)
            x = backbone_norm(
                x,
                "batch_norm",
                name=f"bn{index}",
                train=train,
                row_mask=row_mask,
                dtype=self.dtype,
                bn_group_images=self.bn_group_images,
            )
            x = nn.relu(x)
        return (x,)


def small_task(*, group=None, grid=(2, 3), dense=True, dtype=jnp.float32, **options) -> DenseCL:
    """A task whose augmentation darkens every view by its row's seed and its place in the row."""

    def normalize(views):
        return (views.astype(dtype) - 128) / 64

    def augment(views, seeds, first_view=0):
        darkest = 7 - 2 * (first_view + jnp.arange(views.shape[1]))
        darker = (seeds[:, None] % darkest).astype(dtype) / 10
        return normalize(views) - darker[..., None, None, None]

    encoder = ContrastiveEncoder(
        SmallBackbone(group, dtype), DenseCLNeck(10, WIDTH, grid, dense, dtype)
    )
    options = {"batch_size": ROWS, "queue_length": 64, "negatives_at_once": 16} | options
    if not dense:
        options = {"dense_weight": 0.0} | options
    return DenseCL(encoder, normalize, augment, **options)


def use_small_backbone(monkeypatch) -> None:
    """Puts the two convolutions in the place of every ResNet of contrastive configs."""
    monkeypatch.setattr(
        "solojax.builders.contrast.build_backbone",
        lambda backbone, remat, dtype, group: SmallBackbone(group, dtype),
    )


def use_plain_colors(monkeypatch) -> None:
    """Leaves the colours of contrastive configs' views as they are, for tests of something else:
    what changes them takes as long to compile as all the rest of a step."""

    def normalize(views, seeds, first_view=0, *, pixel_mean, pixel_std, dtype, **settings):
        return normalize_pixels(views, pixel_mean, pixel_std, dtype)

    monkeypatch.setattr("solojax.builders.contrast.augment_views", normalize)


def random_views(seed=0, rows=ROWS) -> ViewBatch:
    """Views of noise, a brightness of its own for every image."""
    rng = np.random.default_rng(seed)
    bright = rng.integers(0, 128, (rows, 1, 1, 1, 3))
    noise = rng.integers(0, 128, (rows, 2, SIDE, SIDE, 3))
    return ViewBatch(
        views=(bright + noise).astype(np.uint8),
        valid=np.ones(rows, bool),
        image_index=np.arange(rows, dtype=np.int32),
        seed=rng.integers(0, 2**32, rows, dtype=np.uint32),
    )


def small_state(task, optimizer, dtype=np.float32) -> TrainState:
    """A state whose key encoder is another network than the query encoder."""
    state = create_state(task, optimizer, jax.random.key(0), random_views())
    extra = dict(state.extra)
    rng = np.random.default_rng(0)
    extra["key_params"] = jax.tree.map(
        lambda x: x + 0.1 * rng.standard_normal(x.shape), extra["key_params"]
    )
    state = state.replace(extra=extra)
    return jax.tree.map(
        lambda x: jnp.asarray(x, dtype if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype), state
    )
