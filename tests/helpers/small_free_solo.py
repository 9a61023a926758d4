"""The network, inputs and labels behind tests/golden/freesolo: FreeSOLO on an R18."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
from helpers.golden import load_arrays, seeded_state, unpack_bits

from solojax.data.segmentation import center_of_mass, shrink_mask
from solojax.interop.adelaidet import FREESOLO
from solojax.interop.layout import import_state
from solojax.models.fpn import FPN
from solojax.models.mask_feature_head import MaskFeatureHead
from solojax.models.resnet import ResNet
from solojax.models.segmenter import Segmenter
from solojax.models.solov2_head import SOLOv2Head
from solojax.structures import Batch, GridSpec, Instances
from solojax.tasks.free_solo import FreeSOLO

NUM_CLASSES = 2  # the published head has a second output that nothing is of
STEPS_DONE = 299
MAX_INSTANCES = 5
CANVAS = (192, 256)
GRID = GridSpec(
    num_grids=(20, 18, 12, 8, 6),
    scale_ranges=((1, 24), (12, 48), (24, 96), (48, 192), (96, 512)),
)


def build_model() -> Segmenter:
    """The recorded architecture."""
    return Segmenter(
        ResNet(18, norm="frozen_batch_norm"),
        FPN(64),
        SOLOv2Head(
            NUM_CLASSES,
            GRID.num_grids,
            num_convs=4,
            channels=64,
            kernel_channels=64,
            embedding_width=128,
        ),
        MaskFeatureHead(channels=32, out_channels=64),
    )


def build_task(dtype=jnp.float32, **options) -> FreeSOLO:
    """The recorded training: all stages train, norms do not."""
    return FreeSOLO(
        model=build_model(),
        grid=GRID,
        num_classes=NUM_CLASSES,
        max_positives=64,
        train_norm_affine=False,
        dtype=dtype,
        **options,
    )


@functools.cache
def variables():
    """The recorded weights, float32 NumPy arrays."""
    return import_state(FREESOLO, seeded_state("freesolo/small_state_shapes.json"))


def recorded_images() -> list[np.ndarray]:
    """The two images, (H, W, 3) uint8 RGB of different sizes."""
    inputs = load_arrays("freesolo/inputs.npz")
    return [inputs["image0_rgb_hwc"], inputs["image1_rgb_hwc"]]


def original_size(index: int) -> tuple[int, int]:
    """(height, width) of an image's file."""
    height, width = load_arrays("freesolo/inputs.npz")[f"image{index}_ori_hw"]
    return int(height), int(width)


def training_batch(without: tuple[int, ...] = ()) -> Batch:
    """Both images with their recorded labels; centres and small masks are computed here.

    Args:
      without: images whose labels are left out.
    """
    images, inputs = recorded_images(), load_arrays("freesolo/inputs.npz")
    canvas = np.zeros((len(images), *CANVAS, 3), np.uint8)
    slots = (len(images), MAX_INSTANCES)
    quarter = tuple(side // 4 for side in CANVAS)
    instances = Instances(
        boxes=np.zeros((*slots, 4), np.float32),
        labels=np.zeros(slots, np.int32),
        centers=np.zeros((*slots, 2), np.float32),
        masks=np.zeros((*slots, quarter[0], quarter[1] // 8), np.uint8),
        valid=np.zeros(slots, bool),
        embeddings=np.zeros((*slots, 128), np.float32),
    )
    for b, image in enumerate(images):
        canvas[b, : image.shape[0], : image.shape[1]] = image
        masks = unpack_bits(inputs, f"gt{b}_masks_packed", f"gt{b}_masks_shape").astype(np.uint8)
        for slot, mask in enumerate(masks if b not in without else ()):
            instances.boxes[b, slot] = inputs[f"gt{b}_boxes"][slot]
            instances.labels[b, slot] = inputs[f"gt{b}_classes"][slot]
            instances.embeddings[b, slot] = inputs[f"gt{b}_embs"][slot]
            instances.centers[b, slot] = center_of_mass(mask)
            instances.valid[b, slot] = True
            small = shrink_mask(mask)
            sheet = np.zeros(quarter, np.uint8)
            sheet[: small.shape[0], : small.shape[1]] = small
            instances.masks[b, slot] = np.packbits(sheet, axis=-1)
    count = len(images)
    return Batch(
        image=canvas,
        image_size=np.array([image.shape[:2] for image in images], np.int32),
        original_size=np.array([original_size(b) for b in range(count)], np.int32),
        valid=np.ones(count, bool),
        image_index=np.arange(count, dtype=np.int32),
        seed=np.zeros(count, np.uint32),
        dropped_instances=np.zeros(count, np.int32),
        instances=instances,
    )
