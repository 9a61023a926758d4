"""Training steps of the published DenseCL: embeddings, matches, losses, gradients, queues, keys.

The everyday suite takes three steps in float64 for either lambda, in one compiled program.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import recorded_densecl as densecl
from helpers.compiling import precision_of
from helpers.golden import load_arrays, sampled, seeded_state

from solojax.errors import InputError
from solojax.interop.contrastive import DENSECL
from solojax.interop.layout import export_state, import_state
from solojax.models.densecl_neck import DenseCLNeck
from solojax.ops.shuffle import FixedShuffle

FLOAT64 = ("lambda0.5_f64", "lambda0_f64")
FLOAT32 = ("lambda0.5", "lambda0")
R50, GRID = "r50_64px_f64", "num_grid3"
PREFIX = {R50: "r50_f64"}
STEPS = [(name, step) for name in (*FLOAT64, "lambda0.5") for step in range(3)]
STEPS += [("lambda0", 0), (GRID, 0), (R50, 0)]
DAILY = [(name, 0) for name in FLOAT64]
QUEUES = (("queue", "k"), ("queue2", "k2"))


def cases(steps=STEPS):
    """Of every day are the first steps in float64; each other case takes a program of its own."""
    return [pytest.param(*case, marks=() if case in DAILY else pytest.mark.slow) for case in steps]


each_step = pytest.mark.parametrize(("name", "step"), cases())
each_first_step = pytest.mark.parametrize(
    ("name", "step"), cases([case for case in STEPS if case[1] == 0])
)


def precision(name):
    return "float64" if name.endswith("f64") else "float32"


@functools.cache
def task_of(name):
    if name == R50:
        return densecl.build_task("float64", depth=50, batch_size=4)
    grid = (3, 3) if name == GRID else None
    return densecl.build_task(precision(name), grid=grid)


# One task for both settings of lambda, so that jit knows it.
def shared(name):
    return (
        name.replace("lambda0_", "lambda0.5_")
        if name in FLOAT64
        else name.replace("lambda0.5", "lambda0")
    )


@functools.cache
def run(name, step):
    """(the state after a step, what is recorded of it), both as NumPy arrays."""
    with precision_of(precision(name)):
        if step == 0:
            weights = "r50" if name == R50 else "r18"
            share = 0.0 if name.startswith("lambda0") and "0.5" not in name else 0.5
            state = densecl.initial_state(weights, precision(name), share)
        else:
            state = jax.tree.map(jnp.asarray, run(name, step - 1)[0])
        batch = densecl.batch_of("r50" if name == R50 else f"step{step}")
        return jax.device_get(densecl.train_step(task_of(shared(name)), state, batch))


def recorded(name, step):
    """The recorded arrays of a step by key."""
    prefix = f"{PREFIX.get(name, name)}/step{step}/"
    arrays = load_arrays(f"densecl/{name}.npz")
    return {key.removeprefix(prefix): arrays[key] for key in arrays if key.startswith(prefix)}


def exported(name, step):
    """Our state after a step under the published names."""
    state = run(name, step)[0]
    parts = {key: state[key] for key in ("params", "batch_stats")}
    return export_state(DENSECL, parts | state["extra"])


def exported_gradients(name, step):
    return export_state(DENSECL, {"params": run(name, step)[1]["gradients"]})


def tolerance(name, step):
    """Relative tolerance of a step's losses."""
    if precision(name) == "float64":
        return 1e-6
    return (1e-5, 1e-4, 5e-3)[step]


def test_a_training_state_has_the_parts_of_a_published_file():
    task = task_of("lambda0.5")
    state = jax.eval_shape(task.init, jax.random.key(0), densecl.batch_of("step0"))
    parts = {key: state[key] for key in ("params", "batch_stats")} | state["extra"]
    published = seeded_state("densecl/r18_state_shapes.json")
    import_state(DENSECL, published, expected=parts)
    with pytest.raises(InputError, match="missing: .*queue2"):
        some = {key: value for key, value in published.items() if not key.startswith("queue2")}
        import_state(DENSECL, some, expected=parts)


@each_step
def test_losses(name, step):
    arrays, metrics = recorded(name, step), run(name, step)[1]["metrics"]
    allowed = tolerance(name, step)
    for ours, theirs in (("global", "single"), ("dense", "dense")):
        wanted = arrays[f"loss_{theirs}_unweighted"]
        np.testing.assert_allclose(metrics[f"loss/{ours}"], wanted, rtol=allowed)
    total = arrays["loss_contra_single"] + arrays["loss_contra_dense"]
    np.testing.assert_allclose(metrics["loss"], total, rtol=allowed)


@pytest.mark.parametrize(
    ("name", "step"), cases([case for case in STEPS if case[1] == 0 or case[0] in FLOAT64])
)
def test_matches_and_embeddings(name, step):
    arrays, ours = recorded(name, step), run(name, step)[1]
    np.testing.assert_array_equal(ours["match_idx"], arrays["match_idx"])
    allowed = 1e-6 if precision(name) == "float64" else 1e-5
    keys = ("q", "k", "q2", "k2", "q_grid_NS2xC", "k_grid_NxCxS2", "l_pos", "l_pos_dense")
    found = [key for key in keys if key in arrays or f"{key}/val" in arrays]
    assert {"q_grid_NS2xC", "l_pos", "l_pos_dense"} <= set(found)
    for key in found:
        wanted, value = sampled(arrays, key, ours[key])
        np.testing.assert_allclose(value, wanted, rtol=0, atol=allowed, err_msg=key)


@each_step
def test_queues_and_pointers(name, step):
    """Eight keys replace the last eight vectors, and the pointers wrap around."""
    arrays, after = recorded(name, step), exported(name, step)
    weights = "r50" if name == R50 else "r18"
    before = (
        exported(name, step - 1) if step else seeded_state(f"densecl/{weights}_state_shapes.json")
    )
    np.testing.assert_array_equal(
        [after["queue_ptr"][0], after["queue2_ptr"][0]], arrays["queue_ptr_after"]
    )
    rows = len(arrays["match_idx"])
    columns = (before["queue_ptr"][0] + np.arange(rows)) % densecl.QUEUE_LENGTH
    others = np.setdiff1d(np.arange(densecl.QUEUE_LENGTH), columns)
    for queue, _ in QUEUES:
        np.testing.assert_array_equal(after[queue][:, others], before[queue][:, others])
        if f"{queue}_changed_cols" in arrays and (step == 0 or precision(name) == "float64"):
            np.testing.assert_array_equal(arrays[f"{queue}_changed_cols"], columns)
            allowed = 1e-6 if precision(name) == "float64" else 1e-5
            new = after[queue][:, columns]
            np.testing.assert_allclose(new, arrays[f"{queue}_new_values"], rtol=0, atol=allowed)


@pytest.mark.parametrize(
    ("name", "step"), cases([case for case in STEPS if case[1] == 0 or case[0] in FLOAT64])
)
def test_gradients_of_every_parameter(name, step):
    arrays, gradients = recorded(name, step), exported_gradients(name, step)
    table = [arrays[f"grad_table/{column}"] for column in ("names", "l2", "sum", "absmax")]
    assert set(gradients) == {str(key) for key in table[0]}
    double = precision(name) == "float64"
    l2_allowed, allowed = (1e-6, 1e-6) if double else (2e-3, 1e-2)
    for key, norm, total, largest in zip(*table, strict=True):
        ours = gradients[str(key)].astype(np.float64)
        # Some hundred times the rounding of a gradient that is 0 but for it.
        noise = 1e-12 if double else 1e-4
        assert abs(np.linalg.norm(ours) - norm) <= l2_allowed * norm + noise * (norm > 0), key
        assert abs(np.abs(ours).max() - largest) <= allowed * largest + noise * (norm > 0), key
        spread = l2_allowed * norm * np.sqrt(ours.size)
        assert abs(ours.sum() - total) <= spread + noise * (norm > 0), key
        if f"grad/{key}/val" in arrays:
            wanted, value = sampled(arrays, f"grad/{key}", gradients[str(key)])
            assert np.abs(value - wanted).max(initial=0) <= allowed * largest, key
            # In float32 one ReLU at 0 on the other side moves a whole tensor more than its norm.
            if double:
                assert np.linalg.norm(value - wanted) <= l2_allowed * np.linalg.norm(wanted), key


def test_without_weight_the_dense_head_gets_exact_zeros():
    gradients = exported_gradients("lambda0_f64", 0)
    dense = [key for key in gradients if ".mlp2." in key]
    assert len(dense) == 4
    assert not any(np.any(gradients[key]) for key in dense)
    assert all(np.any(gradients[key]) for key in gradients if key not in dense)


@pytest.mark.parametrize(
    ("name", "step"), cases([case for case in STEPS if case[1] == 0 or case[0] in FLOAT64])
)
def test_both_encoders_after_the_step(name, step):
    """Parameters after momentum update and SGD, running statistics of either."""
    arrays, after = recorded(name, step), exported(name, step)
    names = [str(key) for key in arrays["state_after/names"]]
    queues = {"queue", "queue2", "queue_ptr", "queue2_ptr"}
    assert set(after) - queues == set(names)
    allowed = 1e-6 if precision(name) == "float64" else 1e-4
    for key, norm, total in zip(
        names, arrays["state_after/l2"], arrays["state_after/sum"], strict=True
    ):
        ours = after[key].astype(np.float64)
        assert abs(np.linalg.norm(ours) - norm) <= allowed * norm, key
        assert abs(ours.sum() - total) <= allowed * norm * np.sqrt(ours.size), key
    for kind in ("key_param", "key_buf", "query_buf", "query_param"):
        for key in arrays:
            if key.startswith(f"{kind}/"):
                value = after[key.removeprefix(f"{kind}/")]
                np.testing.assert_allclose(value, arrays[key], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_recorded_shuffle_can_be_injected():
    """Within one BatchNorm group it changes nothing but the order of sums."""
    arrays = recorded("lambda0.5_f64", 0)
    shuffle = FixedShuffle(tuple(int(row) for row in arrays["idx_shuffle"]))
    with precision_of("float64"):
        task = densecl.build_task("float64", shuffle=shuffle)
        state = densecl.initial_state("r18", "float64", 0.5)
        after, ours = jax.device_get(densecl.train_step(task, state, densecl.batch_of("step0")))
    total = arrays["loss_contra_single"] + arrays["loss_contra_dense"]
    np.testing.assert_allclose(ours["metrics"]["loss"], total, rtol=1e-6)
    plain = run("lambda0.5_f64", 0)[0]
    for ours, wanted in zip(jax.tree.leaves(after), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-9, atol=1e-9)


def test_the_neck_pools_to_its_grid():
    recorded = load_arrays("densecl/neck_head.npz")
    state = seeded_state("densecl/neck_state_shapes.json")
    state = {f"encoder_q.1.{key}": value for key, value in state.items()}
    params = import_state(DENSECL, state)["params"]["neck"]
    features = jnp.asarray(recorded["x"].transpose(0, 2, 3, 1))
    out = DenseCLNeck(32, 16, (3, 3)).apply({"params": params}, features)
    for key, ours in (
        ("avgpooled", out.vector),
        ("grid_NxCx9", out.grid.transpose(0, 2, 1)),
        ("avgpooled2", out.pooled),
    ):
        np.testing.assert_allclose(ours, recorded[key], rtol=1e-5, atol=1e-5)
