"""Shuffling BatchNorm: rows change their groups before the key encoder and go back after it.

BatchNorm over groups of images tells every image something of its group. Were a query and its key
normalised among the same images, the encoders could find each other by that alone (He et al. 2020,
section 3.3). The published systems permute the whole batch, for which every device needs all of it.
Here rows are permuted within their group, dealt out evenly to all groups (a transposition) and
permuted within the new group. Groups belong to the global batch, not to devices: the result does
not depend on how many there are. Where rows and groups are powers of two, as devices are, each
device sends and receives no more than its own rows and, where a group spans several devices, its
group's.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from solojax.errors import InputError
from solojax.structures import Array, PyTree


@dataclasses.dataclass(frozen=True)
class GroupShuffle:
    """Permutes rows across groups, see the module.

    Attributes:
      group: rows of a group; divides the batch.
      sharding: see `shuffle_rows`.
    """

    group: int
    sharding: NamedSharding | None = None

    def shuffle(self, rows: PyTree, key: Array) -> PyTree:
        """`shuffle_rows` of every array (B, ...)."""
        return jax.tree.map(lambda x: shuffle_rows(x, key, self.group, self.sharding), rows)

    def unshuffle(self, rows: PyTree, key: Array) -> PyTree:
        """Undoes `shuffle` with the same key."""
        return jax.tree.map(lambda x: unshuffle_rows(x, key, self.group, self.sharding), rows)


@dataclasses.dataclass(frozen=True)
class FixedShuffle:
    """The same permutation in every step, such as a recorded one.

    Attributes:
      permutation: B row indices; row i of the result is row `permutation[i]`.
    """

    permutation: tuple[int, ...]

    def shuffle(self, rows: PyTree, key: Array) -> PyTree:
        """`permute_rows` of every array (B, ...); the key is not used."""
        del key
        permutation = jnp.asarray(self.permutation)
        return jax.tree.map(lambda x: permute_rows(x, permutation), rows)

    def unshuffle(self, rows: PyTree, key: Array) -> PyTree:
        """Undoes `shuffle`."""
        del key
        inverse = jnp.argsort(jnp.asarray(self.permutation))
        return jax.tree.map(lambda x: permute_rows(x, inverse), rows)


def shuffle_rows(x: Array, key: Array, group: int, sharding: NamedSharding | None = None) -> Array:
    """Deals the rows of every group out to all groups, in random order before and after.

    Every new group has of every old one either floor or ceil of `group` / groups rows.

    Args:
      x: (B, ...).
      key: of the permutations.
      group: rows of a group.
      sharding: how rows are spread over devices. It changes no number: without it XLA is free to
        spread what is in between otherwise, and sometimes gathers the batch.

    Returns:
      (B, ...) with its rows in another order.

    Raises:
      InputError: `group` does not divide B.
    """
    groups = _count_groups(x.shape[0], group)
    before, after = _orders(key, groups, group, sharding)
    x = _reorder(x, before, sharding)
    dealt = x.reshape(groups, group, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)
    return _reorder(_placed(dealt, sharding), after, sharding)


def unshuffle_rows(
    x: Array, key: Array, group: int, sharding: NamedSharding | None = None
) -> Array:
    """Undoes `shuffle_rows` with the same arguments."""
    groups = _count_groups(x.shape[0], group)
    orders = jnp.stack(_orders(key, groups, group, sharding))
    before, after = _everywhere(jnp.argsort(orders, axis=2), sharding)
    x = _reorder(x, after, sharding)
    gathered = x.reshape(group, groups, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)
    return _reorder(_placed(gathered, sharding), before, sharding)


def permute_rows(x: Array, permutation: Array) -> Array:
    """Rows in a given order: row i of the result is row `permutation[i]` of x.

    Args:
      x: (B, ...).
      permutation: (B,) integers.
    """
    return jnp.take(x, permutation, axis=0)


def _count_groups(rows: int, group: int) -> int:
    if rows % group:
        raise InputError(
            f"groups of {group} images do not divide the batch of {rows}; choose a group size "
            f"that does, such as {math.gcd(rows, group)}"
        )
    return rows // group


def _orders(
    key: Array, groups: int, group: int, sharding: NamedSharding | None
) -> tuple[Array, Array]:
    """A random order of the rows of every group, for before and after: (groups, group) each."""
    bits = _everywhere(jax.random.bits(key, (2, groups, group)), sharding)
    before, after = _everywhere(jnp.argsort(bits, axis=2), sharding)
    return before, after


def _everywhere(x: Array, sharding: NamedSharding | None) -> Array:
    """So few numbers that each device had better compute them than ask."""
    return _placed(x, None if sharding is None else NamedSharding(sharding.mesh, PartitionSpec()))


def _reorder(x: Array, order: Array, sharding: NamedSharding | None) -> Array:
    """The rows of every group in an order of its own, (groups, group)."""
    grouped = x.reshape(*order.shape, *x.shape[1:])
    taken = jnp.take_along_axis(grouped, order.reshape(*order.shape, *[1] * (x.ndim - 1)), axis=1)
    return _placed(taken.reshape(x.shape), sharding)


def _placed(x: Array, sharding: NamedSharding | None) -> Array:
    return x if sharding is None else jax.lax.with_sharding_constraint(x, sharding)
