"""Deformable convolution with its parameters, and the choice between it and the ordinary one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from solojax.errors import InputError
from solojax.models.convolution import Conv
from solojax.ops.deform_conv import deform_conv
from solojax.structures import Array

DEFORMABLE = ("none", "v1", "v2")


class DeformConv(nn.Module):
    """Deformable convolution whose offsets an ordinary convolution of the same input predicts.

    That convolution is the submodule `offset`, zero at the start, so that training starts from an
    ordinary convolution (version 1) or half of it (version 2: the mask is then sigmoid(0)).
    It gives 2 * k * k channels, (dy, dx) tap by tap, and in version 2 k * k more, the mask before
    the sigmoid. Offsets are computed in float32 at least: they are positions.

    Attributes:
      features: output channels.
      kernel_size: side of the kernel, k.
      stride: of both axes.
      groups: of the channels; offsets are common to all.
      use_bias: whether a bias is added.
      modulated: version 2 instead of 1.
      kernel_init: initialiser of the kernel.
      bias_init: initialiser of the bias.
      dtype: compute type.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    groups: int = 1
    use_bias: bool = True
    modulated: bool = False
    kernel_init: Callable = nn.initializers.lecun_normal()
    bias_init: Callable = nn.initializers.zeros
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, H, W, C) to (B, ceil(H / stride), ceil(W / stride), features)."""
        taps = self.kernel_size**2
        shape = (self.kernel_size, self.kernel_size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", self.bias_init, (self.features,)) if self.use_bias else None
        dtype = nn.dtypes.canonicalize_dtype(x, kernel, bias, dtype=self.dtype)
        x = x.astype(dtype)
        offset = Conv(
            (3 if self.modulated else 2) * taps,
            self.kernel_size,
            self.stride,
            kernel_init=nn.initializers.zeros,
            dtype=jnp.promote_types(x.dtype, jnp.float32),
            name="offset",
        )(x)
        mask = jax.nn.sigmoid(offset[..., 2 * taps :]) if self.modulated else None
        y = deform_conv(
            x,
            offset[..., : 2 * taps],
            kernel,
            mask=mask,
            stride=self.stride,
            groups=self.groups,
        )
        return y if bias is None else (y + bias).astype(dtype)


def conv_class(deformable: str) -> Callable[..., nn.Module]:
    """The convolution that a config means: `Conv` or `DeformConv`.

    Args:
      deformable: "none" (ordinary), "v1" (offsets) or "v2" (offsets and a mask).

    Raises:
      InputError: on another word.
    """
    if deformable not in DEFORMABLE:
        raise InputError(
            f"deformable {deformable!r} is unknown; use one of {', '.join(DEFORMABLE)}"
        )
    if deformable == "none":
        return Conv
    return functools.partial(DeformConv, modulated=deformable == "v2")
