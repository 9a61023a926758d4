"""Losses on coarse masks and extracted embeddings (thesis 6.2.3), one value a mask or vector."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from solojax.losses.dice import dice_loss
from solojax.ops.neighbors import neighbor_offsets
from solojax.ops.vectors import l2_normalize
from solojax.structures import Array


def projection_loss(
    predicted: tuple[Array, Array], wanted: tuple[Array, Array], *, epsilon: float = 1e-5
) -> Array:
    """Dice between the projections of two masks on either axis, summed (equations 6.4 and 6.5).

    Args:
      predicted: (..., w) and (..., h) in [0, 1], from `project_max` or `project_mean`.
      wanted: the same of the coarse masks.
      epsilon: added once to the sum of both squared sums, as the published code does.

    Returns:
      (...) in [0, 2].
    """
    pairs = zip(predicted, wanted, strict=True)
    return sum(
        dice_loss(ours[..., None, :], theirs[..., None, :], epsilon=0.5 * epsilon)
        for ours, theirs in pairs
    )


@functools.partial(jax.custom_vjp, nondiff_argnames=("dilation",))
def pairwise_loss(
    logits: Array, edges: Array, columns: Array, rows: Array, dilation: int = 2
) -> Array:
    """Sums, over the edges that start in each mask's box, of what speaks against the edge.

    That is -log of the probability that both pixels are in the foreground or both in the
    background, taken as independent (Tian et al. 2021, equation 4), in logarithms throughout.

    The pixels p and q have one term between them, and are an edge from p to q and from q to p: the
    terms of half of the directions are computed, and each is weighed with both edges. None of them
    is kept for the gradient, which is written out below.

    Args:
      logits: (B, P, h, w).
      edges: (B, 8, h, w) bool, from every pixel to its neighbours; none leads out of the map.
      columns: (B, P, w) bool, those in which the coarse mask has a pixel: with `rows` its box, less
        what a gap through all of the mask leaves out, as published.
      rows: (B, P, h) bool, likewise.
      dilation: distance of the neighbours.

    Returns:
      (B, P) sums; `count_edges` has the number of their terms.
    """
    offsets = neighbor_offsets(3, dilation)
    inside, outside = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    box = rows[..., :, None] & columns[..., None, :]
    total = 0.0
    for index in range(len(offsets) // 2, len(offsets)):
        here, there = _overlap(offsets[index], logits.shape[-2:])
        term = -jnp.logaddexp(inside[here] + inside[there], outside[here] + outside[there])
        forth, back = edges[:, None, index], edges[:, None, -1 - index]
        count = (forth[here] & box[here]).astype(term.dtype)
        count += (back[there] & box[there]).astype(term.dtype)
        total += jnp.sum(term * count, axis=(-2, -1))
    return total


def _pairwise_forward(logits, edges, columns, rows, dilation):
    return pairwise_loss(logits, edges, columns, rows, dilation), (logits, edges, columns, rows)


def _pairwise_backward(dilation, kept, cotangent):
    """The term of the logits a and b changes with a by sigmoid(a) - sigmoid(a + b).

    Every pixel gathers the changes by its eight edges, in one pass over the map: what JAX derives
    scatters those of four directions instead, by adding up maps that it pads one by one.
    """
    logits, edges, columns, rows = kept
    height, width = logits.shape[-2:]
    frame = ((dilation, dilation),) * 2
    box = rows[..., :, None] & columns[..., None, :]
    around = jnp.pad(logits, ((0, 0), (0, 0), *frame))
    box_around = jnp.pad(box, ((0, 0), (0, 0), *frame))
    edges_around = jnp.pad(edges, ((0, 0), (0, 0), *frame))
    own = jax.nn.sigmoid(logits)
    gradient = jnp.zeros_like(logits)
    for index, (y, x) in enumerate(neighbor_offsets(3, dilation)):
        top, left = dilation + y, dilation + x
        there = np.s_[..., top : top + height, left : left + width]
        count = (edges[:, None, index] & box).astype(own.dtype)
        back = edges_around[:, None, -1 - index]
        count += (back[there] & box_around[there]).astype(own.dtype)
        gradient += count * (own - jax.nn.sigmoid(logits + around[there]))
    return gradient * cotangent[..., None, None], None, None, None


pairwise_loss.defvjp(_pairwise_forward, _pairwise_backward)


def count_edges(edges: Array, columns: Array, rows: Array) -> Array:
    """How many edges start in each mask's box: the arguments of `pairwise_loss` to (B, P) float32.

    Sums of whole numbers, exact up to 2^24.
    """
    starts = jnp.sum(edges, axis=1, dtype=jnp.float32)
    per_row = jnp.einsum(
        "bhw,bpw->bph", starts, columns.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
    )
    return jnp.sum(per_row * rows, axis=-1)


def embedding_loss(predicted: Array, wanted: Array) -> Array:
    """1 - cosine of vectors (..., E): (...) in [0, 2] (equation 6.7)."""
    return 1.0 - jnp.sum(l2_normalize(predicted) * l2_normalize(wanted), axis=-1)


def _overlap(offset: tuple[int, int], size: tuple[int, int]) -> tuple[tuple, tuple]:
    """Index of the pixels whose neighbour at `offset` is inside the map, and of that neighbour."""
    here, there = [...], [...]
    for step, length in zip(offset, size, strict=True):
        here.append(slice(max(-step, 0), length - max(step, 0)))
        there.append(slice(max(step, 0), length - max(-step, 0)))
    return tuple(here), tuple(there)
