"""The heads, inputs and ground truth behind tests/golden/solo_mmdet, without a backbone."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from helpers.golden import load_arrays, seeded_state, unpack_bits

from solojax.data.packing import pack_masks
from solojax.data.segmentation import center_of_mass, shrink_mask
from solojax.interop.layout import import_state
from solojax.interop.layouts import layout_named
from solojax.models.mask_feature_head import MaskFeatureHead
from solojax.models.solo_head import DecoupledHead, SOLOHead
from solojax.models.solov2_head import SOLOv2Head
from solojax.models.towers import head_levels
from solojax.structures import Batch, GridSpec, Instances, SegmenterOutputs
from solojax.tasks.instance_segmentation import InstanceSegmentation

NUM_CLASSES, CHANNELS, CANVAS, MAX_INSTANCES = 5, 32, (192, 256), 5
GRID = GridSpec(
    num_grids=(20, 18, 12, 8, 6),
    strides=(8, 8, 16, 32, 32),
    scale_ranges=((1, 24), (12, 48), (24, 96), (48, 192), (96, 512)),
)
_SHARED = {"num_classes": NUM_CLASSES, "num_grids": GRID.num_grids, "channels": CHANNELS}
HEADS = {
    "SOLOHead": SOLOHead(num_convs=3, **_SHARED),
    "SOLOHead_down1": SOLOHead(num_convs=3, align_at=1, **_SHARED),
    "DecoupledSOLOHead": DecoupledHead(num_convs=3, **_SHARED),
    "DecoupledSOLOLightHead": DecoupledHead(num_convs=2, shared_tower=True, **_SHARED),
    "SOLOv2Head": SOLOv2Head(num_convs=2, kernel_channels=64, **_SHARED),
}
LAYOUTS = {
    "SOLOHead": "mmdet-v1-solo",
    "SOLOHead_down1": "mmdet-v1-solo",
    "DecoupledSOLOHead": "mmdet-v1-decoupled-solo",
    "DecoupledSOLOLightHead": "mmdet-v1-decoupled-solo-light",
    "SOLOv2Head": "mmdet-v1-solov2",
}


class HeadAlone(nn.Module):
    """A head on pyramid features that are parameters, so that they have gradients too."""

    head: nn.Module
    mask_features: nn.Module | None = None

    @nn.compact
    def __call__(
        self, image, *, train: bool = False, row_mask: jax.Array | None = None
    ) -> SegmenterOutputs:
        """As `Segmenter`; the image is not looked at."""
        del image, train, row_mask
        features = recorded_features()
        pyramid = [
            self.param(f"feat_L{level}", lambda _, value=value: jnp.asarray(value))
            for level, value in enumerate(features)
        ]
        if self.mask_features is None:
            return self.head(head_levels(pyramid))
        return self.head(head_levels(pyramid), self.mask_features(pyramid))


def recorded_features(dtype=np.float32) -> list[np.ndarray]:
    """P2..P6 of both images, NHWC."""
    inputs = load_arrays("solo_mmdet/inputs.npz")
    return [inputs[f"feat_L{i}_f16"].astype(dtype).transpose(0, 2, 3, 1) for i in range(5)]


def build_task(name: str, dtype=jnp.float32, **options) -> InstanceSegmentation:
    """The task around a recorded head."""
    is_v2 = name == "SOLOv2Head"
    features = MaskFeatureHead(channels=32, out_channels=64) if is_v2 else None
    return InstanceSegmentation(
        HeadAlone(HEADS[name], features),
        GRID,
        NUM_CLASSES,
        max_positives=128,
        one_mask_per_cell=not is_v2,
        dtype=dtype,
        **options,
    )


@functools.cache
def variables(name: str, dtype=np.float32):
    """The recorded weights, with the features beside them."""
    state = seeded_state(f"solo_mmdet/{name}_state_shapes.json", dtype)
    params = import_state(layout_named(LAYOUTS[name]), state)["params"]
    features = {f"feat_L{i}": x for i, x in enumerate(recorded_features(dtype))}
    return {"params": params | features, "batch_stats": {}}


@functools.cache
def training_batch() -> Batch:
    """Both images' ground truth; centres and small masks are computed here.

    As in the published code, an object with an empty mask is left out.
    """
    truth = load_arrays("solo_mmdet/inputs.npz")
    height, width = CANVAS
    slots = (2, MAX_INSTANCES)
    masks = {
        factor: np.zeros((*slots, height // factor, width // factor), np.uint8)
        for factor in (4, 8, 16)
    }
    instances = Instances(
        boxes=np.zeros((*slots, 4), np.float32),
        labels=np.zeros(slots, np.int32),
        centers=np.zeros((*slots, 2), np.float32),
        masks=np.zeros(0),
        valid=np.zeros(slots, bool),
    )
    for b in range(2):
        whole = unpack_bits(truth, f"gt{b}_masks_packed", f"gt{b}_masks_shape").astype(np.uint8)
        kept = [j for j in range(len(whole)) if whole[j].any()]
        for slot, j in enumerate(kept):
            mask = whole[j]
            instances.boxes[b, slot] = truth[f"gt{b}_boxes"][j]
            instances.labels[b, slot] = truth[f"gt{b}_labels"][j] - 1
            instances.centers[b, slot] = center_of_mass(mask)
            instances.valid[b, slot] = True
            for factor, small in masks.items():
                shrunk = shrink_mask(mask, factor)
                small[b, slot, : shrunk.shape[0], : shrunk.shape[1]] = shrunk
    packed = {factor: pack_masks(small) for factor, small in masks.items()}
    return Batch(
        image=np.zeros((2, *CANVAS, 3), np.uint8),
        image_size=np.array([[192, 256], [157, 219]], np.int32),
        original_size=np.array([[240, 320], [157, 219]], np.int32),
        valid=np.ones(2, bool),
        image_index=np.arange(2, dtype=np.int32),
        seed=np.zeros(2, np.uint32),
        dropped_instances=np.zeros(2, np.int32),
        instances=instances.replace(masks=packed[4], coarse_masks=(packed[8], packed[16])),
    )
