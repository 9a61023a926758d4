"""Rows with objects on noise, for tests of what happens to a batch on the device."""

from __future__ import annotations

import numpy as np

from solojax.structures import Batch, Instances

H, W, N, E = 64, 96, 5, 3


def rectangle(top, left, bottom, right):
    mask = np.zeros((H // 4, W // 4), bool)
    mask[top:bottom, left:right] = True
    return mask


def make_row(rng, size, masks):
    """A row of noise with these objects; boxes and centres are made up, to be told apart."""
    image = np.zeros((H, W, 3), np.uint8)
    image[: size[0], : size[1]] = rng.integers(0, 256, (*size, 3))
    all_masks = np.zeros((N, H // 4, W // 4), bool)
    for slot, mask in enumerate(masks):
        all_masks[slot] = mask
    count = len(masks)
    valid = np.arange(N) < count
    return {
        "image": image, "image_size": np.array(size, np.int32), "masks": all_masks,
        "boxes": np.where(valid[:, None], rng.uniform(1, 30, (N, 4)), 0).astype(np.float32),
        "centers": np.where(valid[:, None], rng.uniform(1, 30, (N, 2)), 0).astype(np.float32),
        "labels": np.where(valid, rng.integers(0, 9, N), 0).astype(np.int32), "valid": valid,
        "mask_valid": valid & (rng.random(N) < 0.5),
        "embeddings": np.where(valid[:, None], rng.normal(size=(N, E)), 0).astype(np.float32),
    }  # fmt: skip


def make_batch(rows, seeds, valid=None):
    def stack(key):
        return np.stack([row[key] for row in rows])

    count = len(rows)
    return Batch(
        image=stack("image"), image_size=stack("image_size"), original_size=stack("image_size"),
        valid=np.ones(count, bool) if valid is None else np.asarray(valid),
        image_index=np.arange(count, dtype=np.int32), seed=np.asarray(seeds, np.uint32),
        dropped_instances=np.zeros(count, np.int32),
        instances=Instances(
            boxes=stack("boxes"), labels=stack("labels"), centers=stack("centers"),
            masks=np.packbits(stack("masks"), axis=-1), valid=stack("valid"),
            mask_valid=stack("mask_valid"), embeddings=stack("embeddings"),
        ),
    )  # fmt: skip


def random_rows(seed, count=6):
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        size = (int(rng.integers(40, H + 1)), int(rng.integers(60, W + 1)))
        masks = []
        for _ in range(rng.integers(0, N + 1)):
            top, left = rng.integers(0, size[0] // 4 - 4), rng.integers(0, size[1] // 4 - 6)
            bottom, right = top + rng.integers(1, 9), left + rng.integers(1, 9)
            masks.append(rectangle(top, left, min(bottom, size[0] // 4), min(right, size[1] // 4)))
        rows.append(make_row(rng, size, masks))
    return rows
