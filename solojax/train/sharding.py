"""One mesh over all devices, and where arrays lie on it."""

from __future__ import annotations

import collections
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from solojax.errors import InputError
from solojax.structures import PyTree
from solojax.train.state import TrainState

DATA_AXIS = "data"
# Of all processes together: what is gathered passes through the devices, where the state lies too.
_GATHERED_AT_ONCE = 64 * 2**20


def make_mesh(devices=None) -> Mesh:
    """A one-dimensional mesh over the given devices, all of every process by default.

    All of them stand process by process, since a process reads contiguous rows of a batch.
    """
    if devices is None:
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.asarray(devices), (DATA_AXIS,))


def evaluation_mesh(batch_size: int) -> Mesh:
    """A mesh over every process, of as many devices of each as divide its part of a batch.

    Raises:
      InputError: the processes do not divide the batch.
    """
    processes = jax.process_count()
    if batch_size % processes:
        raise InputError(
            f"evaluation.batch_size {batch_size} does not divide over {processes} processes; "
            f"use a multiple of {processes}"
        )
    rows = batch_size // processes
    count = max(n for n in range(1, jax.local_device_count() + 1) if rows % n == 0)
    devices = make_mesh().devices.reshape(processes, -1)
    return make_mesh(devices[:, :count].reshape(-1))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows spread over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def spread(shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """Spreads an array's largest axis that the devices divide; replicated if there is none.

    Vectors (norms and biases) stay whole: they hold little, and each would be sent by itself.
    """
    divided = [axis for axis, size in enumerate(shape) if size and size % mesh.size == 0]
    if len(shape) < 2 or not divided:
        return replicated(mesh)
    largest = max(divided, key=lambda axis: (shape[axis], -axis))
    return NamedSharding(mesh, PartitionSpec(*[None] * largest, DATA_AXIS))


def state_sharding(
    state: TrainState,
    mesh: Mesh,
    shard_optimizer: bool,
    is_spread: Callable[[tuple[str, ...]], bool] | None = None,
) -> TrainState:
    """Where the arrays of a training state lie: the sharding of each.

    Parameters and all else that the network computes with are on every device. Of the optimizer's
    state each device keeps a part if `shard_optimizer` (the first stage of ZeRO, Rajbhandari et
    al. 2020, arXiv:1910.02054), see `spread`.

    Args:
      state: arrays or `jax.ShapeDtypeStruct`s.
      mesh: the devices.
      shard_optimizer: whether the optimizer's state is spread.
      is_spread: which arrays of `extra`, by their path, lie spread along their first axis, which
        the devices divide: the task's own, where it has one. None: none of them.
    """

    def place(path, leaf):
        del leaf
        names = tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
        return batch_sharding(mesh) if is_spread(names) else replicated(mesh)

    shardings = jax.tree.map(lambda _: replicated(mesh), state)
    if is_spread is not None:
        shardings = shardings.replace(extra=jax.tree_util.tree_map_with_path(place, state.extra))
    if not shard_optimizer:
        return shardings
    return shardings.replace(
        opt_state=jax.tree.map(lambda leaf: spread(leaf.shape, mesh), state.opt_state)
    )


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Puts arrays on every device of the mesh.

    Args:
      tree: of NumPy arrays or of arrays that every process has whole, equal on all processes.
      mesh: may leave out devices on which the arrays lie now.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, replicated(mesh))
    return jax.tree.map(lambda x: _replicate_leaf(x, replicated(mesh)), tree)


def _replicate_leaf(x: jax.Array | np.ndarray, sharding: NamedSharding) -> jax.Array:
    if isinstance(x, jax.Array) and x.sharding.is_equivalent_to(sharding, x.ndim):
        return x
    # Not jax.device_put, which has all processes compare their copies first.
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


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


def gather_json(obj: Any, bytes_at_once: int = _GATHERED_AT_ONCE) -> list[Any]:
    """The object of every process, by process index; all processes must call it together.

    What is given comes back as json has it: tuples as lists, keys of dicts as text, floats to the
    last bit. A single process gets its object itself.

    Args:
      obj: anything that json holds.
      bytes_at_once: how much is gathered in one go; longer texts take several.
    """
    processes = jax.process_count()
    if processes == 1:
        return [obj]
    text = np.frombuffer(json.dumps(obj).encode(), np.uint8)
    # As bytes, since arrays of int64 lose their upper half on the way.
    lengths = multihost_utils.process_allgather(np.array([text.size], np.int64).view(np.uint8))
    lengths = lengths.view(np.int64)[:, 0]
    # One of few sizes, each of which is a program to compile.
    size = min(max(bytes_at_once // processes, 1), 1 << int(lengths.max() - 1).bit_length())
    pieces = []
    for start in range(0, int(lengths.max()), size):
        piece = np.zeros(size, np.uint8)
        part = text[start : start + size]
        piece[: part.size] = part
        pieces.append(multihost_utils.process_allgather(piece))
    texts = np.concatenate(pieces, axis=1)
    return [
        json.loads(each[:length].tobytes()) for each, length in zip(texts, lengths, strict=True)
    ]
