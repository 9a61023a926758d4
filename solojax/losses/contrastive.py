"""The contrastive loss against a queue of negatives, without ever holding all logits."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from solojax.structures import Array


def contrastive_loss(
    query: Array,
    positive: Array,
    negatives: Array,
    temperature: float,
    *,
    negatives_at_once: int = 4096,
    sharding: NamedSharding | None = None,
) -> tuple[Array, Array]:
    """-log softmax of the positive among positive and negatives (thesis equations 5.1 and 5.2).

    All vectors have length 1. Keys are constants: neither the positive nor the negatives get a
    gradient. Logits are float32 at least, whatever the inputs; their products are taken at JAX's
    default precision, as those of the network are.

    The dense loss has B S^2 queries: with 256 images on a device, S = 7 and a queue of 65,536 all
    logits would be 3.3 GB. The queue is therefore read in parts, of which only the largest logit,
    the sum of exponentials and the negatives' mean under the softmax remain. That mean is the
    gradient, so that logits are computed once and never kept. The peak is queries x
    `negatives_at_once` x 4 bytes, 0.8 MB an image at S = 7 and 0.2 GB for 256 images on a device;
    twice that where XLA does not fuse logits and exponentials.

    Where the queue is spread over n devices it stays where it is: each device reads the queries of
    all against its own part of the queue, the largest logits are compared and the sums, for the
    device's own queries, added up. That sends the queries to all devices and as many numbers back,
    and every device holds both, whatever Q: 6 MB each for 256 images at S = 7 and E = 128, but
    more than a queue of 65,536 from 1,338 images on. The logits' peak stays, for it is a part of
    `negatives_at_once` / n that a device reads at once.

    Args:
      query: (..., E).
      positive: (..., E).
      negatives: (Q, E), read by every query.
      temperature: divides the cosines.
      negatives_at_once: the most of Q that are read together, on all devices.
      sharding: how the negatives are spread over devices, along Q, which they divide; the queries
        are spread along their first axis alike. None where every device has all negatives. It
        changes numbers by the order of sums alone.

    Returns:
      The loss (...) of every query, and whether its positive has the largest logit, (...) bool.
    """
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    query, positive, negatives = (x.astype(dtype) for x in (query, positive, negatives))
    positive, negatives = map(jax.lax.stop_gradient, (positive, negatives))
    scaled = query / temperature
    own = jnp.sum(scaled * positive, axis=-1)
    others, largest = _negative_logits(scaled, negatives, negatives_at_once, sharding)
    # The difference first, since logits may be large beside the logarithm.
    return jax.nn.softplus(others + (jax.lax.stop_gradient(largest) - own)), own > largest


def _count_parts(length: int, at_once: int) -> int:
    """Parts of equal length, of at most `at_once`."""
    return next(n for n in range(1, length + 1) if length % n == 0 and length // n <= at_once)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _negative_logits(
    query: Array, negatives: Array, at_once: int, sharding: NamedSharding | None
) -> tuple[Array, Array]:
    """Log of the sum of exp(logit - largest), and the largest logit, of every query: (...) each.

    The first has the gradient of their sum, by the query alone, and the second none.
    """
    return _forward(query, negatives, at_once, sharding)[0]


def _forward(query: Array, negatives: Array, at_once: int, sharding: NamedSharding | None):
    if sharding is None:
        largest, total, vectors_sum = _sums(query, negatives, at_once)
    else:
        largest, total, vectors_sum = _spread_sums(query, negatives, at_once, sharding)
    return (jnp.log(total), largest), vectors_sum / total[..., None]


def _spread_sums(
    query: Array, negatives: Array, at_once: int, sharding: NamedSharding
) -> tuple[Array, Array, Array]:
    """`_sums` where every device has its part of the queries and of the negatives."""
    axis = sharding.spec[0]

    def own_sums(query: Array, negatives: Array) -> tuple[Array, Array, Array]:
        rows = query.shape[0]
        queries = jax.lax.all_gather(query, axis, tiled=True)
        part_at_once = max(1, at_once // sharding.mesh.size)
        largest, *sums = _sums(queries, negatives, part_at_once)
        top = jax.lax.pmax(largest, axis)
        shrink = jnp.exp(largest - top)
        total, vectors_sum = (
            jax.lax.psum_scatter(part, axis, tiled=True)
            for part in (sums[0] * shrink, sums[1] * shrink[..., None])
        )
        own = jax.lax.axis_index(axis) * rows
        return jax.lax.dynamic_slice_in_dim(top, own, rows), total, vectors_sum

    rows = PartitionSpec(axis)
    spread = jax.shard_map(
        own_sums, mesh=sharding.mesh, in_specs=(rows, rows), out_specs=rows, check_vma=False
    )
    return spread(query, negatives)


def _sums(query: Array, negatives: Array, at_once: int) -> tuple[Array, Array, Array]:
    """The largest logit, the sum of exp(logit - largest), and of the negatives times those.

    (...), (...) and (..., E).
    """
    parts = _count_parts(negatives.shape[0], at_once)

    def add(carry, part):
        largest, total, vectors_sum = carry
        vectors = _part(negatives, parts, part)
        logits = jnp.einsum("...e,ce->...c", query, vectors)
        top = jnp.maximum(largest, jnp.max(logits, axis=-1))
        shrink = jnp.exp(largest - top)
        exponentials = jnp.exp(logits - top[..., None])
        total = total * shrink + jnp.sum(exponentials, axis=-1)
        weighted = jnp.einsum("...c,ce->...e", exponentials, vectors)
        return (top, total, vectors_sum * shrink[..., None] + weighted), None

    nothing = jnp.zeros_like(query[..., 0])
    start = (nothing - jnp.inf, nothing, jnp.zeros_like(query))
    sums, _ = jax.lax.scan(add, start, jnp.arange(parts))
    return sums


def _backward(
    at_once: int, sharding: NamedSharding | None, mean: Array, gradients: tuple[Array, Array]
):
    del at_once, sharding
    return gradients[0][..., None] * mean, None


_negative_logits.defvjp(_forward, _backward)


def _part(negatives: Array, parts: int, part: Array) -> Array:
    """Every `parts`-th vector, from vector `part` on."""
    table = negatives.reshape(-1, parts, negatives.shape[1])
    return jax.lax.dynamic_index_in_dim(table, part, axis=1, keepdims=False)
