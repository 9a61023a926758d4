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
from solojax.structures import Array

NORMS = ("frozen_batch_norm", "batch_norm", "group_norm")


class BatchNorm(nn.Module):
    """Batch normalisation in PyTorch's semantics (eps 1e-5, momentum 0.1, unbiased running var).

    While training, statistics are those of the valid rows of the global batch, whatever the
    number of devices. Statistics are computed in float32.

    Attributes:
      use_running_average: normalise with the stored statistics and leave them alone.
      momentum: weight of the new statistics in the running ones.
      epsilon: added to the variance.
      scale_init: initialiser of the scale.
      dtype: compute type.
    """

    use_running_average: bool
    momentum: float = 0.1
    epsilon: float = 1e-5
    scale_init: Callable = nn.initializers.ones
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, row_mask: Array | None = None) -> Array:
        """(B, H, W, C) to the same; `row_mask` (B,) bool tells which rows count."""
        channels = (x.shape[-1],)
        mean_var = self.variable("batch_stats", "mean", jnp.zeros, channels)
        var_var = self.variable("batch_stats", "var", jnp.ones, channels)
        scale = self.param("scale", self.scale_init, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        if self.use_running_average:
            mean, var = mean_var.value, var_var.value
        else:
            mean, var, count = _batch_statistics(x, row_mask)
            if not self.is_initializing():
                keep, unbiased = 1.0 - self.momentum, var * (count / jnp.maximum(count - 1, 1))
                for stored, new in ((mean_var, mean), (var_var, unbiased)):
                    moved = keep * stored.value + self.momentum * new
                    # A (micro-)batch without a valid row has no statistics to add.
                    stored.value = jnp.where(count > 0, moved, stored.value)
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        offset = bias - mean * factor
        dtype = self.dtype or jnp.promote_types(x.dtype, jnp.float32)
        return (x * factor + offset).astype(dtype)


def _batch_statistics(x: Array, row_mask: Array | None) -> tuple[Array, Array, Array]:
    """Mean, biased variance and count over batch and space, per channel."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if row_mask is None:
        weight = jnp.ones((x.shape[0], 1, 1, 1), x.dtype)
    else:
        weight = row_mask.astype(x.dtype)[:, None, None, None]
    count = jnp.sum(weight) * (x.shape[1] * x.shape[2])
    divisor = jnp.maximum(count, 1.0)
    mean = jnp.sum(x * weight, axis=(0, 1, 2)) / divisor
    var = jnp.sum(jnp.square(x - mean) * weight, axis=(0, 1, 2)) / divisor
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
        exact = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        # Sums over space per channel, and only then over a group's channels: splitting the
        # innermost axis into groups would keep every unit that works on vectors from it.
        centered = exact - self._group_mean(exact)
        inverse = jax.lax.rsqrt(self._group_mean(jnp.square(centered)) + 1e-5)
        normalized = centered * inverse
        dtype = self.dtype or exact.dtype
        return (normalized * scale + bias).astype(dtype)

    def _group_mean(self, x: Array) -> Array:
        """Mean over space and each group's channels: (B, H, W, C) to (B, 1, 1, C)."""
        channels = jnp.mean(x, axis=(1, 2))
        groups = jnp.mean(channels.reshape(x.shape[0], self.num_groups, -1), axis=-1)
        return jnp.repeat(groups, x.shape[-1] // self.num_groups, axis=-1)[:, None, None]


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
    x: Array, kind: str, *, name: str, train: bool, row_mask: Array | None, dtype: Any
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

    Raises:
      InputError: on another kind.
    """
    if kind == "group_norm":
        return GroupNorm(dtype=dtype, name=name)(x)
    if kind not in NORMS:
        raise InputError(f"backbone norm {kind!r} is unknown; use one of {', '.join(NORMS)}")
    running = kind == "frozen_batch_norm" or not train
    return BatchNorm(use_running_average=running, dtype=dtype, name=name)(x, row_mask)


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
