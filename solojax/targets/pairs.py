"""Positive (cell, instance) pairs, as the groups of a network's masks need them."""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct

from solojax.structures import Array, GridTargets


@struct.dataclass
class Pairs:
    """Pairs whose cells belong to one group of masks."""

    cells: Array  # (B, P') int32, counted from the group's first cell
    instances: Array  # (B, P') int32 in [0, N)
    valid: Array  # (B, P') bool


def group_pairs(targets: GridTargets, offset: int, count: int, limit: int) -> Pairs:
    """The pairs with cells in offset .. offset + count - 1, in their order.

    Args:
      targets: pairs of all cells.
      offset: first cell of the group.
      count: cells of the group.
      limit: P', that no image has more of such pairs than; `count` where every cell has one pair
        at most.

    Returns:
      Pairs in min(P', P) places; those not used have cell and instance 0.
    """
    cells = targets.cells - offset
    instances = targets.instances
    member = targets.valid & (cells >= 0) & (cells < count)
    if limit < member.shape[1]:
        order = jnp.argsort(~member, axis=1, stable=True)[:, :limit]
        cells, instances, member = (
            jnp.take_along_axis(x, order, axis=1) for x in (cells, instances, member)
        )
    return Pairs(
        cells=jnp.where(member, cells, 0),
        instances=jnp.where(member, instances, 0),
        valid=member,
    )
