"""The contrastive loss against a queue of negatives, without ever holding all logits."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from solojax.structures import Array


def contrastive_loss(
    query: Array,
    positive: Array,
    negatives: Array,
    temperature: float,
    *,
    negatives_at_once: int = 4096,
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

    Args:
      query: (..., E).
      positive: (..., E).
      negatives: (Q, E), read by every query. A part takes every n-th vector, so that a queue that
        is spread over devices stays where it is.
      temperature: divides the cosines.
      negatives_at_once: the most of Q that are read together.

    Returns:
      The loss (...) of every query, and whether its positive has the largest logit, (...) bool.
    """
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    query, positive, negatives = (x.astype(dtype) for x in (query, positive, negatives))
    positive, negatives = map(jax.lax.stop_gradient, (positive, negatives))
    scaled = query / temperature
    own = jnp.sum(scaled * positive, axis=-1)
    parts = _count_parts(negatives.shape[0], negatives_at_once)
    others, largest = _negative_logits(scaled, negatives, parts)
    # The difference first, since logits may be large beside the logarithm.
    return jax.nn.softplus(others + (jax.lax.stop_gradient(largest) - own)), own > largest


def _count_parts(length: int, at_once: int) -> int:
    """Parts of equal length, of at most `at_once`."""
    return next(n for n in range(1, length + 1) if length % n == 0 and length // n <= at_once)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _negative_logits(query: Array, negatives: Array, parts: int) -> tuple[Array, Array]:
    """Log of the sum of exp(logit - largest), and the largest logit, of every query: (...) each.

    The first has the gradient of their sum, by the query alone, and the second none.
    """
    return _forward(query, negatives, parts)[0]


def _forward(query: Array, negatives: Array, parts: int):
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
    (largest, total, vectors_sum), _ = jax.lax.scan(add, start, jnp.arange(parts))
    return (jnp.log(total), largest), vectors_sum / total[..., None]


def _backward(parts: int, mean: Array, gradients: tuple[Array, Array]):
    del parts
    return gradients[0][..., None] * mean, None


_negative_logits.defvjp(_forward, _backward)


def _part(negatives: Array, parts: int, part: Array) -> Array:
    """Every `parts`-th vector, from vector `part` on."""
    table = negatives.reshape(-1, parts, negatives.shape[1])
    return jax.lax.dynamic_index_in_dim(table, part, axis=1, keepdims=False)
