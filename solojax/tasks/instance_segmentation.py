"""Instance segmentation: batches to losses, batches to detections."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from solojax.errors import InputError
from solojax.losses.focal import category_focal_loss
from solojax.models.resnet import is_frozen
from solojax.ops.images import normalize_image
from solojax.ops.mask_decoding import count_cells, groups_with_offsets, map_size
from solojax.ops.masks import unpack_masks
from solojax.ops.picking import pick_rows
from solojax.postprocess.detections import DetectionSettings, detect
from solojax.structures import (
    Array,
    Batch,
    Detections,
    GridSpec,
    GridTargets,
    Instances,
    Masks,
    PyTree,
    SegmenterOutputs,
)
from solojax.targets.grid import grid_targets
from solojax.targets.pairs import Pairs, group_pairs
from solojax.tasks.mask_losses import DiceLoss, MaskLoss


@dataclasses.dataclass(frozen=True)
class InstanceSegmentation:
    """SOLO, Decoupled SOLO or SOLOv2 as a task; see `solojax.tasks` for the functions.

    Attributes:
      model: images to SegmenterOutputs.
      grid: the levels that targets and post-processing share with the model.
      num_classes: K.
      max_positives: P, positive pairs per image.
      one_mask_per_cell: see `grid_targets`.
      pixel_mean: RGB, in [0, 255].
      pixel_std: RGB.
      mask_loss: (masks, cells (B, P), wanted (B, P, h, w)) to a loss (B, P) for each mask, see
        `solojax.tasks.mask_losses`.
      mask_weight: of the mask loss (lambda of equation 4.2).
      category_weight: of the focal loss.
      focal_alpha: of the focal loss.
      focal_gamma: of the focal loss.
      loss_group_images: images over which the losses are averaged before the mean over groups;
        None is the global batch. The published code averages per GPU of 2 images.
      frozen_stages: of the backbone, whose parameters do not train.
      train_norm_affine: whether scale and bias of the backbone's norms train.
      dtype: compute type of the network.
      detection: inference settings.
    """

    model: nn.Module
    grid: GridSpec
    num_classes: int
    max_positives: int = 512
    one_mask_per_cell: bool = False
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    mask_loss: MaskLoss = DiceLoss()
    mask_weight: float = 3.0
    category_weight: float = 1.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    loss_group_images: int | None = None
    frozen_stages: int = -1
    train_norm_affine: bool = True
    dtype: Any = jnp.float32
    detection: DetectionSettings = dataclasses.field(default_factory=DetectionSettings)

    def init(self, rng: Array, batch: Batch) -> PyTree:
        """Variables of the network, for images of the batch's shape."""
        return self.model.init(rng, jnp.zeros(batch.image.shape, self.dtype))

    def targets(self, batch: Batch) -> GridTargets:
        """Positive cells of a batch; rows that are not valid have none."""
        instances = batch.instances
        instances = instances.replace(valid=instances.valid & batch.valid[:, None])
        canvas = batch.image.shape[1:3]
        return grid_targets(
            instances,
            self.grid,
            canvas,
            self.num_classes,
            self.max_positives,
            one_mask_per_cell=self.one_mask_per_cell,
        )

    def row_weights(self, batch: Batch) -> dict[str, Array]:
        """What the rows' loss sums are multiplied by: {"mask": (B,), "category": (B,)}.

        The mask loss is a mean over positive pairs of objects whose masks supervise, the category
        loss a sum over cells divided by the number of positive cells + 1, both over groups of
        `loss_group_images` images.
        """
        targets = self.targets(batch)
        supervised = targets.valid & has_mask(batch.instances, targets.instances)
        pairs = jnp.sum(supervised, axis=1, dtype=jnp.float32)
        cells = jnp.sum(targets.owner >= 0, axis=1, dtype=jnp.float32)
        size = self.loss_group_images or pairs.shape[0]
        if pairs.shape[0] % size:
            raise InputError(
                f"loss.group_images {size} does not divide the batch of {pairs.shape[0]} images; "
                "choose a divisor of train.batch_size"
            )
        return {
            "mask": group_reciprocal(pairs, size, 0.0),
            "category": group_reciprocal(cells, size, 1.0),
        }

    def loss_fn(
        self, params: PyTree, state: Any, batch: Batch, rng: Array, weights: dict[str, Array]
    ) -> tuple[Array, tuple[dict, dict]]:
        """Weighted category and mask losses (equation 4.2), summed over the rows.

        Args:
          params: parameters of the network.
          state: anything with `batch_stats`.
          batch: rows to learn from.
          rng: unused; SOLOv2 draws nothing on the device.
          weights: from `row_weights` of the whole batch.

        Returns:
          The loss, and (updates with "batch_stats", metrics).
        """
        del rng
        targets = self.targets(batch)
        outputs, batch_stats = self._forward_train(params, state.batch_stats, batch)
        terms = self.loss_terms(outputs, targets, batch, weights, state)
        loss = sum(terms.values())
        metrics = {
            "loss": loss,
            **terms,
            "targets/positive_pairs": jnp.sum(targets.valid, dtype=jnp.float32),
            "targets/overflow": jnp.sum(targets.overflow, dtype=jnp.float32),
            "data/dropped_instances": jnp.sum(batch.dropped_instances, dtype=jnp.float32),
            "data/broken_images": jnp.sum(~batch.valid, dtype=jnp.float32),
        }
        return loss, ({"batch_stats": batch_stats}, metrics)

    def loss_terms(
        self,
        outputs: SegmenterOutputs,
        targets: GridTargets,
        batch: Batch,
        weights: dict[str, Array],
        state: Any,
    ) -> dict[str, Array]:
        """The losses, weighted and summed over the rows, by the names of their metrics.

        Args:
          outputs: of the network.
          targets: of the batch.
          batch: the rows.
          weights: from `row_weights`.
          state: what `loss_fn` was given.
        """
        del state
        mask_rows = self._mask_loss(outputs, targets, batch)
        return {
            "loss/mask": self.mask_weight * jnp.sum(mask_rows * weights["mask"]),
            "loss/category": self.category_term(outputs, targets, batch, weights),
        }

    def category_term(
        self,
        outputs: SegmenterOutputs,
        targets: GridTargets,
        batch: Batch,
        weights: dict[str, Array],
    ) -> Array:
        """The focal loss, weighted and summed over the rows; see `loss_terms`."""
        rows = self._category_loss(outputs, targets, batch)
        return self.category_weight * jnp.sum(rows * weights["category"])

    def forward(self, variables: PyTree, batch: Batch) -> SegmenterOutputs:
        """The network's outputs at inference."""
        return self.model.apply(variables, self.normalized(batch))

    def predict(self, variables: PyTree, batch: Batch) -> Detections:
        """Detections of a batch; rows that are not valid have none."""
        detections = detect(self.forward(variables, batch), self.grid, self.detection)
        return detections.replace(valid=detections.valid & batch.valid[:, None])

    def is_trainable(self, path: tuple[str, ...]) -> bool:
        """False in the backbone's frozen stages, and in its norms unless they train."""
        if path[0] != "backbone":
            return True
        is_norm = any(part.startswith("bn") or part.endswith("_bn") for part in path)
        return not is_frozen(path[1], self.frozen_stages) and (
            self.train_norm_affine or not is_norm
        )

    def normalized(self, batch: Batch) -> Array:
        """The images as the network reads them, (B, H, W, 3)."""
        return normalize_image(
            batch.image, batch.image_size, self.pixel_mean, self.pixel_std, self.dtype
        )

    def _forward_train(self, params, batch_stats, batch: Batch):
        outputs, updated = self.model.apply(
            {"params": params, "batch_stats": batch_stats},
            self.normalized(batch),
            train=True,
            row_mask=batch.valid,
            mutable=["batch_stats"],
        )
        return outputs, updated.get("batch_stats", batch_stats)

    def _mask_loss(self, outputs: SegmenterOutputs, targets: GridTargets, batch: Batch) -> Array:
        """Mask loss of every image's positive pairs, summed: (B,)."""
        total = 0.0
        for offset, masks in groups_with_offsets(outputs.masks):
            count = count_cells(masks)
            limit = count if self.one_mask_per_cell else self.max_positives
            pairs = group_pairs(targets, offset, count, limit)
            total += self._group_mask_loss(masks, pairs, batch)
        return total

    def _group_mask_loss(self, masks: Masks, pairs: Pairs, batch: Batch) -> Array:
        """Mask losses of one group's pairs, summed: (B,)."""
        # The masks stay packed until they are used, so that P of them cost an eighth of a byte a
        # pixel and the unpacking fuses into the sums.
        truth = packed_masks(batch.instances, batch.image.shape[1], map_size(masks)[0])
        packed = pick_rows(truth, pairs.instances)
        losses = self.mask_loss(masks, pairs.cells, unpack_masks(packed, map_size(masks)[1]))
        supervised = pairs.valid & has_mask(batch.instances, pairs.instances)
        return jnp.sum(jnp.where(supervised, losses, 0.0), axis=1)

    def _category_loss(
        self, outputs: SegmenterOutputs, targets: GridTargets, batch: Batch
    ) -> Array:
        """Focal loss of every image's cells and classes, summed: (B,)."""
        focal = category_focal_loss(
            outputs.category_logits,
            targets.category,
            alpha=self.focal_alpha,
            gamma=self.focal_gamma,
        )
        # The values are float32; in float64 their sums must not depend on who adds which rows.
        dtype = jnp.promote_types(outputs.category_logits.dtype, focal.dtype)
        return jnp.where(batch.valid, jnp.sum(focal, axis=(1, 2), dtype=dtype), 0.0)


def packed_masks(instances: Instances, height: int, map_height: int) -> Array:
    """The bit-packed masks (B, N, h, w / 8) of the resolution at which a canvas has h rows.

    Raises:
      InputError: the batch does not bring masks of that resolution.
    """
    for masks in (instances.masks, *instances.coarse_masks):
        if masks.shape[2] == map_height:
            return masks
    raise InputError(
        f"masks are predicted with {map_height} rows for a canvas of {height}, and the batch has "
        f"no such ground truth (1/4 of the canvas, and half of every model.grid.strides entry "
        "otherwise); make model.grid.strides those of the network"
    )


def has_mask(instances: Instances, indices: Array) -> Array | bool:
    """Whether the mask branch learns from the instances at `indices` (B, P): (B, P) bool."""
    if instances.mask_valid is None:
        return True
    return jnp.take_along_axis(instances.mask_valid, indices, axis=1)


def group_totals(count: Array, size: int) -> Array:
    """Sums (B, ...) over groups of `size` rows, each row with the sum of its group: (B, ...)."""
    groups = count.reshape(count.shape[0] // size, size, *count.shape[1:])
    return jnp.repeat(jnp.sum(groups, axis=1), size, axis=0)


def group_reciprocal(count: Array, size: int, offset: float) -> Array:
    """1 / (groups * (offset + count in the row's group)), (B, ...); 0 where that sum is 0.

    Without an offset a group without objects has no mask loss (the published code fails there).
    """
    total = group_totals(count, size) + offset
    return jnp.where(total > 0, 1.0 / jnp.maximum(total, 1.0), 0.0) / (count.shape[0] // size)
