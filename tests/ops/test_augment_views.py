"""The device's half of the views: draws, their independence of the batch, and the whole chain."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from solojax.errors import InputError
from solojax.ops.augment_views import _draw, augment_views
from solojax.ops.blur import gaussian_blur
from solojax.ops.color import jitter_colors, to_grayscale

STRENGTHS = (0.4, 0.4, 0.4, 0.1)
SIGMA = (0.1, 0.5)  # a short kernel compiles in less time than the published one
SETTINGS = {
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "jitter_probability": 0.8,
    "grayscale_probability": 0.2,
    "blur_probability": 0.5,
    "blur_sigma": SIGMA,
    "pixel_mean": (123.675, 116.28, 103.53),
    "pixel_std": (58.395, 57.12, 57.375),
}
NEVER = {"jitter_probability": 0.0, "grayscale_probability": 0.0, "blur_probability": 0.0}
VIEWS = np.random.default_rng(0).integers(0, 256, (8, 2, 12, 10, 3), dtype=np.uint8)
SEEDS = np.random.default_rng(1).integers(0, 2**32, 8, dtype=np.uint32)


@functools.cache
def compiled(**changes):
    return jax.jit(functools.partial(augment_views, **{**SETTINGS, **changes}))


@functools.cache
def compiled_draws():
    draw = functools.partial(
        _draw, strengths=STRENGTHS, probabilities=(0.8, 0.2, 0.5), blur_sigma=SIGMA
    )
    return jax.jit(jax.vmap(jax.vmap(draw, (None, 0)), (0, None)))


@functools.cache
def draws(count=20_000):
    """The draws of both views of `count` rows, as NumPy arrays (count, 2, ...)."""
    table = compiled_draws()(jnp.arange(count, dtype=jnp.uint32), jnp.arange(2))
    return {name: np.asarray(value) for name, value in table.items()}


def images_in_01(result):
    """Undoes the normalisation: (B, 2, H, W, 3) in [0, 1]."""
    return (np.asarray(result) * SETTINGS["pixel_std"] + SETTINGS["pixel_mean"]) / 255


def test_nothing_but_normalisation():
    result = compiled(**NEVER)(VIEWS, SEEDS)
    expected = (VIEWS - np.array(SETTINGS["pixel_mean"])) / np.array(SETTINGS["pixel_std"])
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5)


def test_in_float64_the_same_draws_are_followed_more_exactly():
    rough = compiled()(VIEWS, SEEDS)
    with jax.enable_x64(True):
        exact = jax.jit(functools.partial(augment_views, **SETTINGS, dtype=jnp.float64))(
            VIEWS, SEEDS
        )
    assert exact.dtype == jnp.float64
    gap = np.abs(np.asarray(exact) - np.asarray(rough, np.float64))
    assert 0 < gap.max() < 1e-4


def test_the_chain_follows_its_draws():
    """Jitter, then grayscale, then blur, each where its draw says so; one view at a time."""
    result = images_in_01(compiled()(VIEWS, SEEDS))
    table = compiled_draws()(SEEDS, jnp.arange(2))
    blur = jax.jit(functools.partial(gaussian_blur, max_sigma=SIGMA[1]))
    jitter = jax.jit(jitter_colors)
    for row, view in itertools.product(range(len(SEEDS)), range(2)):
        draw = {name: value[row, view] for name, value in table.items()}
        image = jnp.asarray(np.moveaxis(VIEWS[row, view], -1, 0)[None], jnp.float32) / 255
        if draw["is_jittered"]:
            image = jitter(image, draw["factors"][None], draw["order"][None])
        if draw["is_gray"]:
            image = jnp.repeat(to_grayscale(image), 3, axis=1)
        if draw["sigma"] > 0:
            image = blur(image, draw["sigma"][None, None])
        np.testing.assert_allclose(
            result[row, view], np.moveaxis(image[0], 0, -1), rtol=0, atol=2e-6
        )


def test_brightness_alone_multiplies():
    """From outside, without looking at the draws."""
    only = compiled(**{**NEVER, "jitter_probability": 1.0}, contrast=0.0, saturation=0.0, hue=0.0)
    ratio = images_in_01(only(VIEWS // 2 + 1, SEEDS)) / ((VIEWS // 2 + 1) / 255)
    factor = np.median(ratio, axis=(2, 3, 4))
    assert (factor > 0.6).all() and (factor < 1.4).all() and np.ptp(factor) > 0.3
    np.testing.assert_allclose(
        ratio, np.broadcast_to(factor[..., None, None, None], ratio.shape), rtol=1e-3
    )


def test_grayscale_alone_has_equal_channels():
    gray = images_in_01(compiled(**{**NEVER, "grayscale_probability": 1.0})(VIEWS, SEEDS))
    expected = VIEWS @ np.array([0.2989, 0.587, 0.114]) / 255
    np.testing.assert_allclose(gray, np.repeat(expected[..., None], 3, axis=-1), rtol=0, atol=2e-6)


def test_a_row_does_not_know_its_batch():
    whole = np.asarray(compiled()(VIEWS, SEEDS))
    for rows in ([5], [7, 6, 5, 4, 3, 2, 1, 0]):
        part = compiled()(VIEWS[rows], SEEDS[rows])
        np.testing.assert_allclose(part, whole[rows], rtol=0, atol=1e-6)


def test_devices_do_not_change_anything_nor_talk():
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    arguments = jax.device_put(VIEWS, rows), jax.device_put(SEEDS, rows)
    program = compiled().lower(*arguments).compile()
    result = program(*arguments)
    assert result.sharding.is_equivalent_to(rows, result.ndim)
    np.testing.assert_allclose(result, compiled()(VIEWS, SEEDS), rtol=0, atol=1e-6)
    text = program.as_text()
    for collective in ("all-reduce", "all-gather", "all-to-all", "collective-permute"):
        assert f" {collective}(" not in text


def test_a_view_alone_is_what_it_is_beside_the_other():
    """With its place; without it the second would get the first one's draws."""
    both = np.asarray(compiled()(VIEWS, SEEDS))
    for view in range(2):
        alone = compiled(first_view=view)(VIEWS[:, view : view + 1], SEEDS)
        np.testing.assert_allclose(alone[:, 0], both[:, view], rtol=0, atol=1e-6)
    misplaced = np.asarray(compiled(first_view=0)(VIEWS[:, 1:], SEEDS))
    assert np.abs(misplaced[:, 0] - both[:, 1]).max() > 1e-2


def test_views_and_seeds_differ():
    same = np.broadcast_to(VIEWS[:1, :1], VIEWS.shape)
    result = np.asarray(compiled(jitter_probability=1.0)(same, SEEDS)).reshape(16, -1)
    apart = np.abs(result[:, None] - result).max(-1)
    assert (apart[~np.eye(16, dtype=bool)] > 1e-3).all()


def test_half_precision():
    result = compiled(dtype=jnp.bfloat16)(VIEWS, SEEDS)
    assert result.dtype == jnp.bfloat16
    exact = compiled()(VIEWS, SEEDS)
    np.testing.assert_array_equal(result, exact.astype(jnp.bfloat16))


def test_every_order_is_as_likely():
    orders = draws()["order"].reshape(-1, 4)
    _, counts = np.unique(orders @ [64, 16, 4, 1], return_counts=True)
    assert len(counts) == 24 and (np.sort(orders) == range(4)).all()
    expected = len(orders) / 24
    assert ((counts - expected) ** 2 / expected).sum() < 49.7  # 0.1% of chi-square, 23 degrees


def test_probabilities():
    count = draws()["sigma"].size
    found = {name: draws()[name].mean() for name in ("is_jittered", "is_gray")}
    found["is_blurred"] = (draws()["sigma"] > 0).mean()
    for name, expected in (("is_jittered", 0.8), ("is_gray", 0.2), ("is_blurred", 0.5)):
        assert abs(found[name] - expected) < 4 * np.sqrt(expected * (1 - expected) / count), name


@pytest.mark.parametrize(
    "name,low,high", [(0, 0.6, 1.4), (1, 0.6, 1.4), (2, 0.6, 1.4), (3, -0.1, 0.1), ("s", *SIGMA)]
)
def test_factors_are_even(name, low, high):
    if name == "s":
        values = draws()["sigma"][draws()["sigma"] > 0]
    else:
        values = draws()["factors"][..., name].reshape(-1)
    assert values.min() >= low and values.max() <= high
    places = np.sort((values - low) / (high - low))
    steps = np.arange(1, len(places) + 1) / len(places)
    assert np.abs(places - steps).max() < 1.95 / np.sqrt(len(places))  # Kolmogorov-Smirnov, 0.1%


def test_draws_are_independent():
    """Of each other, and between the two views of a row."""
    table = draws()
    columns = [table["factors"][..., i] for i in range(4)] + [
        table["is_jittered"], table["is_gray"], table["sigma"], table["order"][..., 0]
    ]  # fmt: skip
    columns = np.stack([c[:, view] for c in columns for view in range(2)]).astype(float)
    correlation = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(correlation).max() < 4.5 / np.sqrt(columns.shape[1])


def test_strong_brightness_stops_at_black():
    """torchvision draws from [max(0, 1 - b), 1 + b]."""
    draw = functools.partial(
        _draw, strengths=(3.0, 0.0, 0.0, 0.0), probabilities=(1.0, 0.0, 0.0), blur_sigma=(1.0, 1.0)
    )
    factors = np.asarray(jax.vmap(draw, (0, None))(jnp.arange(500, dtype=jnp.uint32), 0)["factors"])
    assert factors[:, 0].min() >= 0 and factors[:, 0].min() < 0.1 and factors[:, 0].max() > 3.9
    np.testing.assert_array_equal(factors[:, 1:3], 1)


def test_draws_of_a_seed_are_for_ever():
    """A run that is resumed with another version goes on with the views it would have had."""
    table = compiled_draws()(jnp.uint32([7, 2**32 - 1]), jnp.arange(2))
    np.testing.assert_array_equal(table["order"][0], [[3, 0, 2, 1], [1, 3, 0, 2]])
    np.testing.assert_array_equal(table["order"][1], [[0, 1, 2, 3], [2, 1, 0, 3]])
    np.testing.assert_allclose(table["sigma"], [[0.397943, 0.369736], [0, 0]], rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        table["factors"][0, 0], [1.361331, 1.027113, 0.615185, 0.038984], rtol=0, atol=1e-6
    )
    np.testing.assert_array_equal(table["is_gray"], [[True, False], [False, False]])
    np.testing.assert_array_equal(table["is_jittered"], [[False, True], [True, True]])


@pytest.mark.parametrize(
    "change,message",
    [
        ({"hue": 0.6}, "hue of the views is 0.6"),
        ({"contrast": -0.1}, "contrast of the views is -0.1"),
        ({"blur_probability": 1.5}, "blur_probability"),
        ({"blur_sigma": (2.0, 0.1)}, "blur_sigma"),
        ({"blur_sigma": (0.0, 1.0)}, "blur_sigma"),
    ],
)
def test_settings_out_of_range(change, message):
    with pytest.raises(InputError, match=message) as error:
        augment_views(VIEWS, SEEDS, **{**SETTINGS, **change})
    assert "\n" not in str(error.value)
