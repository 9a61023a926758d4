"""A folder of small photos, and a backbone that reads their colours: masks in a second."""

from __future__ import annotations

from pathlib import Path

import cv2
import flax.linen as nn
import numpy as np

from solojax.config import base_config
from solojax.features.frozen_backbone import FrozenBackbone
from solojax.postprocess.free_masks import FreeMaskSettings

SIZES = {"a/one.png": (96, 128), "b/one.png": (128, 96), "b/two.png": (90, 110)} | {
    f"c/{n}.png": (96, 96) for n in range(4)
}
SETTINGS = FreeMaskSettings(embedding_size=8)


class CellColors(nn.Module):
    """The mean colour of every cell of 16 pixels, and of 32, as seven numbers: C4 and C5."""

    @nn.compact
    def __call__(self, image, *, train=False, row_mask=None):
        colors = nn.Dense(7, name="colors")
        return tuple(colors(nn.avg_pool(image, (n, n), (n, n))) for n in (16, 32))


def color_backbone(seed: int = 0) -> FrozenBackbone:
    """A `FrozenBackbone` of `CellColors`."""
    rng = np.random.default_rng(seed)
    kernel = rng.standard_normal((3, 7)).astype(np.float32)
    params = {"colors": {"kernel": kernel, "bias": np.full(7, 0.1, np.float32)}}
    model = base_config().model
    return FrozenBackbone(
        title=f"colours {seed}",
        network=CellColors(),
        variables={"params": params, "batch_stats": {}},
        pixel_mean=model.pixel_mean,
        pixel_std=model.pixel_std,
        config=base_config(),
    )


def write_photos(root: Path) -> Path:
    """Writes seven images of `SIZES`, each with two blocks of colour low down; returns the root."""
    for seed, (name, (height, width)) in enumerate(SIZES.items()):
        rng = np.random.default_rng(seed)
        image = rng.integers(0, 40, (height, width, 3), dtype=np.uint8)
        image[..., 1] += 150
        image[height // 2 :, : width // 3] = (30, 40, 200)  # OpenCV's order: red
        image[height // 3 :, width // 2 :] = (210, 60, 30)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / name), image)
    return root


def write_noise(root: Path, count: int = 6) -> Path:
    """Writes images of noise, 40 x 48 pixels, "0.png" and so on; returns the root."""
    rng = np.random.default_rng(0)
    for index in range(count):
        cv2.imwrite(str(root / f"{index}.png"), rng.integers(0, 255, (40, 48, 3), np.uint8))
    return root
