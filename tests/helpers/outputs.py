"""Network outputs of the SOLOv2 form, by their parts."""

from __future__ import annotations

from solojax.structures import DynamicMasks, SegmenterOutputs


def dynamic_outputs(category_logits, kernels, mask_features) -> SegmenterOutputs:
    """Outputs with one group of masks: kernels (B, G, E) over one feature map (B, h, w, E)."""
    masks = DynamicMasks(kernels=kernels, features=mask_features)
    return SegmenterOutputs(category_logits=category_logits, masks=(masks,))


def kernels_of(outputs: SegmenterOutputs):
    """The kernels of such outputs."""
    (masks,) = outputs.masks
    return masks.kernels


def mask_features_of(outputs: SegmenterOutputs):
    """The mask features of such outputs."""
    (masks,) = outputs.masks
    return masks.features
