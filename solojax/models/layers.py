"""The layers that every network here is made of.

Parameters are float32 (or float64 in float64 tests); `dtype` is the compute type of convolutions.
None keeps the type of input and parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from solojax.errors import InputError
from solojax.models.convolution import Conv as Conv  # a layer as well; deformable ones build on it
from solojax.models.deform_conv import conv_class
from solojax.ops.normalization import group_norm
from solojax.structures import Array

NORMS = ("frozen_batch_norm", "batch_norm", "group_norm")


class BatchNorm(nn.Module):
    """Batch normalisation in PyTorch's semantics (eps 1e-5, momentum 0.1, unbiased running var).

    While training, statistics are those of the valid rows of the global batch, or of groups of its
    rows, whatever the number of devices. Statistics are computed in float32.

    Attributes:
      use_running_average: normalise with the stored statistics and leave them alone.
      group_images: consecutive rows that share statistics, as a device's images do in the published
        pre-training; the running statistics then move by the mean over the groups that have a valid
        row. None is the global batch.
      momentum: weight of the new statistics in the running ones.
      epsilon: added to the variance.
      scale_init: initialiser of the scale.
      dtype: compute type.
    """

    use_running_average: bool
    group_images: int | None = None
    momentum: float = 0.1
    epsilon: float = 1e-5
    scale_init: Callable = nn.initializers.ones
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, row_mask: Array | None = None) -> Array:
        """(B, H, W, C) to the same; `row_mask` (B,) bool tells which rows count.

        Raises:
          InputError: groups do not divide the batch.
        """
        channels = (x.shape[-1],)
        mean_var = self.variable("batch_stats", "mean", jnp.zeros, channels)
        var_var = self.variable("batch_stats", "var", jnp.ones, channels)
        scale = self.param("scale", self.scale_init, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        shape = x.shape
        if self.use_running_average:
            mean, var = mean_var.value, var_var.value
        else:
            if self.group_images is not None:
                x, row_mask = _in_groups(x, row_mask, self.group_images)
            mean, var, count = _batch_statistics(x, row_mask)
            if not self.is_initializing():
                unbiased = var * (count / jnp.maximum(count - 1, 1))[..., None]
                for stored, new in ((mean_var, mean), (var_var, unbiased)):
                    stored.value = self._moved(stored.value, new, count)
            if row_mask is not None:
                # Rows that do not count must stay finite even so: dozens of layers that divide by
                # a variance of 0 would make infinities of them, whose gradient is NaN under any
                # mask.
                counts = count[..., None] > 0
                mean = jnp.where(counts, mean, mean_var.value)
                var = jnp.where(counts, var, var_var.value)
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        offset = bias - mean * factor
        if mean.ndim > 1:
            factor, offset = factor[:, None, None, None], offset[:, None, None, None]
        dtype = self.dtype or jnp.promote_types(x.dtype, jnp.float32)
        return (x * factor + offset).astype(dtype).reshape(shape)

    def _moved(self, stored: Array, new: Array, count: Array) -> Array:
        """The running statistic (C,) after a batch with `new` ones, (C,) or (groups, C)."""
        if new.ndim > 1:
            groups = jnp.sum(count > 0)
            new = jnp.sum(jnp.where(count[:, None] > 0, new, 0.0), axis=0) / jnp.maximum(groups, 1)
            count = groups
        moved = (1.0 - self.momentum) * stored + self.momentum * new
        # A (micro-)batch without a valid row has no statistics to add.
        return jnp.where(count > 0, moved, stored)


def _in_groups(x: Array, row_mask: Array | None, size: int) -> tuple[Array, Array | None]:
    """(B, ...) and (B,) to (groups, size, ...) and (groups, size)."""
    if x.shape[0] % size:
        raise InputError(
            f"BatchNorm: groups of {size} images do not divide the batch of {x.shape[0]}; "
            "choose a group size that does"
        )
    groups = x.shape[0] // size
    mask = None if row_mask is None else row_mask.reshape(groups, size)
    return x.reshape(groups, size, *x.shape[1:]), mask


def _batch_statistics(x: Array, row_mask: Array | None) -> tuple[Array, Array, Array]:
    """Mean, biased variance (..., C) and count (...) over rows and space of (..., B, H, W, C)."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if row_mask is None:
        weight = jnp.ones((*x.shape[:-3], 1, 1, 1), x.dtype)
    else:
        weight = row_mask.astype(x.dtype)[..., None, None, None]
    axes = (-4, -3, -2)
    count = jnp.sum(weight, axis=(*axes, -1)) * (x.shape[-3] * x.shape[-2])
    divisor = jnp.maximum(count, 1.0)[..., None]
    mean = jnp.sum(x * weight, axis=axes) / divisor
    centered = x - mean[..., None, None, None, :]
    var = jnp.sum(jnp.square(centered) * weight, axis=axes) / divisor
    return mean, var, count


class GroupNorm(nn.Module):
    """Group normalisation with eps 1e-5; statistics in float32.

    Attributes:
      num_groups: groups; the channels must divide by it.
      dtype: compute type.
    """

    num_groups: int = 32
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, H, W, C) to the same."""
        if x.shape[-1] % self.num_groups:
            raise InputError(
                f"GroupNorm: {x.shape[-1]} channels do not divide into {self.num_groups} groups; "
                "choose a channel count that is a multiple"
            )
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        normalized = group_norm(x, scale, bias, self.num_groups, 1e-5)
        return normalized.astype(self.dtype or normalized.dtype)


class ConvNormRelu(nn.Module):
    """The heads' block: 3x3 (or 1x1) convolution without bias, GroupNorm, ReLU.

    Weights are drawn from N(0, 0.01^2), as published.

    Attributes:
      features: output channels.
      kernel_size: 3 or 1.
      num_groups: of the GroupNorm.
      deformable: "none", "v1" or "v2", see `conv_class`.
      dtype: compute type.
    """

    features: int
    kernel_size: int = 3
    num_groups: int = 32
    deformable: str = "none"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, h, w, C) to (B, h, w, features)."""
        x = conv_class(self.deformable)(
            self.features,
            self.kernel_size,
            use_bias=False,
            kernel_init=nn.initializers.normal(0.01),
            dtype=self.dtype,
            name="conv",
        )(x)
        x = GroupNorm(self.num_groups, dtype=self.dtype, name="norm")(x)
        return nn.relu(x)


def backbone_norm(
    x: Array,
    kind: str,
    *,
    name: str,
    train: bool,
    row_mask: Array | None,
    dtype: Any,
    bn_group_images: int | None = None,
) -> Array:
    """Normalises inside a compact module, by the name of the norm.

    Args:
      x: (B, H, W, C).
      kind: "frozen_batch_norm" (stored statistics, affine parameters train), "batch_norm"
        (statistics of the batch while training) or "group_norm".
      name: of the submodule.
      train: whether batch statistics may be used.
      row_mask: (B,) rows that count in them.
      dtype: compute type.
      bn_group_images: of `BatchNorm`: rows that share statistics.

    Raises:
      InputError: on another kind.
    """
    if kind == "group_norm":
        return GroupNorm(dtype=dtype, name=name)(x)
    if kind not in NORMS:
        raise InputError(f"backbone norm {kind!r} is unknown; use one of {', '.join(NORMS)}")
    running = kind == "frozen_batch_norm" or not train
    norm = BatchNorm(running, group_images=bn_group_images, dtype=dtype, name=name)
    return norm(x, row_mask)


def max_pool_3x3(x: Array) -> Array:
    """3x3 maxima with stride 2 and padding 1: (B, H, W, C) to (B, ceil(H / 2), ceil(W / 2), C).

    Written as maxima of shifted slices, because the gradient of a windowed maximum is a scatter,
    which CPUs run on one thread. Where pixels tie, they share the gradient.
    """
    return _max_of_three(_max_of_three(x, 1), 2)


def _max_of_three(x: Array, axis: int) -> Array:
    length = x.shape[axis]
    padding = [(0, 0)] * x.ndim
    padding[axis] = (1, 1)
    padded = jnp.pad(x, padding, constant_values=-jnp.inf)
    slices = [
        jax.lax.slice_in_dim(padded, start, start + length, stride=2, axis=axis)
        for start in range(3)
    ]
    return jnp.maximum(jnp.maximum(slices[0], slices[1]), slices[2])
