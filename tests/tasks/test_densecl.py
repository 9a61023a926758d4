"""solojax.tasks.densecl; against recorded steps it stands in test_golden_densecl.py."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.small_densecl import ROWS, WIDTH, random_views, small_state, small_task
from helpers.tiny import assert_same_bits, quick_jit, relative_distance

from solojax.errors import InputError
from solojax.models.contrastive_encoder import EncodedView
from solojax.models.densecl_neck import ContrastiveEmbeddings, DenseCLNeck
from solojax.ops.augment_views import augment_views
from solojax.ops.shuffle import GroupShuffle
from solojax.train.state import create_state
from solojax.train.step import make_train_step

OPTIMIZER = optax.sgd(0.1)
RNG = jax.random.key(5)
BATCH = random_views()


@functools.cache
def stepper(task):
    def step(state, batch):
        weights = task.row_weights(batch)
        loss = lambda params: task.loss_fn(params, state, batch, RNG, weights)  # noqa: E731
        return jax.value_and_grad(loss, has_aux=True)(state.params)

    return quick_jit(step)


def step(task, state, batch=BATCH):
    """(loss, updates, metrics, gradient)."""
    (loss, (updates, metrics)), gradient = stepper(task)(state, batch)
    return loss, updates, metrics, gradient


def with_queue(state, **queues):
    return state.replace(extra=state.extra | {"queues": state.extra["queues"] | queues})


@functools.cache
def default_task():
    return small_task(group=4, shuffle=GroupShuffle(4))


def test_a_run_starts_with_equal_encoders_and_random_queues():
    task = small_task()
    variables = task.init(jax.random.key(0), BATCH)
    extra = variables["extra"]
    assert_same_bits(extra["key_params"], variables["params"])
    assert_same_bits(extra["key_batch_stats"], variables["batch_stats"])
    vectors = [extra["queues"][name]["vectors"] for name in ("global", "dense")]
    for each in vectors:
        assert each.shape == (64, WIDTH)
        np.testing.assert_allclose(np.linalg.norm(each, axis=1), 1, rtol=1e-5)
    assert not np.array_equal(*vectors)
    assert task.is_trainable(("backbone", "conv0", "kernel"))


def test_the_loss_weighs_both_parts_and_every_metric_is_a_float32_number():
    task = small_task(dense_weight=0.3)
    loss, _, metrics, _ = step(task, small_state(task, OPTIMIZER))
    expected = 0.7 * metrics["loss/global"] + 0.3 * metrics["loss/dense"]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert set(metrics) == {
        "loss", "loss/global", "loss/dense", "accuracy/global", "accuracy/dense",
        "std/query", "std/key", "std/dense", "data/broken_images",
    }  # fmt: skip
    assert all(value.shape == () and value.dtype == jnp.float32 for value in metrics.values())
    assert metrics["loss/global"] > 0 and metrics["loss/dense"] > 0
    assert 0 < metrics["std/query"] <= WIDTH**-0.5


def test_the_key_encoder_moves_towards_the_query_encoder_before_its_step():
    task = small_task(momentum=0.75)
    state = small_state(task, OPTIMIZER)
    _, updates, _, _ = step(task, state)
    expected = jax.tree.map(
        lambda key, query: 0.75 * key + 0.25 * query, state.extra["key_params"], state.params
    )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7),
        updates["extra"]["key_params"],
        expected,
    )


def test_keys_come_from_the_moved_encoder_in_training_mode_and_enter_both_queues():
    task = small_task()
    state = small_state(task, OPTIMIZER)
    _, updates, _, _ = step(task, state)
    views = task.augment(BATCH.views, BATCH.seed)
    variables = {"params": updates["extra"]["key_params"]}
    variables["batch_stats"] = state.extra["key_batch_stats"]
    encoded, moved = task.encoder.apply(variables, views[:, 1], train=True, mutable=["batch_stats"])
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
        updates["extra"]["key_batch_stats"],
        moved["batch_stats"],
    )
    for name, vectors in (
        ("global", encoded.embeddings.vector),
        ("dense", encoded.embeddings.pooled),
    ):
        queue, before = updates["extra"]["queues"][name], state.extra["queues"][name]
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        np.testing.assert_allclose(queue["vectors"][:ROWS], unit, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(queue["vectors"][ROWS:], before["vectors"][ROWS:])
        assert queue["position"] == ROWS


def test_keys_are_augmented_after_the_shuffle_as_if_before_it():
    """Losses, gradients and keys are those of views that are augmented first and moved then."""
    settings = {
        "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1,
        "jitter_probability": 0.8, "grayscale_probability": 0.2, "blur_probability": 0.5,
        "blur_sigma": (0.1, 0.5), "pixel_mean": (128.0,) * 3, "pixel_std": (64.0,) * 3,
    }  # fmt: skip
    with jax.enable_x64(True):
        augment = functools.partial(augment_views, **settings, dtype=np.float64)
        task = small_task(group=4, shuffle=GroupShuffle(4), dtype=np.float64)
        after = dataclasses.replace(task, augment=augment)
        before = dataclasses.replace(task, augment=lambda views, seeds, first_view: views)
        state = small_state(task, OPTIMIZER, np.float64)
        found = step(after, state)
        expected = step(before, state, BATCH.replace(views=augment(BATCH.views, BATCH.seed)))
    assert relative_distance(found, expected) < 1e-12


def test_queues_are_read_before_the_keys_enter():
    """Were the keys in the queue already, each positive would be a negative of its query too."""
    task = small_task()
    state = small_state(task, OPTIMIZER)
    _, updates, metrics, _ = step(task, state)
    full = state.replace(extra=state.extra | {"queues": updates["extra"]["queues"]})
    _, _, again, _ = step(task, full)
    assert again["accuracy/global"] == 0.0
    assert again["loss/global"] > metrics["loss/global"]


def test_lambda_is_zero_while_it_warms_up():
    task = small_task(dense_weight=1.0, dense_warmup_steps=10)
    state = small_state(task, OPTIMIZER)
    loss, _, metrics, gradient = step(task, state.replace(step=jnp.int32(9)))
    assert loss == metrics["loss/global"]
    assert not any(np.any(gradient["neck"][name]["kernel"]) for name in ("dense_0", "dense_1"))
    loss, _, metrics, gradient = step(task, state.replace(step=jnp.int32(10)))
    assert loss == metrics["loss/dense"]
    assert not any(np.any(gradient["neck"][name]["kernel"]) for name in ("global_0", "global_1"))


def test_without_a_dense_head_it_is_moco():
    """The same global loss as beside a dense head of no weight, and nothing else."""
    plain, dense = small_task(dense=False), small_task(dense_weight=0.0)
    state = small_state(dense, OPTIMIZER)
    loss, _, metrics, gradient = step(dense, state)
    assert not any(np.any(gradient["neck"][name]["kernel"]) for name in ("dense_0", "dense_1"))

    def without_dense(tree):
        return tree | {"neck": {k: v for k, v in tree["neck"].items() if k.startswith("global")}}

    extra = dict(state.extra, key_params=without_dense(state.extra["key_params"]))
    extra["queues"] = {"global": extra["queues"]["global"]}
    state = state.replace(params=without_dense(state.params), extra=extra)
    moco_loss, updates, moco_metrics, moco_gradient = step(plain, state)
    np.testing.assert_allclose(moco_loss, loss, rtol=1e-6)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
        moco_gradient,
        without_dense(gradient),
    )
    assert set(metrics) - set(moco_metrics) == {"loss/dense", "accuracy/dense", "std/dense"}
    assert set(updates["extra"]["queues"]) == {"global"}
    assert set(plain.init(jax.random.key(0), BATCH)["extra"]["queues"]) == {"global"}


def test_each_correspondence_gives_a_dense_loss_of_its_own():
    """By the dense head's own outputs no positive is further off than by any other choice."""
    kinds = ("max_sim_features", "max_sim_embeddings", "random")
    tasks = {kind: small_task(correspondence=kind) for kind in kinds}
    state = small_state(tasks["random"], OPTIMIZER)
    metrics = {kind: step(task, state)[2] for kind, task in tasks.items()}
    dense = {kind: float(metrics[kind]["loss/dense"]) for kind in kinds}
    assert len(set(dense.values())) == 3
    assert min(dense, key=dense.get) == "max_sim_embeddings"
    losses = [metrics[kind]["loss/global"] for kind in kinds]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-6)


def test_sampled_negatives_are_single_cells():
    task = small_task(negatives="sampled", grid=None)
    state = small_state(task, OPTIMIZER)
    _, updates, _, _ = step(task, state)
    queue = np.asarray(updates["extra"]["queues"]["dense"]["vectors"][:ROWS])
    views = task.augment(BATCH.views, BATCH.seed)
    variables = {"params": updates["extra"]["key_params"]}
    variables["batch_stats"] = state.extra["key_batch_stats"]
    encoded, _ = task.encoder.apply(variables, views[:, 1], train=True, mutable=["batch_stats"])
    grid = np.asarray(encoded.embeddings.grid)
    grid = grid / np.linalg.norm(grid, axis=2, keepdims=True)
    nearest = np.abs(grid - queue[:, None]).max(axis=2)
    np.testing.assert_allclose(nearest.min(axis=1), 0, atol=1e-5)
    assert len(set(nearest.argmin(axis=1))) > 3


def test_rows_that_are_not_valid_count_nowhere():
    task = default_task()
    state = small_state(task, OPTIMIZER)
    valid = np.arange(ROWS) % 5 != 2
    other = np.where(valid[:, None, None, None, None], BATCH.views, 255 - BATCH.views)
    batch = BATCH.replace(valid=valid)
    first = stepper(task)(state, batch)
    second = stepper(task)(state, batch.replace(views=other))
    assert_same_bits(second, first)
    (_, (updates, metrics)), _ = first
    assert metrics["data/broken_images"] == np.sum(~valid)
    for name, queue in updates["extra"]["queues"].items():
        kept = np.all(queue["vectors"] == state.extra["queues"][name]["vectors"], axis=1)
        np.testing.assert_array_equal(kept[:ROWS], ~valid)
        assert queue["position"] == ROWS
    none = batch.replace(valid=np.zeros(ROWS, bool))
    (loss, _), gradient = stepper(task)(state, none)
    assert loss == 0 and not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_collapse_shows_as_no_spread():
    task = small_task()
    state = small_state(task, OPTIMIZER)
    params = jax.tree.map(jnp.copy, state.params)
    params["neck"]["global_1"] = {
        "kernel": jnp.zeros_like(params["neck"]["global_1"]["kernel"]),
        "bias": jnp.ones(WIDTH),
    }
    _, _, metrics, _ = step(task, state.replace(params=params))
    assert metrics["std/query"] < 1e-6 < metrics["std/key"]


class PlaceEncoder(nn.Module):
    """Cells that know where they are and nothing else; a global vector that tells images apart."""

    neck: DenseCLNeck

    @nn.compact
    def __call__(self, image, *, train=False, row_mask=None):
        rows = image.shape[0]
        vector = nn.Dense(WIDTH)(jnp.mean(image, axis=(1, 2)))
        grid = jnp.broadcast_to(jnp.eye(6, WIDTH), (rows, 6, WIDTH))
        embeddings = ContrastiveEmbeddings(vector, grid, jnp.mean(grid, axis=1))
        return EncodedView(grid, embeddings)


def test_cells_that_know_their_place_alone_have_no_spread_however_accurate():
    task = dataclasses.replace(small_task(), encoder=PlaceEncoder(small_task().encoder.neck))
    state = create_state(task, OPTIMIZER, jax.random.key(0), BATCH)
    _, updates, metrics, _ = step(task, state)
    _, _, metrics, _ = step(task, state.replace(extra=updates["extra"]))
    assert metrics["accuracy/dense"] == 1.0
    assert metrics["std/dense"] == 0.0 < metrics["std/query"]
    sampled = dataclasses.replace(task, negatives="sampled")
    _, updates, _, _ = step(sampled, state)
    _, _, metrics, _ = step(sampled, state.replace(extra=updates["extra"]))
    assert metrics["accuracy/dense"] < 1.0


def test_bfloat16_networks_have_float32_losses_and_keys():
    task = small_task(dtype=jnp.bfloat16, group=4, shuffle=GroupShuffle(4))
    state = small_state(task, OPTIMIZER)
    shapes = jax.eval_shape(stepper(task), state, BATCH)
    (loss, (updates, metrics)), gradient = shapes
    floats = jax.tree.leaves((loss, updates["batch_stats"], updates["extra"], metrics, gradient))
    assert {leaf.dtype for leaf in floats} == {jnp.dtype("float32"), jnp.dtype("int32")}


def test_the_training_step_carries_it_all():
    task = default_task()
    state = small_state(task, OPTIMIZER)
    train_step = quick_jit(make_train_step(task, OPTIMIZER, seed=1))
    after, metrics = train_step(state, BATCH)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert after.extra["queues"]["global"]["position"] == ROWS
    after, later = train_step(after, BATCH)
    assert after.extra["queues"]["dense"]["position"] == 2 * ROWS
    assert np.isfinite(later["loss"]) and later["loss"] != metrics["loss"]


def test_prediction_sees_both_views_alone():
    task = default_task()
    variables = jax.tree.map(jnp.asarray, task.init(jax.random.key(0), BATCH))
    variables = {name: variables[name] for name in ("params", "batch_stats")}
    encoded = task.predict(variables, BATCH)
    assert encoded.embeddings.vector.shape == (ROWS, 2, WIDTH)
    assert encoded.features.shape == (ROWS, 2, 6, 12)
    some = jax.tree.map(lambda x: x[3:5], BATCH)
    again = task.predict(variables, some)
    np.testing.assert_allclose(again.features, encoded.features[3:5], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queue_length": 100}, "queue of 100 vectors.*batches of 16 images"),
        ({"correspondence": "max_sim"}, "correspondence 'max_sim' is unknown; use one of max_sim_"),
        ({"negatives": "all"}, "negatives 'all' is unknown; use one of pooled, sampled"),
        ({"dense": False, "dense_weight": 0.5}, "dense_weight 0.5 needs a dense head"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        small_task(**options)


def test_parts_of_a_batch_and_groups_that_do_not_divide_it_are_refused():
    task = small_task()
    state = small_state(task, OPTIMIZER)
    accumulating = make_train_step(task, OPTIMIZER, accumulate_steps=2)
    with pytest.raises(InputError, match="8 of a step's 16 images.*accumulate_steps to 1"):
        jax.eval_shape(accumulating, state, BATCH)
    odd = small_task(group=6)
    with pytest.raises(InputError, match="groups of 6 images do not divide the batch of 16"):
        jax.eval_shape(make_train_step(odd, OPTIMIZER), small_state(odd, OPTIMIZER), BATCH)
