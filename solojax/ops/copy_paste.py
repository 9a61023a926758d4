"""Copy-paste on the device: objects of one image put onto another, labels and all (thesis 6.3.1).

What is pasted is resized with its image to the size of the image it goes onto, as the published
training does it. Masks exist at 1/4 scale here, bit-packed: they are resized there, by nearest
pixels, and the pixels to copy are those where their union, upsampled bilinearly, reaches 1/2. The
published code resizes masks at full resolution; the outlines of what is copied differ by up to two
pixels from it, on masks that come from features at 1/32. What a pasted object is trained to look
like is the mask at 1/4 scale in either case.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from solojax.errors import InputError
from solojax.ops.boxes import boxes_from_masks
from solojax.ops.images import valid_pixels
from solojax.ops.masks import (
    center_of_mass,
    mask_area,
    mask_intersection,
    pack_masks,
    unpack_masks,
)
from solojax.ops.resize import resize_bilinear
from solojax.structures import Array, Batch, Instances

# What a row's random bits are for. Part of what makes a run repeatable: never renumber.
_STREAM = 0x50415354
_COUNT, _ORDER = 0, 1

_STRIDE = 4
_MOST_COVERED = 0.5


def copy_paste(targets: Batch, sources: Batch) -> Batch:
    """Pastes objects of each source row onto the target row beside it.

    Of a source's n objects a number drawn evenly from 0 to n is chosen at random. A chosen object
    that would cover half or more of any of the target's objects stays away, as does one that finds
    no slot among the N. The target's objects lose what is covered; those of which nothing is left
    are dropped. Objects that nothing touches keep box and centre as they are, the others get those
    of what is left of their mask at 1/4 scale.

    All draws come from the target row's seed alone. A row that is not valid gives and gets nothing.

    Args:
      targets: B rows; instances without coarse masks.
      sources: B rows of the same canvas.

    Returns:
      The targets, with the objects pasted in their free slots, in the order of the sources.
      `dropped_instances` counts, besides what it did, those that found no slot.

    Raises:
      InputError: there are coarse masks, which nothing here keeps consistent.
    """
    if targets.instances.coarse_masks:
        raise InputError(
            "copy-paste works on masks at 1/4 scale alone: use model.head.kind solov2, which needs "
            "no coarser ones"
        )
    sources = sources.replace(
        instances=sources.instances.replace(
            valid=sources.instances.valid & sources.valid[:, None] & targets.valid[:, None]
        )
    )
    return jax.vmap(_paste_row)(targets, sources)


def _paste_row(target: Batch, source: Batch) -> Batch:
    """One row; all arrays without the axis B."""
    old, canvas = target.instances, target.image.shape[:2]
    moved = _resized_instances(source.instances, source.image_size, target.image_size, canvas)
    old_masks, new_masks = _unpacked(old, canvas[1]), _unpacked(moved, canvas[1])

    pasted = _chosen(target.seed, moved.valid) & jnp.any(new_masks, axis=(-2, -1))
    pasted &= ~_covers_too_much(new_masks, old_masks, old.valid)
    slots, overflow = _free_slots(old.valid, pasted)
    pasted &= slots < old.valid.shape[0]

    union = jnp.any(new_masks & pasted[:, None, None], axis=0)
    image = _composite(target, source, union)
    left = _uncovered(old, old_masks, union)
    instances = jax.tree.map(lambda a, b: _merge(a, b, slots, pasted), left, moved)
    return target.replace(
        image=image,
        instances=instances,
        dropped_instances=target.dropped_instances + overflow,
    )


def _chosen(seed: Array, valid: Array) -> Array:
    """(N,) bool: from none to all of the valid ones, every number being as likely."""
    # The generator by name: a run must not change with JAX's default.
    key = jax.random.fold_in(jax.random.key(_STREAM, impl="threefry2x32"), seed)
    number = jax.random.uniform(jax.random.fold_in(key, _COUNT), (), jnp.float32)
    order = jax.random.uniform(jax.random.fold_in(key, _ORDER), valid.shape, jnp.float32)
    count = jnp.floor(number * (jnp.sum(valid) + 1)).astype(jnp.int32)
    # Uniform numbers are below 1, so that those of what is not valid come last.
    rank = jnp.argsort(jnp.argsort(jnp.where(valid, order, 2.0)))
    return valid & (rank < count)


def _covers_too_much(new: Array, old: Array, old_valid: Array) -> Array:
    """(N,) bool: which new masks cover half or more of any old object."""
    covered = mask_intersection(new, old)  # (new, old)
    too_much = (covered >= _MOST_COVERED * mask_area(old)) & (covered > 0)
    return jnp.any(too_much & old_valid, axis=-1)


def _free_slots(taken: Array, pasted: Array) -> tuple[Array, Array]:
    """(N,) slots for what is pasted, N for those that find none; and how many those are."""
    size = taken.shape[0]
    free = jnp.argsort(taken, stable=True)  # the free ones first, in order
    rank = jnp.cumsum(pasted) - 1
    has_slot = pasted & (rank < size - jnp.sum(taken))
    slots = jnp.where(has_slot, free[jnp.clip(rank, 0, size - 1)], size)
    return slots, jnp.sum(pasted & ~has_slot, dtype=jnp.int32)


def _merge(old: Array, new: Array, slots: Array, pasted: Array) -> Array:
    """Puts the new entries that are pasted into their slots."""
    return old.at[jnp.where(pasted, slots, old.shape[0])].set(new, mode="drop")


def _resized_instances(
    instances: Instances, size: Array, new_size: Array, canvas: tuple[int, int]
) -> Instances:
    """The objects of an image of (height, width) `size` that is resized to `new_size`."""
    scale = (new_size / jnp.maximum(size, 1)).astype(jnp.float32)[::-1]  # of x and y
    height, width = canvas[0] // _STRIDE, canvas[1] // _STRIDE
    rows = _nearest(height, size[0], new_size[0])
    columns = _nearest(width, size[1], new_size[1])
    masks = unpack_masks(instances.masks[:, rows], width)[:, :, columns]
    inside = valid_pixels(*canvas, new_size[None])[0]
    middle = _STRIDE // 2
    masks &= inside[middle::_STRIDE, middle::_STRIDE]
    return instances.replace(
        boxes=instances.boxes * jnp.tile(scale, 2),
        centers=(instances.centers + 0.5) * scale - 0.5,
        masks=pack_masks(masks),
    )


def _nearest(length: int, size: Array, new_size: Array) -> Array:
    """The mask pixel (of `length` in a row) in which each new one's centre lies."""
    centers = _STRIDE * jnp.arange(length) + _STRIDE // 2
    # In whole numbers: no device rounds them.
    return jnp.clip(centers * size // jnp.maximum(_STRIDE * new_size, 1), 0, length - 1)


def _unpacked(instances: Instances, width: int) -> Array:
    """(N, H/4, W/4) bool."""
    return unpack_masks(instances.masks, width // _STRIDE)


def _composite(target: Batch, source: Batch, union: Array) -> Array:
    """The target's image with the source's pixels, resized, where the union of masks says."""
    height, width = target.image.shape[:2]
    alpha = resize_bilinear(union[None, :, :, None].astype(jnp.float32), height, width)[0] >= 0.5
    inside = valid_pixels(height, width, target.image_size[None])[0]
    resized = _resize_within(source.image, source.image_size, target.image_size)
    return jnp.where(alpha & inside[..., None], resized, target.image)


def _resize_within(image: Array, size: Array, new_size: Array) -> Array:
    """Resizes the valid part (height, width) of a canvas, bilinearly, to another size in it.

    The sizes are values, not shapes, so pixels are gathered where `ops.resize` would multiply by
    matrices; whole rows first, then whole columns.
    """
    pixels = image.astype(jnp.float32)
    for axis in (0, 1):
        last = jnp.maximum(size[axis] - 1, 0)
        scale = size[axis] / jnp.maximum(new_size[axis], 1)
        position = jnp.clip((jnp.arange(image.shape[axis]) + 0.5) * scale - 0.5, 0, last)
        low = jnp.floor(position).astype(jnp.int32)
        high = jnp.minimum(low + 1, last)
        fraction = jnp.expand_dims((position - low).astype(jnp.float32), (1 - axis, 2))
        pixels = (1 - fraction) * jnp.take(pixels, low, axis) + fraction * jnp.take(
            pixels, high, axis
        )
    return jnp.round(pixels).astype(image.dtype)


def _uncovered(instances: Instances, masks: Array, union: Array) -> Instances:
    """What is left of the objects below a union of masks."""
    left = masks & ~union
    touched = jnp.any(masks & union, axis=(-2, -1))
    gone = touched & ~jnp.any(left, axis=(-2, -1))
    # The first of a mask pixel's four pixels has index 4 i, their middle 4 i + 1.5.
    centers = _STRIDE * center_of_mass(left) + (_STRIDE - 1) / 2
    return instances.replace(
        boxes=jnp.where(touched[:, None], _STRIDE * boxes_from_masks(left), instances.boxes),
        centers=jnp.where(touched[:, None], centers, instances.centers),
        masks=pack_masks(left),
        valid=instances.valid & ~gone,
    )
