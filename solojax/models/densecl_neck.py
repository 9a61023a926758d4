"""The two projection heads of DenseCL (thesis 5.2.2); MoCo-v2 has the global one alone."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax import struct

from solojax.models.convolution import Conv, Linear
from solojax.ops.pooling import adaptive_average_pool
from solojax.structures import Array

# Normal with variance 2 / fan-in, as both heads of the published systems start.
_KAIMING = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


@struct.dataclass
class ContrastiveEmbeddings:
    """What the projection heads make of a view; of any length, the losses normalise.

    Without a dense head `grid` and `pooled` are None.
    """

    vector: Array  # (B, E), of the whole view
    grid: Array | None = None  # (B, S_h * S_w, E), of its cells in row-major order
    pooled: Array | None = None  # (B, E), mean of `grid`: what other images' cells are told from


class DenseCLNeck(nn.Module):
    """Global head: average pool, linear, ReLU, linear. Dense head: pool to a grid, then the same.

    Parameters are global_0, global_1 (linear layers) and dense_0, dense_1 (1x1 convolutions), which
    `solojax.interop.contrastive` knows as mlp.0, mlp.2, mlp2.0 and mlp2.2.

    Attributes:
      hidden: width between the two layers of either head.
      out: E.
      grid: (S_h, S_w) of the dense head; None keeps the map's size.
      dense: whether there is a dense head; without it none of its cost remains.
      dtype: compute type.
    """

    hidden: int = 2048
    out: int = 128
    grid: tuple[int, int] | None = None
    dense: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, features: Array) -> ContrastiveEmbeddings:
        """(B, h, w, C) of the backbone's last stage to embeddings."""

        def linear(width, name):
            return Linear(width, kernel_init=_KAIMING, dtype=self.dtype, name=name)

        def cellwise(width, name):
            return Conv(width, 1, kernel_init=_KAIMING, dtype=self.dtype, name=name)

        mean = _mean(features, (1, 2))
        vector = linear(self.out, "global_1")(nn.relu(linear(self.hidden, "global_0")(mean)))
        if not self.dense:
            return ContrastiveEmbeddings(vector)
        cells = features if self.grid is None else adaptive_average_pool(features, self.grid)
        cells = cellwise(self.out, "dense_1")(nn.relu(cellwise(self.hidden, "dense_0")(cells)))
        grid = cells.reshape(cells.shape[0], -1, self.out)
        return ContrastiveEmbeddings(vector, grid, _mean(grid, (1,)))


def _mean(x: Array, axes: tuple[int, ...]) -> Array:
    """Mean in float32 at least, in x's type."""
    exact = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.mean(x, axis=axes, dtype=exact).astype(x.dtype)
