"""PyTorch's own layers and optimizer beside ours, where PyTorch is installed (extra `parity`)."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from solojax.models.layers import BatchNorm, Conv, GroupNorm, max_pool_3x3
from solojax.ops.resize import (
    downsample_mean_2x,
    resize_bilinear,
    upsample_bilinear_2x,
    upsample_nearest_2x,
)
from solojax.train.optimizers import sgd
from solojax.train.state import TrainState, split_params
from solojax.train.step import make_train_step

torch = pytest.importorskip("torch")
functional = torch.nn.functional
SIZES = [(8, 8), (7, 9), (13, 5), (1, 6)]


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def nchw(x):
    return torch.tensor(np.moveaxis(np.asarray(x), -1, 1), requires_grad=True)


def nhwc(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


def check(ours, theirs):
    """Within float32's rounding of the largest value."""
    assert ours.shape == theirs.shape
    assert np.abs(np.asarray(ours) - theirs).max() <= 3e-6 * max(np.abs(theirs).max(), 1)


def check_with_gradient(ours, theirs, x):
    """A function of NHWC beside one of NCHW: values, and the gradient for a random cotangent."""
    value, pull = jax.vjp(ours, jnp.asarray(x))
    given = nchw(x)
    wanted = theirs(given)
    check(value, nhwc(wanted))
    cotangent = draw(9, *value.shape)
    wanted.backward(torch.tensor(np.moveaxis(cotangent, -1, 1)))
    check(pull(jnp.asarray(cotangent))[0], nhwc(given.grad))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("side, stride", [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
@pytest.mark.parametrize("groups", [1, 2])
def test_conv2d(size, side, stride, groups):
    x, kernel = draw(0, 2, *size, 6), draw(1, side, side, 6 // groups, 4)
    bias = draw(2, 4)
    module = Conv(4, side, stride, groups=groups)

    def ours(x, kernel, bias):
        return module.apply({"params": {"kernel": kernel, "bias": bias}}, x)

    value, pull = jax.vjp(ours, *map(jnp.asarray, (x, kernel, bias)))
    given = nchw(x)
    weight = torch.tensor(kernel.transpose(3, 2, 0, 1), requires_grad=True)
    shift = torch.tensor(bias, requires_grad=True)
    wanted = functional.conv2d(given, weight, shift, stride, side // 2, groups=groups)
    check(value, nhwc(wanted))
    cotangent = draw(3, *value.shape)
    wanted.backward(torch.tensor(np.moveaxis(cotangent, -1, 1)))
    gradients = pull(jnp.asarray(cotangent))
    check(gradients[0], nhwc(given.grad))
    check(gradients[1], weight.grad.numpy().transpose(2, 3, 1, 0))
    check(gradients[2], shift.grad.numpy())


@pytest.mark.parametrize("size", SIZES)
def test_group_norm(size):
    x, scale, bias = draw(0, 2, *size, 64), draw(1, 64), draw(2, 64)
    module = GroupNorm(32)
    check_with_gradient(
        lambda x: module.apply({"params": {"scale": scale, "bias": bias}}, x),
        lambda x: functional.group_norm(x, 32, torch.tensor(scale), torch.tensor(bias)),
        x,
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm(size, training):
    x, scale, bias = draw(0, 3, *size, 5), draw(1, 5), draw(2, 5)
    mean, var = draw(3, 5), np.abs(draw(4, 5)) + 0.1
    module = BatchNorm(use_running_average=not training)
    variables = {
        "params": {"scale": scale, "bias": bias},
        "batch_stats": {"mean": mean, "var": var},
    }
    running = [torch.tensor(mean), torch.tensor(var)]

    def theirs(x):
        weight, shift = torch.tensor(scale), torch.tensor(bias)
        return functional.batch_norm(x, *running, weight, shift, training=training)

    check_with_gradient(lambda x: module.apply(variables, x, mutable=["batch_stats"])[0], theirs, x)
    _, updated = module.apply(variables, x, mutable=["batch_stats"])
    stats = updated["batch_stats"] if training else variables["batch_stats"]
    check(stats["mean"], running[0].numpy())
    check(stats["var"], running[1].numpy())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("target", [(8, 8), (5, 11), (16, 3)])
def test_bilinear_interpolation(size, target):
    check_with_gradient(
        lambda x: resize_bilinear(x, *target),
        lambda x: functional.interpolate(x, target, mode="bilinear", align_corners=False),
        draw(0, 2, *size, 3),
    )


@pytest.mark.parametrize("size", SIZES)
def test_doubling(size):
    x = draw(0, 2, *size, 3)
    double = {"scale_factor": 2, "mode": "bilinear", "align_corners": False}
    check_with_gradient(upsample_bilinear_2x, lambda x: functional.interpolate(x, **double), x)
    check_with_gradient(
        upsample_nearest_2x, lambda x: functional.interpolate(x, scale_factor=2, mode="nearest"), x
    )


@pytest.mark.parametrize("size", [(8, 8), (6, 14)])
def test_halving(size):
    half = {"scale_factor": 0.5, "mode": "bilinear", "align_corners": False}
    x = draw(0, 2, *size, 3)
    check_with_gradient(downsample_mean_2x, lambda x: functional.interpolate(x, **half), x)


@pytest.mark.parametrize("size", SIZES)
def test_max_pool2d(size):
    x = draw(0, 2, *size, 3)
    check_with_gradient(max_pool_3x3, lambda x: functional.max_pool2d(x, 3, 2, 1), x)


class TwoLayers:
    """A task whose stem may be frozen: the loss is the mean square of x stem head - 1."""

    def __init__(self, freeze_stem):
        self._freeze_stem = freeze_stem

    def row_weights(self, batch):
        return jnp.ones(len(batch))

    def loss_fn(self, params, state, batch, rng, weights):
        del rng, weights
        loss = jnp.mean((batch @ params["stem"]["kernel"] @ params["head"]["kernel"] - 1) ** 2)
        return loss, ({"batch_stats": state.batch_stats}, {"loss": loss})

    def is_trainable(self, path):
        return not (self._freeze_stem and path[0] == "stem")


@pytest.mark.parametrize("freeze_stem", [False, True])
@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_sgd_with_clipping_and_a_drop_of_the_rate(freeze_stem, clip_norm):
    """20 steps of the training step beside torch.optim.SGD and clip_grad_norm_."""
    stem, head, batches = draw(0, 6, 5), draw(1, 5, 3), draw(2, 20, 8, 6)
    rates = [0.05] * 12 + [0.005] * 8
    task = TwoLayers(freeze_stem)
    optimizer = sgd(
        optax.piecewise_constant_schedule(0.05, {12: 0.1}),
        momentum=0.9,
        weight_decay=0.01,
        clip_norm=clip_norm,
    )
    params = {"stem": {"kernel": jnp.asarray(stem)}, "head": {"kernel": jnp.asarray(head)}}
    trainable, _ = split_params(params, task.is_trainable)
    state = TrainState(
        step=jnp.int32(0),
        params=params,
        opt_state=optimizer.init(trainable),
        batch_stats={},
        ema_params=None,
        extra=None,
    )
    step = jax.jit(make_train_step(task, optimizer))

    theirs = SimpleNamespace(
        stem=torch.tensor(stem, requires_grad=not freeze_stem),
        head=torch.tensor(head, requires_grad=True),
    )
    trained = [theirs.head] if freeze_stem else [theirs.stem, theirs.head]
    torch_sgd = torch.optim.SGD(trained, lr=0.05, momentum=0.9, weight_decay=0.01)
    for batch, rate in zip(batches, rates, strict=True):
        state, _ = step(state, jnp.asarray(batch))
        torch_sgd.param_groups[0]["lr"] = rate
        torch_sgd.zero_grad()
        ((torch.tensor(batch) @ theirs.stem @ theirs.head - 1) ** 2).mean().backward()
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(trained, clip_norm)
        torch_sgd.step()
    for name in ("stem", "head"):
        ours, wanted = state.params[name]["kernel"], getattr(theirs, name).detach().numpy()
        np.testing.assert_allclose(ours, wanted, rtol=2e-6, atol=2e-6)
        assert np.abs(wanted - {"stem": stem, "head": head}[name]).max() > 0.05 or (
            freeze_stem and name == "stem"
        )
    if freeze_stem:
        np.testing.assert_array_equal(state.params["stem"]["kernel"], stem)
