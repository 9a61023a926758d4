"""solojax.models.layers against float64 loops, and BatchNorm in PyTorch's semantics."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import plain_layers
from helpers.tiny import assert_same_bits, quick_jit, random_variables

from solojax.errors import InputError
from solojax.models.layers import (
    BatchNorm,
    Conv,
    ConvNormRelu,
    GroupNorm,
    backbone_norm,
    max_pool_3x3,
)

RNG = np.random.default_rng(0)
X = RNG.normal(1.0, 2.0, size=(3, 6, 9, 4)).astype(np.float32)


@pytest.mark.parametrize(
    ("kernel_size", "stride", "use_bias"),
    [(1, 1, True), (1, 2, False), (3, 1, True), (3, 2, False), (7, 2, False)],
)
def test_convolution_is_the_sum_over_its_window(kernel_size, stride, use_bias):
    conv = Conv(5, kernel_size, stride, use_bias=use_bias)
    variables = random_variables(conv, X)
    params = variables["params"]
    assert params["kernel"].shape == (kernel_size, kernel_size, 4, 5)
    assert ("bias" in params) == use_bias
    out = quick_jit(conv.apply)(variables, X)
    expected = plain_layers.conv2d(X, params["kernel"], stride, params.get("bias"))
    assert out.shape == expected.shape == (3, -(-6 // stride), -(-9 // stride), 5)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_one_output_of_a_strided_convolution_by_hand():
    kernel = RNG.normal(size=(3, 3, 4, 5)).astype(np.float32)
    conv = Conv(5, 3, 2, use_bias=False)
    out = quick_jit(conv.apply)({"params": {"kernel": kernel}}, X)
    # Output (1, 2) is centred on pixel (2, 4).
    window = X[1, 1:4, 3:6].astype(np.float64)
    expected = sum(
        window[i, j, c] * kernel[i, j, c] for i in range(3) for j in range(3) for c in range(4)
    )
    np.testing.assert_allclose(out[1, 1, 2], expected, rtol=1e-5, atol=1e-5)


def test_the_compute_type_is_that_of_the_layer_and_parameters_stay_float32():
    shape = jax.ShapeDtypeStruct(X.shape, jnp.float32)
    for layer in (Conv(32, dtype=jnp.bfloat16), ConvNormRelu(32, dtype=jnp.bfloat16)):
        out, variables = jax.eval_shape(layer.init_with_output, jax.random.key(0), shape)
        assert out.dtype == jnp.bfloat16
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_max_pooling_is_the_loop_over_windows():
    negative = X - 100  # a padding of zeros would win everywhere
    for x in (negative, negative[:, :5, :8]):
        np.testing.assert_array_equal(quick_jit(max_pool_3x3)(x), plain_layers.max_pool(x))


def test_max_pooling_hands_the_gradient_to_the_largest_pixel():
    cotangent = RNG.normal(size=(3, 3, 5, 4)).astype(np.float32)
    (gradient,) = quick_jit(lambda x, g: jax.vjp(max_pool_3x3, x)[1](g))(X, cotangent)
    expected = np.zeros(X.shape)
    for b, y, x, c in np.ndindex(cotangent.shape):
        rows, columns = slice(max(2 * y - 1, 0), 2 * y + 2), slice(max(2 * x - 1, 0), 2 * x + 2)
        window = X[b, rows, columns, c]
        row, column = np.unravel_index(window.argmax(), window.shape)
        expected[b, rows.start + row, columns.start + column, c] += cotangent[b, y, x, c]
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-6)


def test_batch_norm_trains_as_in_pytorch():
    """Three batches: biased variance normalises, the unbiased one enters the running average."""
    norm = BatchNorm(use_running_average=False)
    variables = random_variables(norm, X)
    scale, bias = variables["params"]["scale"], variables["params"]["bias"]
    mean, var = np.zeros(4), np.ones(4)
    variables["batch_stats"] = {"mean": np.float32(mean), "var": np.float32(var)}
    apply = quick_jit(lambda v, x: norm.apply(v, x, mutable=["batch_stats"]))
    for seed in range(3):
        x = np.random.default_rng(seed).normal(seed, 1 + seed, size=X.shape).astype(np.float32)
        out, updated = apply(variables, x)
        variables = variables | updated
        batch_mean = x.mean(axis=(0, 1, 2), dtype=np.float64)
        batch_var = ((x - batch_mean) ** 2).mean(axis=(0, 1, 2))
        expected = plain_layers.batch_norm(x, scale, bias, batch_mean, batch_var)
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5)
        count = 3 * 6 * 9
        mean = 0.9 * mean + 0.1 * batch_mean
        var = 0.9 * var + 0.1 * batch_var * count / (count - 1)
    np.testing.assert_allclose(variables["batch_stats"]["mean"], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(variables["batch_stats"]["var"], var, rtol=1e-5)

    frozen = BatchNorm(use_running_average=True)
    apply = quick_jit(lambda v, x: frozen.apply(v, x, mutable=["batch_stats"]))
    out, updated = apply(variables, X)
    expected = plain_layers.batch_norm(X, scale, bias, mean, var)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5)
    assert_same_bits(updated["batch_stats"], variables["batch_stats"])


def test_masked_rows_do_not_enter_the_batch_statistics():
    norm = BatchNorm(use_running_average=False)
    variables = random_variables(norm, X)
    mask = np.array([True, False, True])

    def loss(variables, x, row_mask):
        out, updated = norm.apply(variables, x, row_mask, mutable=["batch_stats"])
        weight = 1.0 if row_mask is None else row_mask[:, None, None, None]
        return jnp.sum(jnp.sin(out) * weight), updated

    both = quick_jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (value, stats), (grads, x_grads) = both(variables, X * mask[:, None, None, None], mask)
    (expected, expected_stats), (expected_grads, expected_x) = both(variables, X[mask], None)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for name in ("mean", "var"):
        np.testing.assert_allclose(
            stats["batch_stats"][name], expected_stats["batch_stats"][name], rtol=1e-5, atol=1e-6
        )
    for name in ("scale", "bias"):
        np.testing.assert_allclose(
            grads["params"][name], expected_grads["params"][name], rtol=1e-5, atol=1e-5
        )
    np.testing.assert_allclose(x_grads[mask], expected_x, rtol=0, atol=1e-5)
    assert not np.any(x_grads[1])

    # What the masked row holds changes no bit.
    again = both(variables, X, mask)
    assert_same_bits(again[0][1], stats)


def test_a_batch_without_valid_rows_leaves_the_running_statistics_alone():
    norm = BatchNorm(use_running_average=False)
    variables = random_variables(norm, X)
    apply = quick_jit(lambda v, x, mask: norm.apply(v, x, mask, mutable=["batch_stats"]))
    out, updated = apply(variables, X, np.zeros(3, bool))
    assert np.all(np.isfinite(out))
    assert_same_bits(updated["batch_stats"], variables["batch_stats"])


def test_rows_that_do_not_count_stay_finite_through_dozens_of_layers():
    """ResNet-50 has 53 norms: by 316 at each, 1 / sqrt(eps), they would leave float32 at the 16th.

    A mask behind an infinity hides it from the loss and not from the gradient.
    """
    norm, mask = BatchNorm(use_running_average=False), np.zeros(3, bool)
    variables = norm.init(jax.random.key(0), X)

    def loss(params):
        def layer(x, _):
            return norm.apply(variables | {"params": params}, x, mask, mutable=["batch_stats"])

        out, _ = jax.lax.scan(layer, jnp.asarray(X), length=53)
        return jnp.sum(jnp.where(mask[:, None, None, None], out, 0.0))

    value, gradient = quick_jit(jax.value_and_grad(loss))(variables["params"])
    assert value == 0
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(gradient))


def test_groups_of_images_are_normalised_as_batches_of_their_own():
    """Outputs and gradients of each; the running statistics move by the mean."""
    x = np.random.default_rng(1).normal(1, 2, size=(6, 4, 3, 4)).astype(np.float32)
    x[2:4] += 5
    whole, grouped = (BatchNorm(False, group_images=size) for size in (None, 2))
    variables = random_variables(whole, x)

    def sums(norm):
        def loss(variables, x):
            out, updated = norm.apply(variables, x, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(out)), (out, updated["batch_stats"])

        return quick_jit(jax.grad(loss, argnums=(0, 1), has_aux=True))

    (gradient, x_gradient), (out, stats) = sums(grouped)(variables, x)
    parts = [sums(whole)(variables, x[start : start + 2]) for start in (0, 2, 4)]
    np.testing.assert_allclose(out, np.concatenate([p[1][0] for p in parts]), rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        x_gradient, np.concatenate([p[0][1] for p in parts]), rtol=0, atol=1e-5
    )
    for name in ("scale", "bias"):
        expected = sum(p[0][0]["params"][name] for p in parts)
        np.testing.assert_allclose(gradient["params"][name], expected, rtol=1e-4, atol=1e-4)
    for name in ("mean", "var"):
        expected = np.mean([p[1][1][name] for p in parts], axis=0)
        np.testing.assert_allclose(stats[name], expected, rtol=1e-5)


def test_masked_rows_and_empty_groups_do_not_count_in_groups():
    x = np.random.default_rng(1).normal(1, 2, size=(6, 4, 3, 4)).astype(np.float32)
    mask = np.array([True, False, False, False, True, True])
    whole, grouped = (BatchNorm(False, group_images=size) for size in (None, 2))
    variables = random_variables(whole, x)
    apply = lambda norm, *args: norm.apply(variables, *args, mutable=["batch_stats"])  # noqa: E731
    out, updated = apply(grouped, x, mask)
    first, second = apply(whole, x[:1]), apply(whole, x[4:])
    np.testing.assert_allclose(out[:1], first[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(out[4:], second[0], rtol=0, atol=1e-5)
    assert np.all(np.isfinite(out))
    for name in ("mean", "var"):
        expected = (first[1]["batch_stats"][name] + second[1]["batch_stats"][name]) / 2
        np.testing.assert_allclose(updated["batch_stats"][name], expected, rtol=1e-5)
    _, updated = apply(grouped, x, np.zeros(6, bool))
    assert_same_bits(updated["batch_stats"], variables["batch_stats"])


def test_stored_statistics_know_no_groups_and_a_group_must_divide_the_batch():
    frozen, training = (BatchNorm(stored, group_images=2) for stored in (True, False))
    variables = random_variables(frozen, X)
    wanted = BatchNorm(True).apply(variables, X)
    np.testing.assert_array_equal(frozen.apply(variables, X), wanted)
    with pytest.raises(InputError, match="groups of 2 images do not divide the batch of 3"):
        training.apply(variables, X, mutable=["batch_stats"])


def test_initialising_batch_norm_stores_mean_zero_and_variance_one():
    variables = quick_jit(BatchNorm(use_running_average=False).init)(jax.random.key(0), X)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], np.zeros(4))
    np.testing.assert_array_equal(variables["batch_stats"]["var"], np.ones(4))


def test_group_norm_is_the_loop_over_images_and_groups():
    x = RNG.normal(3.0, 2.0, size=(2, 4, 5, 12)).astype(np.float32)
    norm = GroupNorm(num_groups=4)
    variables = random_variables(norm, x)
    params = variables["params"]
    expected = plain_layers.group_norm(x, params["scale"], params["bias"], num_groups=4)
    np.testing.assert_allclose(quick_jit(norm.apply)(variables, x), expected, rtol=0, atol=1e-5)


def test_group_norm_refuses_channels_that_do_not_divide():
    with pytest.raises(InputError, match="48 channels.*32 groups"):
        jax.eval_shape(GroupNorm().init, jax.random.key(0), np.zeros((1, 2, 2, 48), np.float32))


def test_the_heads_block_is_convolution_norm_relu():
    block = ConvNormRelu(32)
    variables = random_variables(block, X)
    params = variables["params"]
    assert set(params) == {"conv", "norm"} and set(params["conv"]) == {"kernel"}
    expected = plain_layers.relu(
        plain_layers.group_norm(
            plain_layers.conv2d(X, params["conv"]["kernel"]), **params["norm"], num_groups=32
        )
    )
    np.testing.assert_allclose(quick_jit(block.apply)(variables, X), expected, rtol=0, atol=1e-4)


def test_the_heads_blocks_start_from_small_normal_weights():
    x = np.zeros((1, 2, 2, 64), np.float32)
    variables = quick_jit(ConvNormRelu(64).init)(jax.random.key(0), x)
    kernel = np.asarray(variables["params"]["conv"]["kernel"])
    assert abs(kernel.std() - 0.01) < 0.01 * 0.02  # 36,864 draws
    assert abs(kernel.mean()) < 0.01 * 0.02
    np.testing.assert_array_equal(variables["params"]["norm"]["scale"], np.ones(64))
    np.testing.assert_array_equal(variables["params"]["norm"]["bias"], np.zeros(64))


def test_an_unknown_norm_is_an_error():
    with pytest.raises(InputError, match="'instance_norm'.*group_norm"):
        backbone_norm(X, "instance_norm", name="bn1", train=True, row_mask=None, dtype=None)
