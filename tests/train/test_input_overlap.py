"""The order of the training loop's calls lets reading and copying overlap with the step.

JAX runs a step and a copy to a device in the background, from the call on. So step n + 1's batch is
on its way while step n runs if it was put before the loop first waits for step n; and the device is
never idle if step n + 1 has been called by then, too.
"""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from solojax.train import loop, sharding
from solojax.train import step as step_module
from solojax.train.loop import Intervals, train
from solojax.train.sharding import make_mesh, replicated
from solojax.train.state import create_state

ROWS, STEPS = 4, 6


class Mean:
    """A task that learns the mean of its rows."""

    def init(self, rng, batch):
        return {"params": {"w": jnp.zeros((), jnp.float32)}}

    def row_weights(self, batch):
        return jnp.full(batch["x"].shape, 1 / ROWS)

    def loss_fn(self, params, state, batch, rng, weights):
        loss = jnp.sum((params["w"] - batch["x"]) ** 2 * weights)
        return loss, ({}, {"loss": loss})

    def is_trainable(self, path):
        return True


def batch_at(step):
    return {"x": np.full(ROWS, step, np.float32)}


def record_calls(monkeypatch, events):
    """Notes when a batch is put, a step is called, and a step's result is waited for."""
    put_batch, check_finite, jit = sharding.put_batch, loop.check_finite, jax.jit
    calls = iter(range(STEPS))

    def put(batch, *rest):
        events.append(("put", int(batch["x"][0])))
        return put_batch(batch, *rest)

    def check(step, *rest):
        events.append(("waited", step - 1))
        return check_finite(step, *rest)

    def jit_step(*args, **options):
        compiled = jit(*args, **options)

        def call(*arguments):
            events.append(("step", next(calls)))
            return compiled(*arguments)

        return call

    monkeypatch.setattr(sharding, "put_batch", put)
    monkeypatch.setattr(loop, "check_finite", check)
    patched = {name: getattr(jax, name) for name in dir(jax)} | {"jit": jit_step}
    monkeypatch.setattr(step_module, "jax", SimpleNamespace(**patched))


def test_the_next_batch_is_put_and_the_next_step_called_before_a_step_is_waited_for(
    tmp_path, monkeypatch
):
    events, mesh, optimizer = [], make_mesh(), optax.sgd(0.1)
    state = create_state(Mean(), optimizer, jax.random.key(0), batch_at(0), ema=False)
    state = jax.device_put(state, replicated(mesh))

    def make_batches(first):
        for step in range(first, STEPS):
            events.append(("read", step))
            yield batch_at(step)

    record_calls(monkeypatch, events)
    nothing = SimpleNamespace(save=lambda *_, **__: None, wait=lambda: None, write=lambda *_: None)
    train(
        Mean(),
        optimizer,
        state,
        schedule=optax.constant_schedule(0.1),
        make_batches=make_batches,
        mesh=mesh,
        total_steps=STEPS,
        batch_size=ROWS,
        intervals=Intervals(log=0, evaluate=0, checkpoint=0),
        workdir=tmp_path,
        checkpointer=nothing,
        writer=nothing,
        metadata={},
    )
    when = {event: place for place, event in enumerate(events)}
    assert len(when) == len(events) == 4 * STEPS
    for step in range(STEPS - 1):
        assert when["read", step + 1] < when["put", step + 1] < when["step", step]
        assert when["step", step] < when["step", step + 1] < when["waited", step]
    for step in range(STEPS - 2):
        # The batch after the next is read and put while this one is computed.
        assert when["step", step] < when["read", step + 2] < when["put", step + 2]
        assert when["put", step + 2] < when["waited", step]
