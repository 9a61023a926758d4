"""Feature pyramid network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn

from solojax.models.layers import Conv
from solojax.ops.resize import upsample_nearest_2x
from solojax.structures import Array


class FPN(nn.Module):
    """Top-down pyramid: 1x1 laterals, nearest x2, sums, 3x3 outputs, then strided copies.

    Attributes:
      channels: of every output.
      num_outputs: pyramid levels; those beyond the inputs are the last one subsampled by 2.
      dtype: compute type.
    """

    channels: int = 256
    num_outputs: int = 5
    dtype: Any = None

    @nn.compact
    def __call__(self, features: Sequence[Array]) -> tuple[Array, ...]:
        """C2..C5 (strides 4 to 32) to P2..P(num_outputs + 1), finest first."""
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")

        def conv(x, kernel_size, name):
            return Conv(self.channels, kernel_size, kernel_init=init, dtype=self.dtype, name=name)(
                x
            )

        laterals = [conv(x, 1, f"lateral_{i}") for i, x in enumerate(features)]
        merged = [laterals[-1]]
        for lateral in reversed(laterals[:-1]):
            merged.append(lateral + upsample_nearest_2x(merged[-1]))
        outputs = [conv(x, 3, f"output_{i}") for i, x in enumerate(reversed(merged))]
        while len(outputs) < self.num_outputs:
            outputs.append(outputs[-1][:, ::2, ::2])
        return tuple(outputs)
