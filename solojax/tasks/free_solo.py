"""Self-supervised SOLO (thesis 6.2.3): SOLOv2 that learns from coarse masks.

`FreeSOLO` takes the keyword arguments of `InstanceSegmentation` and these, with their defaults:

    max_projection_weight=1.0, mean_projection_weight=0.1 (alpha), pairwise_weight=1.0,
    semantic_weight=4.0 (beta), category_weight=1.0, mask_weight=0.0 (full masks, for comparison),
    pairwise_warmup_steps=1000, pairwise_dilation=2, color_threshold=0.3, ignored_bottom_rows=10,
    projection_epsilon=1e-5, semantics="thesis" | "release", augment=None

The head wants `SOLOv2Head(embedding_width=E)`, and a batch `Instances.embeddings` (B, N, E),
unless `semantic_weight` is 0 or `semantics` is "release". The train step hands its whole batch to
`augment` first (`FreeSOLO.prepare`), so that micro-batches are parts of what comes out.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from solojax.errors import InputError
from solojax.losses.weak_supervision import (
    count_edges,
    embedding_loss,
    pairwise_loss,
    projection_loss,
)
from solojax.ops.mask_decoding import count_cells, groups_with_offsets, map_size, mask_logits
from solojax.ops.masks import unpack_masks
from solojax.ops.neighbors import SCALE, image_color_similarity
from solojax.ops.picking import pick_rows
from solojax.ops.projections import project_max, project_mean
from solojax.structures import Array, Batch, GridTargets, Masks, SegmenterOutputs
from solojax.targets.pairs import Pairs, group_pairs
from solojax.tasks.instance_segmentation import (
    InstanceSegmentation,
    group_reciprocal,
    group_totals,
    has_mask,
)

SEMANTICS = ("thesis", "release")


def learns_embeddings(semantics: str, weight: float) -> bool:
    """Whether there is a semantic loss (thesis 6.2.3; the released code has none)."""
    return semantics == "thesis" and weight != 0


@dataclasses.dataclass(frozen=True)
class FreeSOLO(InstanceSegmentation):
    """SOLOv2 with the losses of FreeSOLO as a task; see `solojax.tasks` for the functions.

    The mask losses compare shadows of the masks instead of the masks, and ask pixels of one colour
    to agree. Each is averaged over the positive pairs of a level, and then over the levels that
    have some, as the published code does (the thesis does not say).

    Attributes: those of `InstanceSegmentation`, and
      max_projection_weight: of the Dice between maxima along either axis (equation 6.4).
      mean_projection_weight: of the Dice between means (equation 6.5), alpha.
      pairwise_weight: of the affinity of neighbouring pixels of similar colour.
      semantic_weight: of 1 - cosine of predicted and given embeddings (equation 6.7), beta.
      mask_weight: of the loss `mask_loss` on full masks, with which the thesis compares (Table
        6.7); averaged as the other mask losses.
      pairwise_warmup_steps: steps over which the affinity's weight grows from 0 to 1, linearly.
      pairwise_dilation: distance of the neighbours, in pixels of the masks.
      color_threshold: similarity of colours from which an affinity counts. The colours are those of
        the image that the network reads, before it is normalised: in a row whose colours have been
        changed, the changed ones.
      ignored_bottom_rows: of the image file, whose colours count for nothing.
      projection_epsilon: added to the sum of both squared sums of the Dice losses.
      semantics: "thesis", or "release": the published training throws the semantic loss away.
      augment: what a step makes of its batch before anything else, on the device: copy-paste, the
        strong and the weak view; None leaves it as it is.
    """

    max_projection_weight: float = 1.0
    mean_projection_weight: float = 0.1
    pairwise_weight: float = 1.0
    semantic_weight: float = 4.0
    mask_weight: float = 0.0
    pairwise_warmup_steps: int = 1000
    pairwise_dilation: int = 2
    color_threshold: float = 0.3
    ignored_bottom_rows: int = 10
    projection_epsilon: float = 1e-5
    semantics: str = "thesis"
    augment: Callable[[Batch], Batch] | None = None

    def __post_init__(self):
        if self.semantics not in SEMANTICS:
            raise InputError(
                f"FreeSOLO semantics {self.semantics!r} is unknown; use one of "
                f"{', '.join(SEMANTICS)}"
            )

    @property
    def learns_embeddings(self) -> bool:
        """Whether there is a semantic loss."""
        return learns_embeddings(self.semantics, self.semantic_weight)

    def prepare(self, batch: Batch) -> Batch:
        """What the step learns from: the batch after `augment`."""
        return batch if self.augment is None else self.augment(batch)

    def row_weights(self, batch: Batch) -> dict[str, Array]:
        """What the rows' sums are multiplied by.

        Returns:
          "mask" and "pairwise" (B, L), by the level of a pair's cell: one over the level's pairs,
          or edges, and over the number of levels with pairs. "category" (B,), one over the number
          of positive cells + 1, and "semantic" (B,), one over that number. All counts are those of
          a row's group of `loss_group_images` images.
        """
        category = super().row_weights(batch)["category"]
        targets = self.targets(batch)
        size = self.loss_group_images or batch.valid.shape[0]
        supervised = targets.valid & has_mask(batch.instances, targets.instances)
        levels = self._level_of(targets.cells)[..., None] == jnp.arange(self.grid.num_levels)
        levels = (levels & supervised[..., None]).astype(jnp.float32)
        columns, rows = project_max(self._coarse_masks(batch))
        edges = count_edges(self._edges(batch), columns, rows)
        edges = jnp.take_along_axis(edges, targets.instances, axis=1)
        pairs = jnp.sum(levels, axis=1)
        used = jnp.sum(group_totals(pairs, size) > 0, axis=1, keepdims=True)
        share = 1.0 / jnp.maximum(used, 1).astype(jnp.float32)
        cells = jnp.sum(targets.owner >= 0, axis=1, dtype=jnp.float32)
        return {
            "mask": share * group_reciprocal(pairs, size, 0.0),
            "pairwise": share
            * group_reciprocal(jnp.sum(levels * edges[..., None], axis=1), size, 0.0),
            "category": category,
            "semantic": group_reciprocal(cells, size, 0.0),
        }

    def loss_terms(
        self,
        outputs: SegmenterOutputs,
        targets: GridTargets,
        batch: Batch,
        weights: dict[str, Array],
        state: Any,
    ) -> dict[str, Array]:
        """The losses of equations 6.6 and 6.8 whose weight is not 0; see `InstanceSegmentation`.

        Args:
          outputs: of the network.
          targets: of the batch.
          batch: the rows.
          weights: from `row_weights`.
          state: anything with `step`, the number of steps done.

        Raises:
          InputError: a semantic loss lacks embeddings, or masks are not at 1/4 scale.
        """
        terms: dict[str, Array] = {}
        for offset, masks in groups_with_offsets(outputs.masks):
            pairs = group_pairs(targets, offset, count_cells(masks), self.max_positives)
            for name, term in self._mask_terms(masks, offset, pairs, batch, weights, state).items():
                terms[name] = terms.get(name, 0.0) + term
        terms["loss/category"] = self.category_term(outputs, targets, batch, weights)
        if self.learns_embeddings:
            rows = _semantic_rows(outputs.embeddings, targets, batch)
            terms["loss/semantic"] = self.semantic_weight * jnp.sum(rows * weights["semantic"])
        return terms

    def _mask_terms(
        self,
        masks: Masks,
        offset: int,
        pairs: Pairs,
        batch: Batch,
        weights: dict[str, Array],
        state: Any,
    ) -> dict[str, Array]:
        """The mask losses of one group's pairs, weighted and summed over the rows."""
        if map_size(masks) != tuple(side // SCALE for side in batch.image.shape[1:3]):
            raise InputError(
                "FreeSOLO learns masks at 1/4 of the canvas; use a head that makes all of them "
                "there (model.head.kind=solov2, model.mask_features.kind=unified)"
            )
        supervised = pairs.valid & has_mask(batch.instances, pairs.instances)
        levels = self._level_of(pairs.cells + offset)

        def total(losses: Array, name: str) -> Array:
            own = jnp.take_along_axis(weights[name], levels, axis=1)
            return jnp.sum(jnp.where(supervised, losses, 0.0) * own)

        logits = mask_logits(masks, pairs.cells)
        losses = self._projection_losses(jax.nn.sigmoid(logits), pairs, batch)
        terms = {name: weight * total(values, "mask") for name, (weight, values) in losses.items()}
        if self.pairwise_weight:
            box = _of_pairs(project_max(self._coarse_masks(batch)), pairs)
            sums = pairwise_loss(logits, self._edges(batch), *box, dilation=self.pairwise_dilation)
            weight = self.pairwise_weight * self._pairwise_share(state.step)
            terms["loss/pairwise"] = weight * total(sums, "pairwise")
        if self.mask_weight:
            packed = pick_rows(batch.instances.masks, pairs.instances)
            values = self.mask_loss(masks, pairs.cells, unpack_masks(packed, logits.shape[-1]))
            terms["loss/mask"] = self.mask_weight * total(values, "mask")
        return terms

    def _projection_losses(
        self, probabilities: Array, pairs: Pairs, batch: Batch
    ) -> dict[str, tuple[float, Array]]:
        """Weight, if it is not 0, and losses (B, P) of either projection."""
        coarse = self._coarse_masks(batch)
        project_exactly = functools.partial(project_mean, dtype=probabilities.dtype)
        kinds = {
            "loss/max_projection": (self.max_projection_weight, project_max),
            "loss/mean_projection": (self.mean_projection_weight, project_exactly),
        }
        return {
            name: (
                weight,
                projection_loss(
                    project(probabilities),
                    _of_pairs(project(coarse), pairs),
                    epsilon=self.projection_epsilon,
                ),
            )
            for name, (weight, project) in kinds.items()
            if weight
        }

    def _level_of(self, cells: Array) -> Array:
        """The level of cells: (...) int32 in [0, G) to (...) in [0, L)."""
        starts = jnp.asarray(self.grid.level_offsets[1:], jnp.int32)
        return jnp.sum(cells[..., None] >= starts, axis=-1, dtype=jnp.int32)

    def _coarse_masks(self, batch: Batch) -> Array:
        """(B, N, H/4, W/4) bool."""
        return unpack_masks(batch.instances.masks, batch.image.shape[2] // SCALE)

    def _edges(self, batch: Batch) -> Array:
        """(B, 8, H/4, W/4) bool, whether a neighbour's colour is similar."""
        similarity = image_color_similarity(
            batch.image,
            batch.image_size,
            batch.original_size,
            dilation=self.pairwise_dilation,
            ignored_bottom_rows=self.ignored_bottom_rows,
        )
        return similarity >= self.color_threshold

    def _pairwise_share(self, step: Array) -> Array | float:
        """How much of the affinity's weight a step has; the first one has 1 / warm-up."""
        if not self.pairwise_warmup_steps:
            return 1.0
        return jnp.minimum((step + 1) / self.pairwise_warmup_steps, 1.0)


def _of_pairs(projections: tuple[Array, Array], pairs: Pairs) -> tuple[Array, Array]:
    """Projections (B, N, ...) of the instances to those of the pairs, (B, P, ...)."""
    columns, rows = projections
    return pick_rows(columns, pairs.instances), pick_rows(rows, pairs.instances)


def _semantic_rows(predicted: Array | None, targets: GridTargets, batch: Batch) -> Array:
    """Semantic losses of every image's positive cells, summed: (B,)."""
    wanted = batch.instances.embeddings
    if predicted is None:
        raise InputError(
            "the semantic loss needs a head that predicts embeddings; give the head a width of "
            "embeddings, or set the loss's weight to 0"
        )
    if wanted is None:
        raise InputError(
            "the semantic loss needs labels with embeddings (`emb` of every object, as "
            "`solojax free-mask` writes them); set its weight to 0 to learn without"
        )
    if wanted.shape[-1] != predicted.shape[-1]:
        raise InputError(
            f"the labels' embeddings have {wanted.shape[-1]} numbers and the head predicts "
            f"{predicted.shape[-1]}; make the head's width of embeddings that of the labels"
        )
    owner = jnp.maximum(targets.owner, 0)
    losses = embedding_loss(predicted, pick_rows(wanted, owner))
    return jnp.sum(jnp.where(targets.owner >= 0, losses, 0.0), axis=1)
