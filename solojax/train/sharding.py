"""One mesh over all devices, and where arrays lie on it."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from solojax.errors import InputError
from solojax.structures import PyTree

DATA_AXIS = "data"


def make_mesh(devices=None) -> Mesh:
    """A one-dimensional mesh over the given devices, all of every process by default."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), (DATA_AXIS,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows spread over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch_size(batch_size: int, mesh: Mesh, key: str) -> None:
    """Raises an InputError that names `key` unless the devices divide the batch."""
    if batch_size % mesh.size:
        raise InputError(
            f"{key} {batch_size} does not divide over {mesh.size} devices; "
            f"use a multiple of {mesh.size}, or fewer devices"
        )


def put_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """Makes global arrays of this process's rows (NumPy, contiguous rows of the global batch)."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def prefetch(batches: Iterable[PyTree], mesh: Mesh, depth: int = 2) -> Iterator[tuple]:
    """Yields (host batch, device batch), the copies of the next `depth - 1` already under way."""
    queue = collections.deque()
    for batch in batches:
        queue.append((batch, put_batch(batch, mesh)))
        if len(queue) >= depth:
            yield queue.popleft()
    while queue:
        yield queue.popleft()


def local_rows(arrays: PyTree) -> PyTree:
    """This process's rows of arrays that are spread over axis 0, as NumPy, in global order."""

    def fetch(x: jax.Array) -> np.ndarray:
        if x.is_fully_replicated:
            return np.asarray(x)
        shards = {shard.index[0].start or 0: shard for shard in x.addressable_shards}
        return np.concatenate([np.asarray(shards[start].data) for start in sorted(shards)])

    return jax.tree.map(fetch, arrays)
