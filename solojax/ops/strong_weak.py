"""The batch that FreeSOLO learns from: every image twice, strongly and weakly augmented."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from solojax.errors import InputError
from solojax.ops.augment_views import augment_views
from solojax.ops.copy_paste import copy_paste
from solojax.ops.images import valid_pixels
from solojax.structures import Array, Batch


def strong_and_weak(
    batch: Batch,
    *,
    paste: bool = True,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
    hue: float = 0.1,
    jitter_probability: float = 0.8,
    grayscale_probability: float = 0.2,
    blur_probability: float = 0.5,
    blur_sigma: tuple[float, float] = (0.1, 2.0),
) -> Batch:
    """Doubles a batch: each row with changed colours, blur and objects of another, and as it is.

    The defaults are those of the published training (thesis 6.3.1), which also erases random
    rectangles; reference and thesis do not mention that, and it is not done here. Of two neighbours
    (rows 2 i and 2 i + 1) each gives objects to the other, from its weak image, as the published
    runs had it with their two images a GPU. Where a device has an even number of rows, nothing
    moves between devices; otherwise the images of neighbours on two devices change places
    (a collective permute of one image a device). Draws come from the rows' seeds alone, and pairs
    from the global batch, so that the number of devices changes nothing.

    A pure function for the inside of jit, meant for the `augment` of `tasks.free_solo.FreeSOLO`
    after its settings are bound by `functools.partial`. It has to see the whole global batch at
    once, not the parts of `train.accumulate_steps`.

    Args:
      batch: B rows, B even unless `paste` is off; instances without coarse masks.
      paste: whether there is copy-paste.
      brightness: this and the rest are those of `ops.augment_views.augment_views`.
      contrast: likewise.
      saturation: likewise.
      hue: likewise.
      jitter_probability: likewise.
      grayscale_probability: likewise.
      blur_probability: likewise.
      blur_sigma: likewise.

    Returns:
      2 B rows: row 2 i is the strong one of row i, row 2 i + 1 the weak one, which is row i. All
      strong rows before all weak ones would move every image to another device.

    Raises:
      InputError: B is odd, there are coarse masks, or a setting is out of its range.
    """
    colors = {
        "brightness": brightness,
        "contrast": contrast,
        "saturation": saturation,
        "hue": hue,
        "jitter_probability": jitter_probability,
        "grayscale_probability": grayscale_probability,
        "blur_probability": blur_probability,
        "blur_sigma": blur_sigma,
    }
    strong = batch.replace(image=_change_colors(batch, colors))
    if paste:
        strong = copy_paste(strong, jax.tree.map(_neighbours, batch))
    return jax.tree.map(_interleave, strong, batch)


def _change_colors(batch: Batch, colors: dict) -> Array:
    """(B, H, W, 3) uint8: jittered, without colours, blurred, each row by its own draws.

    The padding holds the mean of the image's pixels meanwhile, so that the contrast turns around
    the image's mean and not the canvas's.
    """
    inside = valid_pixels(*batch.image.shape[1:3], batch.image_size)[..., None]
    pixels = batch.image.astype(jnp.float32)
    count = jnp.maximum(jnp.sum(inside, axis=(1, 2), keepdims=True), 1)
    mean = jnp.sum(jnp.where(inside, pixels, 0), axis=(1, 2), keepdims=True) / count
    filled = jnp.where(inside, pixels, mean)
    changed = augment_views(
        filled[:, None], batch.seed, **colors, pixel_mean=(0, 0, 0), pixel_std=(1, 1, 1)
    )[:, 0]
    return jnp.where(inside, jnp.round(changed).astype(batch.image.dtype), batch.image)


def _neighbours(rows: Array) -> Array:
    """Rows 1, 0, 3, 2, ..."""
    if rows.shape[0] % 2:
        raise InputError(
            f"copy-paste takes rows in pairs: a batch of {rows.shape[0]} images is odd, make it "
            "even (train.batch_size)"
        )
    pairs = rows.reshape(rows.shape[0] // 2, 2, *rows.shape[1:])
    return pairs[:, ::-1].reshape(rows.shape)


def _interleave(strong: Array, weak: Array) -> Array:
    return jnp.stack([strong, weak], axis=1).reshape(2 * strong.shape[0], *strong.shape[1:])
