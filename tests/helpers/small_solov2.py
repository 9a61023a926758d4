"""The network, inputs and ground truth behind tests/golden/solov2_*: SOLOv2 on an R18."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from helpers.golden import load_arrays, seeded_state, unpack_bits
from helpers.outputs import dynamic_outputs

from solojax.data.segmentation import center_of_mass, shrink_mask
from solojax.interop.adelaidet import ADELAIDET
from solojax.interop.layout import import_state
from solojax.models.fpn import FPN
from solojax.models.mask_feature_head import MaskFeatureHead
from solojax.models.resnet import ResNet
from solojax.models.segmenter import Segmenter
from solojax.models.solov2_head import SOLOv2Head
from solojax.models.towers import head_levels
from solojax.structures import Batch, GridSpec, Instances, SegmenterOutputs
from solojax.tasks.instance_segmentation import InstanceSegmentation

NUM_CLASSES = 5
GRID = GridSpec()
SCALE_RANGES = {
    "default": GRID.scale_ranges,
    "scaled": ((1, 24), (12, 48), (24, 96), (48, 192), (96, 512)),
}
MAX_INSTANCES = 6


def build_model() -> Segmenter:
    """The recorded architecture."""
    return Segmenter(
        ResNet(18, norm="frozen_batch_norm", frozen_stages=1),
        FPN(64),
        SOLOv2Head(NUM_CLASSES, GRID.num_grids, num_convs=4, channels=64, kernel_channels=64),
        MaskFeatureHead(channels=32, out_channels=64),
    )


def build_task(scale_ranges: str = "default", dtype=jnp.float32) -> InstanceSegmentation:
    """The recorded training: BGR input with deviations 1, stem and first stage frozen."""
    return InstanceSegmentation(
        model=build_model(),
        grid=GridSpec(scale_ranges=SCALE_RANGES[scale_ranges]),
        num_classes=NUM_CLASSES,
        max_positives=96,
        pixel_mean=(103.53, 116.28, 123.675),
        pixel_std=(1.0, 1.0, 1.0),
        frozen_stages=1,
        train_norm_affine=False,
        dtype=dtype,
    )


def expected_shapes():
    """Names and shapes of the network's variables."""
    return jax.eval_shape(build_model().init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))


@functools.cache
def variables():
    """The recorded weights, float32 NumPy arrays."""
    return import_state(
        ADELAIDET, seeded_state("solov2_adet/small_state_shapes.json"), expected_shapes()
    )


def recorded_images() -> list[np.ndarray]:
    """The two images, (H, W, 3) uint8 RGB of different sizes."""
    inputs = load_arrays("solov2_adet/small_inputs.npz")
    return [inputs["image0_rgb_hwc"], inputs["image1_rgb_hwc"]]


def original_size(index: int) -> tuple[int, int]:
    """(height, width) to which an image's masks were resized."""
    height, width = load_arrays("solov2_adet/small_inputs.npz")[f"image{index}_ori_hw"]
    return int(height), int(width)


def make_batch(images: list[np.ndarray], instances: Instances | None = None) -> Batch:
    """A batch of RGB images, handed to the network as BGR, on the least canvas of 32s."""
    sizes = np.array([image.shape[:2] for image in images], np.int32)
    height, width = (-(-int(side) // 32) * 32 for side in sizes.max(axis=0))
    canvas = np.zeros((len(images), height, width, 3), np.uint8)
    for row, image in zip(canvas, images, strict=True):
        row[: image.shape[0], : image.shape[1]] = image[:, :, ::-1]
    count = len(images)
    return Batch(
        image=canvas,
        image_size=sizes,
        original_size=sizes,
        valid=np.ones(count, bool),
        image_index=np.arange(count, dtype=np.int32),
        seed=np.zeros(count, np.uint32),
        dropped_instances=np.zeros(count, np.int32),
        instances=instances or empty_instances(count, height, width),
    )


def empty_instances(count: int, height: int, width: int) -> Instances:
    """No objects, padded to MAX_INSTANCES."""
    slots = (count, MAX_INSTANCES)
    return Instances(
        boxes=np.zeros((*slots, 4), np.float32),
        labels=np.zeros(slots, np.int32),
        centers=np.zeros((*slots, 2), np.float32),
        masks=np.zeros((*slots, height // 4, width // 32), np.uint8),
        valid=np.zeros(slots, bool),
    )


def training_batch() -> Batch:
    """Both images with their recorded ground truth; centres and small masks are computed here.

    As in the published code, an object with an empty mask is left out.
    """
    truth = load_arrays("solov2_targets_loss/inputs.npz")
    images = recorded_images()
    batch = make_batch(images)
    instances = batch.instances
    for b in range(len(images)):
        masks = unpack_bits(truth, f"gt{b}_masks_packed", f"gt{b}_masks_shape").astype(np.uint8)
        kept = [j for j in range(len(masks)) if masks[j].any()]
        for slot, j in enumerate(kept):
            instances.boxes[b, slot] = truth[f"gt{b}_boxes_xyxy"][j]
            instances.labels[b, slot] = truth[f"gt{b}_classes"][j]
            instances.centers[b, slot] = center_of_mass(masks[j])
            instances.valid[b, slot] = True
            small = shrink_mask(masks[j])
            quarter = np.zeros(tuple(side // 4 for side in batch.image.shape[1:3]), np.uint8)
            quarter[: small.shape[0], : small.shape[1]] = small
            instances.masks[b, slot] = np.packbits(quarter, axis=-1)
    return batch


@functools.cache
def jitted_forward():
    """(variables, batch) to SegmenterOutputs, compiled once per canvas."""
    return jax.jit(build_task().forward)


def recorded_heads() -> SegmenterOutputs:
    """The recorded head outputs of both images, in our layout."""
    heads = load_arrays("solov2_adet/small_heads.npz")

    def cells(name):
        levels = [heads[f"{name}_L{level}"] for level in range(GRID.num_levels)]
        rows = [level.reshape(*level.shape[:2], -1).transpose(0, 2, 1) for level in levels]
        return jnp.asarray(np.concatenate(rows, axis=1))

    return dynamic_outputs(
        category_logits=cells("cate_pred"),
        kernels=cells("kernel_pred"),
        mask_features=jnp.asarray(heads["mask_feat"].transpose(0, 2, 3, 1)),
    )


def all_features(model: Segmenter, weights, image) -> dict[str, jax.Array]:
    """Every recorded intermediate value by its recorded name, NHWC."""

    def run(network, x):
        stages = network.backbone(x)
        pyramid = network.neck(stages)
        return stages, pyramid, head_levels(pyramid)

    stages, pyramid, levels = nn.apply(run, model)(weights, image)
    named = {"batch": image}
    named |= {f"res{i}": x for i, x in enumerate(stages, start=2)}
    named |= {f"p{i}": x for i, x in enumerate(pyramid, start=2)}
    named |= {f"split{i}": x for i, x in enumerate(levels)}
    return named
