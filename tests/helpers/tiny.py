"""A whole task at a size that compiles in seconds: a network of six convolutions, small scenes.

The network is made of the package's layers and named as its networks are, so that what a task does
with the names (frozen stages, norms) applies.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from helpers.outputs import dynamic_outputs

from solojax.models.layers import Conv, ConvNormRelu, backbone_norm
from solojax.models.resnet import ResidualBlock
from solojax.ops.coords import append_coordinates
from solojax.ops.resize import resize_bilinear
from solojax.structures import Batch, GridSpec, Instances
from solojax.tasks.instance_segmentation import InstanceSegmentation
from solojax.train.state import TrainState, split_params

# Compiles on a CPU in a fraction of the time, for programs that run once.
QUICK_COMPILE = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
quick_jit = functools.partial(jax.jit, compiler_options=QUICK_COMPILE)
CANVAS = (64, 96)
NUM_CLASSES = 3
GRID = GridSpec(
    num_grids=(8, 5, 3), strides=(4, 8, 16), scale_ranges=((1, 24), (16, 48), (32, 128))
)


class TinyBackbone(nn.Module):
    """One map at 1/4 of the image: a stem and one residual block."""

    norm: str
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train, row_mask):
        x = Conv(32, 7, 4, use_bias=False, dtype=self.dtype, name="conv1")(x)
        x = backbone_norm(
            x, self.norm, name="bn1", train=train, row_mask=row_mask, dtype=self.dtype
        )
        block = ResidualBlock(32, norm=self.norm, dtype=self.dtype, name="layer1_0")
        return block(nn.relu(x), train, row_mask)


class TinySegmenter(nn.Module):
    """A segmenter whose head reads that one map, resized to every grid."""

    norm: str = "frozen_batch_norm"
    dtype: Any = None

    @nn.compact
    def __call__(self, image, *, train=False, row_mask=None):
        x = TinyBackbone(self.norm, self.dtype, name="backbone")(image, train, row_mask)
        x = append_coordinates(x)
        levels = [resize_bilinear(x, side, side) for side in GRID.num_grids]
        cells = jnp.concatenate([y.reshape(y.shape[0], 1, -1, y.shape[-1]) for y in levels], 2)
        cells = ConvNormRelu(32, 1, dtype=self.dtype, name="tower")(cells)
        return dynamic_outputs(
            category_logits=Conv(NUM_CLASSES, 1, dtype=self.dtype, name="category")(cells)[:, 0],
            kernels=Conv(32, 1, dtype=self.dtype, name="kernel")(cells)[:, 0],
            mask_features=ConvNormRelu(32, 1, dtype=self.dtype, name="mask_features")(x),
        )


def tiny_task(norm="frozen_batch_norm", *, dtype=jnp.float32, **options) -> InstanceSegmentation:
    """The task around `TinySegmenter`; options are those of InstanceSegmentation."""
    options = {"max_positives": 8} | options
    return InstanceSegmentation(
        TinySegmenter(norm, dtype), GRID, NUM_CLASSES, dtype=dtype, **options
    )


def random_batch(seed=0, rows=4, max_instances=4, objects=None, canvas=CANVAS) -> Batch:
    """Noise images of several sizes with ellipses in them, NumPy.

    Args:
      seed: of everything.
      rows: B.
      max_instances: N.
      objects: of every image; 1 to N at random when None.
      canvas: (H, W).
    """
    rng = np.random.default_rng(seed)
    height, width = canvas
    image_size = np.stack(
        [rng.integers(height // 2, height + 1, rows), rng.integers(width // 2, width + 1, rows)], 1
    ).astype(np.int32)
    image = rng.integers(0, 256, (rows, height, width, 3), dtype=np.uint8)
    for row, (valid_height, valid_width) in enumerate(image_size):
        image[row, valid_height:] = 0
        image[row, :, valid_width:] = 0
    counts = rng.integers(1, max_instances + 1, rows) if objects is None else [objects] * rows
    scenes = [
        _random_instances(rng, count, max_instances, canvas, size)
        for count, size in zip(counts, image_size, strict=True)
    ]
    return Batch(
        image=image,
        image_size=image_size,
        original_size=2 * image_size,
        valid=np.ones(rows, bool),
        image_index=np.arange(rows, dtype=np.int32),
        seed=rng.integers(0, 2**32, rows, dtype=np.uint32),
        dropped_instances=np.arange(rows, dtype=np.int32),
        instances=jax.tree.map(lambda *x: np.stack(x), *scenes),
    )


def _random_instances(rng, count, max_instances, canvas, size) -> Instances:
    """One image's ellipses; the places beyond `count` hold what must never be read."""
    height, width = canvas
    ys, xs = np.mgrid[:height, :width]
    garbage = rng.uniform(0, 60, (max_instances, 4)).astype(np.float32)
    boxes = np.concatenate([garbage[:, :2], garbage[:, :2] + garbage[:, 2:]], axis=1)
    centers = garbage[:, :2].copy()
    masks = rng.random((max_instances, height // 4, width // 4)) < 0.5
    for n in range(count):
        radius_y, radius_x = rng.uniform(4, size / 2)
        y, x = rng.uniform(0, size)
        mask = ((ys - y) / radius_y) ** 2 + ((xs - x) / radius_x) ** 2 <= 1
        mask[size[0] :] = False
        mask[:, size[1] :] = False
        rows, columns = np.nonzero(mask)
        boxes[n] = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        centers[n] = columns.mean(), rows.mean()
        masks[n] = mask[2::4, 2::4]
    return Instances(
        boxes=boxes,
        labels=rng.integers(0, NUM_CLASSES, max_instances).astype(np.int32),
        centers=centers,
        masks=np.packbits(masks, axis=-1),
        valid=np.arange(max_instances) < count,
    )


def take_rows(batch: Batch, rows) -> Batch:
    """The given rows of a batch, in the given order."""
    return jax.tree.map(lambda x: np.asarray(x)[np.asarray(rows)], batch)


def random_variables(model_or_task, *args, seed=0, dtype=np.float32):
    """Variables drawn with NumPy, of the shapes that `init(key, *args)` gives; nothing compiles."""
    shapes = jax.eval_shape(lambda key: model_or_task.init(key, *args), jax.random.key(0))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape)
        value = {
            "kernel": noise * np.sqrt(2 / max(np.prod(leaf.shape[:-1]), 1)),
            "scale": 1 + 0.1 * noise,
            "var": 1 + 0.2 * np.abs(noise),
        }.get(path[-1].key, 0.1 * noise)
        return value.astype(dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def random_state(task, optimizer, batch, seed=0, dtype=np.float32, ema=False) -> TrainState:
    """A fresh training state with `random_variables`."""
    variables = random_variables(task, batch, seed=seed, dtype=dtype)
    trainable, _ = split_params(variables["params"], task.is_trainable)
    return TrainState(
        step=np.int32(0),
        params=variables["params"],
        opt_state=optimizer.init(trainable),
        batch_stats=variables.get("batch_stats", {}),
        ema_params=jax.tree.map(np.copy, variables["params"]) if ema else None,
        extra={},
    )


def record_gradients() -> optax.GradientTransformation:
    """An optimizer that moves nothing and keeps the last gradient as its state."""

    def zeros(tree):
        return jax.tree.map(jnp.zeros_like, tree)

    return optax.GradientTransformation(
        init=zeros, update=lambda grads, state, params=None: (zeros(grads), grads)
    )


def relative_distance(tree, reference) -> float:
    """The largest, over the arrays of two trees, of |a - b| / |b| in the Euclidean norm."""
    assert jax.tree.structure(tree) == jax.tree.structure(reference)
    worst = 0.0
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(reference), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        difference, size = np.linalg.norm(a - b), np.linalg.norm(b)
        assert np.isfinite(difference)
        if difference:
            worst = max(worst, difference / size if size else np.inf)
    return worst


def assert_same_bits(tree, reference):
    """Both trees hold the same arrays, bit for bit."""
    assert jax.tree.structure(tree) == jax.tree.structure(reference)
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(reference), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype and a.shape == b.shape
        assert a.tobytes() == b.tobytes()
