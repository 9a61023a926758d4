"""The part of contrastive pre-training's augmentation that runs on the device: colours and blur."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from solojax.errors import InputError
from solojax.ops.blur import gaussian_blur
from solojax.ops.color import jitter_colors, to_grayscale
from solojax.ops.images import normalize_pixels
from solojax.structures import Array

# What a row's random bits are for. Part of what makes a run repeatable: never renumber.
_STREAM = 0x56494557
_FACTORS, _ORDER, _JITTER, _GRAYSCALE, _BLUR, _SIGMA, _NUM_DRAWS = 0, 4, 8, 9, 10, 11, 12


def augment_views(
    views: Array,
    seeds: Array,
    first_view: int = 0,
    *,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    jitter_probability: float,
    grayscale_probability: float,
    blur_probability: float,
    blur_sigma: tuple[float, float],
    pixel_mean: tuple[float, float, float],
    pixel_std: tuple[float, float, float],
    dtype=jnp.float32,
) -> Array:
    """Jitters colours, drops them, blurs and normalises, each view by draws of its own.

    With probability `jitter_probability`: brightness, contrast, saturation and hue in an even
    random order, their factors drawn evenly from [max(0, 1 - b), 1 + b] and the hue's turn from
    [-h, h], as torchvision's ColorJitter does. Then grayscale, then blur with a sigma drawn evenly
    from `blur_sigma`, each with its probability (thesis 5.3.1).

    All of a view's draws come from its row's seed and its place in the row alone, so that the
    result depends neither on the batch nor on the number of devices, nor on whether the views of a
    row are changed together. It is computed in float32
    (float64 for that type) without 8-bit rounding in between, which torchvision has on Pillow
    images.

    Args:
      views: (B, V, H, W, 3) uint8 RGB, V views of every row that follow each other.
      seeds: (B,) uint32, each row's own.
      first_view: the place in its row of `views[:, 0]`.
      brightness: b, not negative. 0.4 in the published runs.
      contrast: likewise, 0.4.
      saturation: likewise, 0.4.
      hue: h in [0, 0.5], a fraction of the full circle. 0.1.
      jitter_probability: 0.8 in the published runs.
      grayscale_probability: 0.2.
      blur_probability: 0.5.
      blur_sigma: (low, high) in pixels, (0.1, 2).
      pixel_mean: of the channels, in [0, 255].
      pixel_std: likewise.
      dtype: of the result.

    Returns:
      (B, V, H, W, 3): (view - pixel_mean) / pixel_std.

    Raises:
      InputError: a setting is out of its range.
    """
    strengths = (brightness, contrast, saturation, hue)
    probabilities = (jitter_probability, grayscale_probability, blur_probability)
    _check(strengths, probabilities, blur_sigma)
    exact = jnp.promote_types(dtype, jnp.float32)
    draw = functools.partial(
        _draw, strengths=strengths, probabilities=probabilities, blur_sigma=blur_sigma, dtype=exact
    )
    places = first_view + jnp.arange(views.shape[1])
    draws = jax.vmap(jax.vmap(draw, (None, 0)), (0, None))(seeds, places)
    draws = {name: _merge_views(value) for name, value in draws.items()}

    rgb = _merge_views(jnp.moveaxis(views, -1, -3)).astype(exact) / 255  # (B V, 3, H, W)
    jittered = jitter_colors(rgb, draws["factors"], draws["order"])
    rgb = jnp.where(draws["is_jittered"][:, None, None, None], jittered, rgb)
    rgb = jnp.where(draws["is_gray"][:, None, None, None], to_grayscale(rgb), rgb)
    rgb = gaussian_blur(rgb, draws["sigma"][:, None], max_sigma=blur_sigma[1])

    images = jnp.moveaxis(rgb, -3, -1).reshape(views.shape)
    return normalize_pixels(255 * images, pixel_mean, pixel_std, dtype)


def _draw(
    seed: Array, view: Array, *, strengths, probabilities, blur_sigma, dtype=jnp.float32
) -> dict[str, Array]:
    """What happens to one view.

    Returns:
      factors (4,) and order (4,) int32 of `jitter_colors`; is_jittered and is_gray () bool; sigma
      (), 0 where the view is not blurred. The same draws, in float32, for every dtype.
    """
    # The generator by name: a run must not change with JAX's default.
    key = jax.random.key(_STREAM, impl="threefry2x32")
    key = jax.random.fold_in(jax.random.fold_in(key, seed), view)

    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(_NUM_DRAWS))
    draws = jax.vmap(lambda k: jax.random.uniform(k, (), jnp.float32))(keys)  # from [0, 1)

    low = jnp.asarray([max(0.0, 1 - s) for s in strengths[:3]] + [-strengths[3]], dtype)
    high = jnp.asarray([1 + s for s in strengths[:3]] + [strengths[3]], dtype)
    jitter, grayscale, blur = probabilities
    exact = draws.astype(dtype)
    sigma = blur_sigma[0] + exact[_SIGMA] * (blur_sigma[1] - blur_sigma[0])
    return {
        "factors": low + exact[_FACTORS : _FACTORS + 4] * (high - low),
        "order": jnp.argsort(draws[_ORDER : _ORDER + 4]),
        "is_jittered": draws[_JITTER] < jitter,
        "is_gray": draws[_GRAYSCALE] < grayscale,
        "sigma": jnp.where(draws[_BLUR] < blur, sigma, 0),
    }


def _merge_views(array: Array) -> Array:
    """(B, V, ...) to (B V, ...)."""
    return array.reshape(-1, *array.shape[2:])


def _check(strengths, probabilities, blur_sigma) -> None:
    names = ("brightness", "contrast", "saturation", "hue")
    for name, strength in zip(names, strengths, strict=True):
        highest = 0.5 if name == "hue" else float("inf")
        if not 0 <= strength <= highest:
            raise InputError(f"{name} of the views is {strength}; give 0 to {highest}")
    for name, probability in zip(("jitter", "grayscale", "blur"), probabilities, strict=True):
        if not 0 <= probability <= 1:
            raise InputError(
                f"{name}_probability of the views is {probability}; give a number from 0 to 1"
            )
    low, high = blur_sigma
    if not 0 < low <= high:
        raise InputError(
            f"blur_sigma of the views is {tuple(blur_sigma)}; give (low, high), positive pixels, "
            "the lower first"
        )
