"""solojax.losses.contrastive against all logits at once in NumPy, and how much it holds."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.golden import load_arrays
from jax.extend.core import jaxprs_in_params
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from solojax.losses.contrastive import contrastive_loss

RNG = np.random.default_rng(0)


def unit(*shape):
    x = RNG.normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


QUERY, POSITIVE, NEGATIVES = unit(3, 5, 8), unit(3, 5, 8), unit(24, 8)


def plain_loss(query, positive, negatives, temperature):
    """Cross-entropy of class 0 among all logits, and its gradient by the query."""
    own = np.sum(query * positive, axis=-1, keepdims=True)
    logits = np.concatenate([own, query @ negatives.T], axis=-1) / temperature
    probabilities = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    mean = probabilities[..., :1] * positive + probabilities[..., 1:] @ negatives
    correct = logits[..., 0] > logits[..., 1:].max(-1)
    return -np.log(probabilities[..., 0]), (mean - positive) / temperature, correct


@pytest.mark.parametrize("at_once", [1, 7, 8, 24, 4096])  # 7 does not divide 24: 6 are read
@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_loss_and_gradient_are_those_of_all_logits(at_once, temperature):
    def total(query):
        loss, correct = contrastive_loss(
            query, POSITIVE, NEGATIVES, temperature, negatives_at_once=at_once
        )
        return jnp.sum(loss), (loss, correct)

    with jax.enable_x64(True):
        gradient, (loss, correct) = jax.grad(total, has_aux=True)(jnp.asarray(QUERY))
        assert loss.dtype == jnp.float64
    wanted, wanted_gradient, wanted_correct = plain_loss(QUERY, POSITIVE, NEGATIVES, temperature)
    np.testing.assert_allclose(loss, wanted, rtol=1e-12)
    np.testing.assert_allclose(gradient, wanted_gradient, rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(correct, wanted_correct)


@pytest.mark.skipif(jax.device_count() < 4, reason="fewer than 4 devices")
@pytest.mark.parametrize("at_once", [4, 12, 4096])  # of the 6 that a device has: 1, 3 and all
def test_spread_negatives_give_the_same_loss_and_gradient(at_once):
    """Queries and negatives on four devices; one query's positive beats all negatives."""
    query, positive = unit(8, 5, 8), unit(8, 5, 8)
    positive[0, 0] = query[0, 0]
    rows = NamedSharding(Mesh(np.asarray(jax.devices()[:4]), ("data",)), PartitionSpec("data"))

    @jax.jit
    def step(query, positive, negatives):
        def total(query):
            loss, correct = contrastive_loss(
                query, positive, negatives, 0.2, negatives_at_once=at_once, sharding=rows
            )
            return jnp.sum(loss), (loss, correct)

        return jax.grad(total, has_aux=True)(query)

    with jax.enable_x64(True):
        gradient, (loss, correct) = step(*jax.device_put((query, positive, NEGATIVES), rows))
        assert gradient.sharding.is_equivalent_to(rows, 3)
    wanted, wanted_gradient, wanted_correct = plain_loss(query, positive, NEGATIVES, 0.2)
    np.testing.assert_allclose(loss, wanted, rtol=1e-12)
    np.testing.assert_allclose(gradient, wanted_gradient, rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(correct, wanted_correct)
    assert wanted_correct.any() and not wanted_correct.all()


def test_the_recorded_head():
    recorded = load_arrays("densecl/neck_head.npz")
    own, others = recorded["head/pos"], recorded["head/neg"]
    # One query a row whose cosines are the recorded numbers: negatives are the axes.
    rows = []
    for row in range(5):
        loss, _ = contrastive_loss(
            np.append(others[row], own[row]), np.eye(41)[40], np.eye(41)[:40], 0.2
        )
        rows.append(loss)
    np.testing.assert_allclose(np.mean(rows), recorded["head/loss_t0.2"], rtol=1e-5)


def test_keys_get_no_gradient():
    total = lambda *vectors: jnp.sum(contrastive_loss(*vectors, 0.2)[0])  # noqa: E731
    gradients = jax.grad(total, argnums=(1, 2))(*map(jnp.asarray, (QUERY, POSITIVE, NEGATIVES)))
    assert not any(np.any(gradient) for gradient in gradients)


def test_extreme_logits_stay_finite():
    query = jnp.array([[1.0, 0.0], [-1.0, 0.0]])
    keys = jnp.array([[1.0, 0.0]])
    loss, correct = contrastive_loss(query, query, jnp.repeat(keys, 4, 0), 1e-3)
    np.testing.assert_allclose(loss, [np.log(5), 0], rtol=1e-6)
    assert correct.tolist() == [False, True]


def test_bfloat16_vectors_have_float32_logits():
    vectors = [jnp.asarray(x, jnp.bfloat16) for x in (QUERY, POSITIVE, NEGATIVES)]
    loss, _ = contrastive_loss(*vectors, 0.2)
    assert loss.dtype == jnp.float32
    wanted, *_ = plain_loss(*(np.asarray(x, np.float64) for x in vectors), 0.2)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)


def largest_array(jaxpr):
    """Elements of the largest array that any equation, at any depth, makes."""
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [out.aval.size for out in equation.outvars]
        for inner in jaxprs_in_params(equation.params):
            sizes.append(largest_array(inner))
    return max(sizes)


def published_size():
    """Queries of 256 images at S = 7 and a queue of 65,536, as shapes."""
    shapes = [(256, 49, 128), (256, 49, 128), (65536, 128)]
    return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]


def test_no_array_is_larger_than_the_logits_of_one_part():
    """12,544 queries x 65,536 negatives would be 822 million logits, 3.3 GB."""

    def total(query, positive, negatives):
        return jnp.sum(contrastive_loss(query, positive, negatives, 0.2)[0])

    traced = jax.make_jaxpr(jax.value_and_grad(total))(*published_size())
    assert 256 * 49 * 4096 == largest_array(traced.jaxpr)


def test_the_compiled_program_holds_no_more_than_two_parts():
    @jax.jit
    def step(query, positive, negatives):
        def total(query):
            return jnp.sum(contrastive_loss(query, positive, negatives, 0.2)[0])

        return jax.value_and_grad(total)(query)

    memory = step.lower(*published_size()).compile().memory_analysis()
    part = 256 * 49 * 4096 * 4
    assert memory.temp_size_in_bytes < 2.5 * part
