"""The mask losses that a task can choose from (thesis Table 3.4): masks, cells, truth to losses."""

from __future__ import annotations

import dataclasses
from typing import Protocol

from solojax.losses.dice import dice_loss
from solojax.losses.mask import bce_mask_loss, focal_mask_loss
from solojax.ops.mask_decoding import mask_logits, mask_probabilities
from solojax.structures import Array, Masks


class MaskLoss(Protocol):
    """The loss of some cells' masks."""

    def __call__(self, masks: Masks, cells: Array, wanted: Array) -> Array:
        """Returns a loss for each mask.

        Args:
          masks: a group of the network's masks.
          cells: (B, P) int32, counted from the group's first.
          wanted: (B, P, h, w) bool, at the group's resolution.

        Returns:
          (B, P), unreduced.
        """
        ...


@dataclasses.dataclass(frozen=True)
class DiceLoss:
    """Dice on probabilities, the published loss (weight 3).

    Attributes:
      epsilon: see `dice_loss`.
    """

    epsilon: float = 1e-3

    def __call__(self, masks: Masks, cells: Array, wanted: Array) -> Array:
        """See `MaskLoss`."""
        return dice_loss(mask_probabilities(masks, cells), wanted, epsilon=self.epsilon)


@dataclasses.dataclass(frozen=True)
class FocalLoss:
    """Focal loss on logits (weight 20 in the thesis).

    Attributes:
      alpha: see `focal_mask_loss`.
      gamma: likewise.
    """

    alpha: float = 0.25
    gamma: float = 2.0

    def __call__(self, masks: Masks, cells: Array, wanted: Array) -> Array:
        """See `MaskLoss`; an InputError for decoupled masks, which have no logits."""
        logits = mask_logits(masks, cells)
        return focal_mask_loss(logits, wanted, alpha=self.alpha, gamma=self.gamma)


@dataclasses.dataclass(frozen=True)
class CrossEntropyLoss:
    """Binary cross entropy on logits (weight 10 in the thesis).

    Attributes:
      positive_weight: see `bce_mask_loss`.
    """

    positive_weight: float = 2.0

    def __call__(self, masks: Masks, cells: Array, wanted: Array) -> Array:
        """See `MaskLoss`; an InputError for decoupled masks, which have no logits."""
        logits = mask_logits(masks, cells)
        return bce_mask_loss(logits, wanted, positive_weight=self.positive_weight)
