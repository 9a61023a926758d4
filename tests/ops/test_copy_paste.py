"""Copy-paste against plain NumPy, row by row and object by object, and its properties."""

from __future__ import annotations

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.pasted_rows import H, N, W, make_batch, make_row, random_rows, rectangle

from solojax.errors import InputError
from solojax.ops.copy_paste import _chosen, copy_paste


def unpack(instances, row):
    return np.unpackbits(np.asarray(instances.masks[row]), axis=-1).astype(bool)


def reference(target, source, chosen):
    """One row by loops over objects and pixels."""
    (height, width), (old_height, old_width) = target["image_size"], source["image_size"]
    resized = cv2.resize(
        source["image"][:old_height, :old_width].astype(np.float32), (width, height),
        interpolation=cv2.INTER_LINEAR,
    )  # fmt: skip
    pasted, overflow = [], 0
    free = [slot for slot in range(N) if not target["valid"][slot]]
    for index in np.flatnonzero(chosen & source["valid"]):
        mask = np.zeros((H // 4, W // 4), bool)
        for y in range(H // 4):
            for x in range(W // 4):
                if 4 * y + 2 < height and 4 * x + 2 < width:
                    from_y = int((4 * y + 2) * old_height / height / 4 + 1e-9)
                    from_x = int((4 * x + 2) * old_width / width / 4 + 1e-9)
                    mask[y, x] = source["masks"][index, from_y, from_x]
        old = target["masks"][target["valid"]]
        if not mask.any() or any(o.any() and (o & mask).sum() / o.sum() >= 0.5 for o in old):
            continue
        if not free:
            overflow += 1
            continue
        pasted.append((free.pop(0), index, mask))
    result = {key: np.array(value) for key, value in target.items()}
    union = np.zeros((H // 4, W // 4), bool)
    for _, _, mask in pasted:
        union |= mask
    for slot in np.flatnonzero(target["valid"]):
        left = target["masks"][slot] & ~union
        if (target["masks"][slot] & union).any():
            result["masks"][slot] = left
            ys, xs = np.nonzero(left)
            result["valid"][slot] = ys.size > 0
            if ys.size:
                result["boxes"][slot] = [4 * xs.min(), 4 * ys.min(), 4 * xs.max() + 4,
                                         4 * ys.max() + 4]  # fmt: skip
                result["centers"][slot] = [4 * xs.mean() + 1.5, 4 * ys.mean() + 1.5]
    scale = np.array([width / old_width, height / old_height])
    for slot, index, mask in pasted:
        result["masks"][slot], result["valid"][slot] = mask, True
        result["boxes"][slot] = source["boxes"][index] * np.tile(scale, 2)
        result["centers"][slot] = (source["centers"][index] + 0.5) * scale - 0.5
        for key in ("labels", "mask_valid", "embeddings"):
            result[key][slot] = source[key][index]
    alpha = cv2.resize(union.astype(np.float32), (W, H), interpolation=cv2.INTER_LINEAR) >= 0.5
    alpha[height:] = False
    alpha[:, width:] = False
    composite = target["image"].astype(np.float32)
    composite[:height, :width][alpha[:height, :width]] = resized[alpha[:height, :width]]
    result["image"], result["alpha"] = composite, alpha
    return result, overflow


jitted = jax.jit(copy_paste)


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_a_loop_over_objects_and_pixels(seed):
    rows = random_rows(seed)
    sources = rows[::-1]
    seeds = np.arange(len(rows)) + 100 * seed
    found = jitted(make_batch(rows, seeds), make_batch(sources, seeds + 7))
    for row, (target, source) in enumerate(zip(rows, sources, strict=True)):
        chosen = np.asarray(_chosen(jnp.uint32(seeds[row]), jnp.asarray(source["valid"])))
        expected, overflow = reference(target, source, chosen)
        instances = jax.tree.map(lambda x, row=row: np.asarray(x[row]), found.instances)
        np.testing.assert_array_equal(instances.valid, expected["valid"])
        valid = instances.valid
        np.testing.assert_array_equal(unpack(found.instances, row)[valid], expected["masks"][valid])
        for key in ("boxes", "centers"):
            np.testing.assert_allclose(
                getattr(instances, key)[valid], expected[key][valid], atol=1e-4
            )
        for key in ("labels", "mask_valid", "embeddings"):
            np.testing.assert_array_equal(getattr(instances, key)[valid], expected[key][valid])
        assert found.dropped_instances[row] == overflow
        # Half a grey level of rounding, and OpenCV's own.
        image = np.asarray(found.image[row]).astype(np.float32)
        assert np.abs(image - expected["image"]).max() <= 0.51
        outside = ~expected["alpha"]
        np.testing.assert_array_equal(image[outside], target["image"][outside])


def test_the_loop_sees_every_case():
    """Objects pasted, refused for what they cover, without a slot, and old ones touched."""
    pasted = overflowed = touched = 0
    for seed in range(4):
        rows = random_rows(seed)
        for row, (target, source) in enumerate(zip(rows, rows[::-1], strict=True)):
            chosen = np.asarray(_chosen(jnp.uint32(row + 100 * seed), jnp.asarray(source["valid"])))
            expected, overflow = reference(target, source, chosen)
            pasted += int((expected["valid"] & ~target["valid"]).sum())
            overflowed += overflow
            old = target["valid"]
            touched += int((expected["masks"][old] != target["masks"][old]).any((1, 2)).sum())
    assert min(pasted, overflowed, touched) > 0, (pasted, overflowed, touched)


def seed_that_chooses(count, valid):
    """A seed by which so many are chosen."""
    for seed in range(1000):
        if int(_chosen(jnp.uint32(seed), jnp.asarray(valid)).sum()) == count:
            return seed
    raise AssertionError


def test_half_covered_keeps_the_paster_away_and_less_is_cut():
    rng = np.random.default_rng(0)
    size = (H, W)
    target = make_row(rng, size, [rectangle(4, 4, 8, 12)])  # 32 pixels
    half = make_row(rng, size, [rectangle(4, 8, 8, 16)])  # covers 16
    less = make_row(rng, size, [rectangle(4, 9, 8, 16)])  # covers 12
    seed = seed_that_chooses(1, half["valid"])
    found = jitted(make_batch([target, target], [seed] * 2), make_batch([half, less], [0, 0]))
    assert found.instances.valid[:, :2].tolist() == [[True, False], [True, True]]
    np.testing.assert_array_equal(found.image[0], target["image"])
    np.testing.assert_array_equal(unpack(found.instances, 1)[0], rectangle(4, 4, 8, 9))
    assert found.instances.boxes[1, 0].tolist() == [16, 16, 36, 32]
    assert found.instances.centers[1, 0].tolist() == [25.5, 23.5]
    # A target's own box and centre stay where nothing touches it.
    np.testing.assert_array_equal(found.instances.boxes[0], target["boxes"])


def test_what_two_pasted_objects_cover_together_is_dropped():
    rng = np.random.default_rng(0)
    target = make_row(rng, (H, W), [rectangle(4, 4, 8, 7)])
    source = make_row(rng, (H, W), [rectangle(2, 2 + k, 9, 3 + k) for k in (2, 3, 4)])
    seed = seed_that_chooses(3, source["valid"])
    found = jitted(make_batch([target], [seed]), make_batch([source], [0]))
    assert found.instances.valid[0].tolist() == [False, True, True, True, False]


def test_rows_that_are_not_valid_neither_give_nor_get():
    rows = random_rows(3, 2)
    seed = max(seed_that_chooses(int(row["valid"].sum()), row["valid"]) for row in rows)
    for valid in ([True, False], [False, True]):
        batch = make_batch(rows, [seed] * 2, valid)
        found = jitted(batch, make_batch(rows[::-1], [seed] * 2, valid[::-1]))
        jax.tree.map(np.testing.assert_array_equal, found, batch)


def test_every_number_of_objects_and_every_object_is_as_likely():
    valid = jnp.array([True, False, True, True, False])
    chosen = np.asarray(jax.vmap(_chosen, (0, None))(jnp.arange(8000, dtype=jnp.uint32), valid))
    assert not chosen[:, [1, 4]].any()
    counts = np.bincount(chosen.sum(1), minlength=4) / 8000
    np.testing.assert_allclose(counts, 0.25, atol=0.02)  # 4 sigma of a fraction
    np.testing.assert_allclose(chosen.mean(0)[[0, 2, 3]], 0.5, atol=0.023)


def test_coarse_masks_are_refused():
    batch = make_batch(random_rows(0, 2), [0, 1])
    coarse = (np.zeros((2, N, H // 8, W // 64), np.uint8),)
    batch = batch.replace(instances=batch.instances.replace(coarse_masks=coarse))
    with pytest.raises(InputError, match="1/4 scale alone"):
        copy_paste(batch, batch)
