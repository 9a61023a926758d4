"""The compiled training step of four devices: what they send, in which type, and what it reuses."""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny import (
    assert_same_bits,
    quick_jit,
    random_batch,
    random_state,
    relative_distance,
    tiny_task,
)

from solojax.train.collectives import collective_instructions, collectives_of
from solojax.train.optimizers import adamw, sgd
from solojax.train.sharding import (
    batch_sharding,
    make_mesh,
    put_batch,
    replicated,
    spread,
    state_sharding,
)
from solojax.train.state import split_params
from solojax.train.step import make_train_step

BATCH = random_batch(4, rows=8)
OPTIMIZERS = {
    "sgd": sgd(lambda step: 0.01, clip_norm=0.5),
    "adamw": adamw(lambda step: 0.01, clip_norm=0.5),
}

pytestmark = pytest.mark.skipif(jax.device_count() < 4, reason="fewer than 4 devices")


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled step with the state that it takes (NumPy) and its layout."""

    compiled: object
    state: object
    shardings: object
    trainable: object

    @functools.cached_property
    def text(self):
        return self.compiled.as_text()

    def run(self, steps):
        """The final state on the host and the last metrics."""
        mesh = make_mesh(jax.devices()[:4])
        state, batch = jax.device_put(self.state, self.shardings), put_batch(BATCH, mesh)
        for _ in range(steps):
            state, metrics = self.compiled(state, batch)
        return jax.device_get((state, metrics))


@functools.cache
def program(
    *, parts=1, shard=False, optimizer="sgd", norm="frozen_batch_norm", dtype="float32"
) -> Program:
    mesh = make_mesh(jax.devices()[:4])
    task = tiny_task(norm, dtype=jnp.dtype(dtype))
    state = random_state(task, OPTIMIZERS[optimizer], BATCH)
    shardings = state_sharding(state, mesh, shard)
    step = make_train_step(
        task,
        OPTIMIZERS[optimizer],
        accumulate_steps=parts,
        optimizer_mesh=mesh if shard else None,
    )
    step = quick_jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))

    def shape(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    shapes = jax.tree.map(shape, state, shardings)
    rows = jax.tree.map(lambda x: shape(x, batch_sharding(mesh)), BATCH)
    trainable, _ = split_params(state.params, task.is_trainable)
    compiled = step.lower(shapes, rows).compile()
    # On the host: a device's arrays would be given away by the first run.
    return Program(compiled, jax.device_get(state), shardings, trainable)


def total_bytes(tree):
    return sum(np.asarray(x).nbytes for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("parts", [1, 2])
def test_gradients_are_summed_and_nothing_is_gathered(parts):
    found = program(parts=parts)
    (reduced,) = collectives_of(found.text)
    assert reduced.op == "all-reduce"
    # XLA's CPU compiler sums the gradient of every micro-batch; those of TPU sum once.
    scalars = reduced.bytes - parts * total_bytes(found.trainable)
    assert 0 < scalars <= 4 * (8 * parts + 2)


def test_batch_norm_adds_its_sums_alone():
    found = program(norm="batch_norm")
    (reduced,) = collectives_of(found.text)
    assert reduced.op == "all-reduce"
    # Of three norms of 32 channels: mean and variance forward, and one sum backward beside those
    # that are the gradients of scale and bias.
    sums = reduced.bytes - total_bytes(found.trainable)
    assert 3 * 3 * 32 * 4 < sums <= 3 * 3 * 32 * 4 + 4 * 16


def test_bfloat16_computes_and_float32_keeps():
    found = program(dtype="bfloat16")
    assert "bf16[" in found.text
    types = {dtype for each in collective_instructions(found.text) for dtype, _ in each.arrays}
    assert types == {"f32"}
    state, metrics = found.run(2)
    for x in (*jax.tree.leaves(state), *jax.tree.leaves(metrics)):
        assert x.dtype in (np.float32, np.int32) and np.all(np.isfinite(x))
    expected, exact = program().run(2)
    assert 0 < abs(metrics["loss"] / exact["loss"] - 1) < 0.02
    assert 0 < relative_distance(state.params["backbone"], expected.params["backbone"]) < 0.02


@pytest.mark.parametrize("optimizer, shard", [("sgd", False), ("adamw", True)])
def test_every_buffer_of_the_state_is_used_again(optimizer, shard):
    """As many as the state has arrays, so that no second copy of any is made."""
    found = program(shard=shard, optimizer=optimizer)
    aliases = re.findall(r"\{[\d, ]*\}: \((\d+), \{\}, (?:may|must)-alias\)", found.text)
    assert sorted(map(int, aliases)) == list(range(len(jax.tree.leaves(found.state))))


def test_a_spread_optimizer_takes_the_same_steps():
    whole, spread_out = program(optimizer="adamw"), program(optimizer="adamw", shard=True)
    (expected, expected_metrics), (found, metrics) = whole.run(3), spread_out.run(3)
    moved = relative_distance(found.params, whole.state.params)
    assert moved > 1e-3
    for name in ("params", "opt_state", "batch_stats"):
        assert relative_distance(getattr(found, name), getattr(expected, name)) < 1e-5, name
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-6, err_msg=name)


def test_a_spread_optimizer_sends_no_activations():
    found = program(optimizer="adamw", shard=True)
    gathered = {each.op: each.bytes for each in collectives_of(found.text)}
    matrices = sum(x.nbytes for x in jax.tree.leaves(found.trainable) if x.ndim > 1)
    # The new parameters, and on this compiler the whole gradients where TPU's scatters the sums.
    assert gathered.pop("all-gather") <= matrices
    assert gathered.pop("all-reduce") <= total_bytes(found.trainable) + 4 * 80
    assert not gathered


def test_a_spread_state_takes_a_quarter_of_the_room():
    mesh = make_mesh(jax.devices()[:4])
    host = program(optimizer="adamw", shard=True)
    state = jax.device_put(host.state, host.shardings)
    first = [leaf.addressable_shards[0].data for leaf in jax.tree.leaves(state.opt_state)]
    matrices = sum(x.nbytes for x in jax.tree.leaves(state.opt_state) if x.ndim > 1)
    vectors = total_bytes(state.opt_state) - matrices
    assert total_bytes(first) == vectors + matrices / 4 and vectors < 0.05 * matrices
    for leaf in jax.tree.leaves((state.params, state.batch_stats, state.step)):
        assert leaf.is_fully_replicated
    everywhere = state_sharding(state, mesh, False)
    assert all(s.is_fully_replicated for s in jax.tree.leaves(everywhere))
    assert_same_bits(jax.device_get(state), host.state)


@pytest.mark.parametrize(
    "shape, axis",
    [((8, 16), 1), ((16, 8), 0), ((8, 8), 0), ((3, 3, 4, 6), 2), ((3, 5), None), ((4096,), None),
     ((), None), ((0, 4), 1)],
)  # fmt: skip
def test_the_largest_axis_that_divides_is_spread(shape, axis):
    sharding = spread(shape, make_mesh(jax.devices()[:4]))
    expected = [size // 4 if i == axis else size for i, size in enumerate(shape)]
    assert list(sharding.shard_shape(shape)) == expected
