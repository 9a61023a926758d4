"""Deformable convolution against torchvision's recorded values and a loop over samples."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import plain_layers
from helpers.golden import load_arrays
from helpers.tiny import quick_jit

from solojax.errors import InputError
from solojax.ops.deform_conv import deform_conv

RNG = np.random.default_rng(0)


def nhwc(x):
    return np.moveaxis(x, 1, -1)


def hwio(x):
    return np.transpose(x, (2, 3, 1, 0))


def pixel(image, y, x):
    """One pixel of an image, zero outside."""
    inside = 0 <= y < image.shape[0] and 0 <= x < image.shape[1]
    return image[y, x] if inside else np.zeros(image.shape[-1])


def bilinear_sample(image, y, x):
    low_y, low_x = int(np.floor(y)), int(np.floor(x))
    dy, dx = y - low_y, x - low_x
    upper = (1 - dx) * pixel(image, low_y, low_x) + dx * pixel(image, low_y, low_x + 1)
    lower = (1 - dx) * pixel(image, low_y + 1, low_x) + dx * pixel(image, low_y + 1, low_x + 1)
    return (1 - dy) * upper + dy * lower


def plain_deform_conv(
    x, offset, kernel, mask=None, stride=1, dilation=1, groups=1, offset_groups=1
):
    """Every output, offset group and tap one after the other, in float64."""
    side, _, group_in, out_channels = kernel.shape
    batch, height, width = offset.shape[:3]
    offset = offset.reshape(batch, height, width, offset_groups, side, side, 2)
    mask = np.ones(offset.shape[:-1]) if mask is None else mask.reshape(offset.shape[:-1])
    out = np.zeros((batch, height, width, out_channels))
    share, group_out = x.shape[-1] // offset_groups, out_channels // groups
    for b, row, column in np.ndindex(batch, height, width):
        for i, j in np.ndindex(side, side):
            sample = np.zeros(x.shape[-1])
            for g in range(offset_groups):
                dy, dx = offset[b, row, column, g, i, j]
                y = stride * row + dilation * (i - side // 2) + dy
                place = stride * column + dilation * (j - side // 2) + dx
                channels = slice(g * share, (g + 1) * share)
                value = bilinear_sample(x[b, :, :, channels], y, place)
                sample[channels] = value * mask[b, row, column, g, i, j]
            for g in range(groups):
                outputs = slice(g * group_out, (g + 1) * group_out)
                part = sample[g * group_in : (g + 1) * group_in]
                out[b, row, column, outputs] += part @ kernel[i, j, :, outputs]
    return out


def random_case(shape=(2, 7, 6), channels=(8, 12), side=3, stride=1, groups=1, offset_groups=1):
    batch, height, width = shape
    out_shape = (batch, -(-height // stride), -(-width // stride), offset_groups * side**2)
    x = RNG.standard_normal((*shape, channels[0]))
    offset = 2 * RNG.standard_normal((*out_shape[:3], 2 * out_shape[3]))
    kernel = RNG.standard_normal((side, side, channels[0] // groups, channels[1]))
    return x, offset, kernel, RNG.random(out_shape)


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("case", ["plain", "stride2", "dilated", "grouped", "two_offset_groups"])
def test_outputs_and_gradients_are_torchvisions(case, modulated):
    arrays = load_arrays("deform_conv/deform_conv.npz")
    recorded = {
        key.split("/", 2)[2]: value
        for key, value in arrays.items()
        if key.startswith(f"{case}/{'v2' if modulated else 'v1'}/")
    }
    geometry = arrays[f"{case}/stride_padding_dilation_groups_offsetgroups"]
    stride, padding, dilation, groups, offset_groups = geometry.tolist()
    assert padding == dilation
    inputs = {
        "input": nhwc(arrays[f"{case}/input"]),
        "weight": hwio(arrays[f"{case}/weight"]),
        "bias": arrays[f"{case}/bias"],
        "offset": nhwc(arrays[f"{case}/offset"]),
    }
    if modulated:
        inputs["mask"] = nhwc(arrays[f"{case}/mask"])

    def forward(inputs):
        out = deform_conv(
            inputs["input"],
            inputs["offset"],
            inputs["weight"],
            mask=inputs.get("mask"),
            stride=stride,
            dilation=dilation,
            groups=groups,
            offset_groups=offset_groups,
        )
        return out + inputs["bias"]

    @quick_jit
    def run(inputs, cotangent):
        out, pull = jax.vjp(forward, inputs)
        return out, pull(cotangent)[0]

    out, gradients = run(inputs, nhwc(recorded["output_cotangent"]))
    np.testing.assert_allclose(out, nhwc(recorded["output"]), rtol=0, atol=1e-4)
    assert set(recorded) == {"output", "output_cotangent"} | {f"grad_{key}" for key in inputs}
    for name, gradient in gradients.items():
        expected = recorded[f"grad_{name}"]
        layout = {"bias": np.asarray, "weight": hwio}.get(name, nhwc)
        np.testing.assert_allclose(gradient, layout(expected), rtol=0, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2},
        {"dilation": 2},
        {"side": 1},
        {"side": 5},
        {"groups": 2, "offset_groups": 4},
        {"groups": 4, "offset_groups": 2},
        # Sixty-four groups merge into blocks, as in a ResNeXt.
        {"channels": (256, 64), "groups": 64, "shape": (1, 3, 4)},
    ],
)
def test_equals_the_loop_over_samples_in_float64(options):
    x, offset, kernel, mask = random_case(**{k: v for k, v in options.items() if k != "dilation"})
    keywords = {k: v for k, v in options.items() if k not in ("side", "channels", "shape")}
    with jax.enable_x64(True):
        run = quick_jit(functools.partial(deform_conv, **keywords))
        out = run(x, offset, kernel, mask=mask)
        assert out.dtype == jnp.float64
    expected = plain_deform_conv(x, offset, kernel, mask, **keywords)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_are_slopes_in_float64(groups):
    """Central differences along random directions; offsets keep off the pixels' edges."""
    x, _, kernel, mask = random_case((1, 4, 5), (4, 6), groups=groups, offset_groups=2)
    offset = RNG.integers(-2, 3, (1, 4, 5, 36)) + RNG.uniform(0.1, 0.9, (1, 4, 5, 36))
    cotangent = RNG.standard_normal((1, 4, 5, 6))

    def loss(values):
        x, offset, kernel, mask = values
        out = deform_conv(x, offset, kernel, mask=mask, groups=groups, offset_groups=2)
        return jnp.sum(out * cotangent)

    values = (x, offset, kernel, mask)
    with jax.enable_x64(True):
        gradients = quick_jit(jax.grad(loss))(values)
        evaluate = quick_jit(loss)
        for number, value in enumerate(values):
            direction = RNG.standard_normal(value.shape)
            step = 1e-5 * direction
            ends = [
                evaluate(tuple(v + sign * step if n == number else v for n, v in enumerate(values)))
                for sign in (1, -1)
            ]
            slope = (float(ends[0]) - float(ends[1])) / 2e-5
            np.testing.assert_allclose(np.sum(gradients[number] * direction), slope, rtol=1e-6)


@pytest.mark.parametrize("stride", [1, 2])
def test_zero_offsets_give_the_ordinary_convolution(stride):
    x, offset, kernel, _ = (v.astype(np.float32) for v in random_case(stride=stride))
    out = quick_jit(functools.partial(deform_conv, stride=stride))(x, 0 * offset, kernel)
    expected = plain_layers.conv2d(x, kernel, stride)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_an_offset_of_whole_pixels_shifts_the_image():
    """(dy, dx) = (1, -2) at every tap reads one row below and two columns to the left."""
    x, offset, kernel, _ = (v.astype(np.float32) for v in random_case())
    offset = np.broadcast_to(np.float32([1, -2] * 9), offset.shape)
    # Two pixels away from the border nothing is read outside.
    out = quick_jit(deform_conv)(x, offset, kernel)[:, 1:-2, 3:]
    expected = plain_layers.conv2d(x, kernel)[:, 2:-1, 1:-2]
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-4)


def test_far_outside_is_zero_without_gradient_and_nan_is_seen():
    x, offset, kernel, mask = (v.astype(np.float32) for v in random_case())
    far = np.where(RNG.random(offset.shape) < 0.5, 1e9, -np.inf).astype(np.float32)

    @quick_jit
    def run(offset):
        return jax.value_and_grad(lambda o: jnp.sum(deform_conv(x, o, kernel, mask=mask)))(offset)

    total, gradient = run(far)
    assert total == 0 and not np.any(gradient)
    offset[0, 3, 3, 4] = np.nan
    assert np.isnan(run(offset)[0])


def test_bfloat16_interpolates_and_sums_in_float32():
    """Rounded are the samples (2^-9 of each) and the output."""
    x, offset, kernel, mask = random_case(channels=(32, 8))
    x, kernel = (np.asarray(jnp.asarray(v, jnp.bfloat16), np.float64) for v in (x, kernel))
    x_low, kernel_low = (jnp.asarray(v, jnp.bfloat16) for v in (x, kernel))
    offset, mask = offset.astype(np.float32), mask.astype(np.float32)
    out = quick_jit(deform_conv)(x_low, offset, kernel_low, mask=mask)
    assert out.dtype == jnp.bfloat16
    expected = plain_deform_conv(x, offset, kernel, mask)
    magnitude = plain_deform_conv(np.abs(x), offset, np.abs(kernel), mask)
    error = np.abs(np.asarray(out, np.float64) - expected)
    assert np.all(error <= 2.0**-9 * (magnitude + np.abs(expected)) * 1.01)


def test_a_batch_over_devices_is_sampled_where_it_is():
    devices = jax.devices()[:2]
    if len(devices) < 2:
        pytest.skip("needs two devices")
    mesh = jax.sharding.Mesh(devices, ("data",))
    spread = jax.NamedSharding(mesh, jax.P("data"))
    whole = jax.NamedSharding(mesh, jax.P())
    x, offset, kernel, mask = (v.astype(np.float32) for v in random_case((2, 6, 6)))

    def gradients(x, offset, kernel, mask):
        def loss(*values):
            x, offset, kernel, mask = values
            return jnp.sum(jnp.sin(deform_conv(x, offset, kernel, mask=mask, groups=2)))

        return jax.grad(loss, argnums=(0, 1, 2, 3))(x, offset, kernel, mask)

    kernel = kernel[:, :, :4]
    shardings = (spread, spread, whole, spread)
    compiled = (
        jax.jit(gradients, in_shardings=shardings, out_shardings=shardings)
        .lower(x, offset, kernel, mask)
        .compile()
    )
    text = compiled.as_text()
    assert "all-reduce" in text  # of the kernel's gradient
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert collective not in text
    alone = quick_jit(gradients)(x, offset, kernel, mask)
    for ours, expected in zip(
        compiled(*map(jax.device_put, (x, offset, kernel, mask), shardings)), alone, strict=True
    ):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": 2}, r"kernel .* 8 input channels in 2 groups"),
        ({"offset_groups": 3}, "8 input channels do not divide into 3 offset groups"),
        ({"stride": 2}, r"offset has shape \(2, 7, 6, 18\); .*\(2, 4, 3, 18\)"),
        ({"mask": np.zeros((2, 7, 6, 18))}, r"mask has shape \(2, 7, 6, 18\); .*\(2, 7, 6, 9\)"),
    ],
)
def test_shapes_that_do_not_fit_are_errors(change, message):
    x, offset, kernel, mask = random_case()
    with pytest.raises(InputError, match=message):
        deform_conv(x, offset, kernel, **({"mask": mask} | change))
