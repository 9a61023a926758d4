"""Free Mask: coarse object masks out of the features of a backbone, without any label.

Thesis 6.2.2, equations 6.1 to 6.3: every cell of the feature map, and of smaller copies of it, is a
query; its cosine similarity with all cells, stretched to [0, 1], is a soft mask. Masks are ranked
by their maskness and thinned out by Matrix NMS.

Images of a batch share a canvas and differ in how many cells they fill. What lies beyond an image's
cells is neither query nor key, and a query reads cells of its own image alone, so that an image has
the masks that it would have in a batch of its own. The published code runs image by image, on maps
without any such cells.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from solojax.errors import InputError
from solojax.ops.images import valid_pixels
from solojax.ops.masks import mask_area, mask_iou, maskness
from solojax.ops.nms import matrix_nms
from solojax.ops.picking import pick_rows
from solojax.ops.resize import bilinear_weights
from solojax.ops.vectors import l2_normalize
from solojax.structures import Array


@dataclasses.dataclass(frozen=True)
class FreeMaskSettings:
    """Settings of Free Mask; the defaults are the published ones.

    Attributes:
      scales: of the copies of the map that the queries come from, each in (0, 1].
      mask_threshold: from which on a cell belongs to a soft mask.
      min_cells: a mask needs more cells than this.
      nms_kernel: of Matrix NMS, "gaussian" or "linear".
      nms_sigma: of the Gaussian kernel, in exp(-sigma iou^2).
      max_masks: M, masks of an image.
      embedding_size: E, numbers to which a query is shortened.
    """

    scales: tuple[float, ...] = (1.0, 0.5, 0.25)
    mask_threshold: float = 0.5
    min_cells: int = 1
    nms_kernel: str = "gaussian"
    nms_sigma: float = 2.0
    max_masks: int = 20
    embedding_size: int = 128

    def __post_init__(self):
        if not self.scales or not all(0 < scale <= 1 for scale in self.scales):
            raise InputError(
                f"Free Mask scales {self.scales}: give one or more numbers above 0 and up to 1"
            )
        if min(self.max_masks, self.embedding_size) < 1:
            raise InputError(
                f"Free Mask max_masks {self.max_masks} and embedding_size {self.embedding_size} "
                "must be at least 1"
            )


@struct.dataclass
class FreeMasks:
    """Masks of a batch, score-descending, padded to a fixed number M."""

    scores: Array  # (B, M) float32, maskness after Matrix NMS, 0 where invalid
    masks: Array  # (B, M, h, w) float32 in [0, 1], 0 beyond the image's cells
    embeddings: Array  # (B, M, E) float32, of the masks' queries
    valid: Array  # (B, M) bool


def find_free_masks(features: Array, cells: Array, settings: FreeMaskSettings) -> FreeMasks:
    """The masks of every image, at the resolution of the features.

    Args:
      features: (B, h, w, C), a map of the backbone; whatever lies beyond an image's cells.
      cells: (B, 2) int32, (rows, columns) that an image fills from the upper left corner; a row of
        zeros, which stands for no image, has no masks.
      settings: thresholds and sizes.

    Returns:
      The best `settings.max_masks` by the decayed maskness. Of equal scores the query that comes
      first goes first: by scale, then row by row.
    """
    inside = valid_pixels(*features.shape[1:3], cells)
    features = jnp.where(inside[..., None], features.astype(jnp.float32), 0.0)
    queries, has_query = pyramid_queries(features, cells, settings.scales)
    soft = query_masks(queries, features, inside)
    binary = (soft >= settings.mask_threshold) & inside[:, None]
    candidate = has_query & (mask_area(binary) > settings.min_cells)
    scores = jnp.where(candidate, maskness(soft, binary), 0.0)

    order = jnp.argsort(-scores, axis=1, stable=True)
    scores, binary = pick_rows(scores, order), pick_rows(binary, order)
    scores = matrix_nms(
        mask_iou(binary, binary),
        jnp.zeros(scores.shape, jnp.int32),
        scores,
        scores > 0,
        kernel=settings.nms_kernel,
        sigma=settings.nms_sigma,
    )
    scores, best = jax.lax.top_k(scores, min(settings.max_masks, scores.shape[1]))
    order = jnp.take_along_axis(order, best, axis=1)
    found = FreeMasks(
        scores=scores,
        masks=jnp.where((scores > 0)[..., None, None], pick_rows(soft, order), 0.0),
        embeddings=shorten(pick_rows(queries, order), settings.embedding_size),
        valid=scores > 0,
    )
    short = settings.max_masks - scores.shape[1]
    return jax.tree.map(lambda x: jnp.pad(x, [(0, 0), (0, short)] + [(0, 0)] * (x.ndim - 2)), found)


def count_queries(cells: tuple[int, int], scales: tuple[float, ...]) -> int:
    """Q, the queries of a canvas of (rows, columns) cells at all scales together."""
    return sum(math.prod(_query_grid(cells, scale)) for scale in scales)


def search_bytes(cells: tuple[int, int], scales: tuple[float, ...]) -> int:
    """About how much memory `find_free_masks` takes for an image, mostly for its masks.

    Counted are four float32 of every query and cell (similarities and soft masks, the binary ones
    as numbers) and one of every two queries (IoU). Where these outweigh the features, XLA takes
    from 14% less to 16% more of a CPU, and about half of a TPU, where it merges more.

    Args:
      cells: (rows, columns) of the canvas.
      scales: see `pyramid_queries`.
    """
    queries = count_queries(cells, scales)
    return 4 * queries * (4 * math.prod(cells) + queries)


def _query_grid(cells: tuple[int, int], scale: float) -> tuple[int, int]:
    """(rows, columns) of the queries of a canvas at one scale."""
    rows, columns = (max(int(n * scale), 1) for n in cells)
    return rows, columns


def pyramid_queries(
    features: Array, cells: Array, scales: tuple[float, ...]
) -> tuple[Array, Array]:
    """Queries on the unit sphere, from the map resized by every scale (thesis 6.2.2).

    An image of n cells along an axis has floor(n scale) queries along it, 1 / scale cells apart,
    as the published code has them; since no scale exceeds 1, none reads a cell beyond the image.

    Args:
      features: (B, h, w, C) float32.
      cells: (B, 2) int32, see `find_free_masks`.
      scales: each in (0, 1]. One at which the canvas has no query gives one that is no image's.

    Returns:
      (B, Q, C), Q > 0, and whether the image has that query (B, Q): scale by scale, row by row.
    """
    batch, height, width, channels = features.shape
    queries, valid = [], []
    for scale in scales:
        rows, columns = _query_grid((height, width), scale)
        resized = features
        if scale != 1:
            resized = jnp.einsum(
                "Hh,bhwc,Ww->bHWc",
                bilinear_weights(rows, height, step=1 / scale),
                features,
                bilinear_weights(columns, width, step=1 / scale),
                precision=jax.lax.Precision.HIGHEST,
            )
        # Counted by NumPy, since float32 rounds some products to the other side of a whole number.
        counts = np.array([int(n * scale) for n in range(max(height, width) + 1)], np.int32)
        queries.append(resized.reshape(batch, -1, channels))
        valid.append(valid_pixels(rows, columns, jnp.asarray(counts)[cells]).reshape(batch, -1))
    return l2_normalize(jnp.concatenate(queries, 1)), jnp.concatenate(valid, 1)


def query_masks(queries: Array, features: Array, inside: Array) -> Array:
    """Soft masks: cosine similarity of queries and cells (equation 6.2), stretched to [0, 1].

    Each query is a 1x1 convolution over the normalised features, all of them one matrix product, in
    float32 at highest precision: the stretch would enlarge rounding.

    Args:
      queries: (B, Q, C) on the unit sphere.
      features: (B, h, w, C) float32.
      inside: (B, h, w) bool, cells of the image; least and greatest similarity are theirs.

    Returns:
      (B, Q, h, w) float32, 0 beyond the image; where a query is equally similar to all cells, 0.
    """
    keys = l2_normalize(features)
    similarity = jnp.einsum("bqc,bhwc->bqhw", queries, keys, precision=jax.lax.Precision.HIGHEST)
    inside = inside[:, None]
    low = jnp.min(jnp.where(inside, similarity, jnp.inf), axis=(-2, -1), keepdims=True)
    high = jnp.max(jnp.where(inside, similarity, -jnp.inf), axis=(-2, -1), keepdims=True)
    spread = high - low
    return jnp.where(inside & (spread > 0), (similarity - low) / spread, 0.0)


def shorten(queries: Array, size: int) -> Array:
    """Embeddings (..., E) of queries (..., C): linear interpolation along the channels.

    The published code shortens the normalised query, and does not normalise again.
    """
    weights = bilinear_weights(size, queries.shape[-1])
    return jnp.einsum("Ec,...c->...E", weights, queries, precision=jax.lax.Precision.HIGHEST)
