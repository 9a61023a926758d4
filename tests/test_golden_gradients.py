"""Losses of the task and the gradient of every trained parameter, in float32 and float64.

Compiling the backward pass takes most of the time, so the everyday suite runs one set of scale
ranges in either precision and the others are marked slow.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from helpers import small_solov2 as small
from helpers.compiling import precision_of
from helpers.golden import load_arrays, sampled

from solojax.interop.adelaidet import ADELAIDET
from solojax.interop.layout import export_state

CASES = [
    pytest.param("default", "float32", marks=pytest.mark.slow),
    pytest.param("scaled", "float64"),
    pytest.param("scaled", "float32", marks=pytest.mark.slow),
    pytest.param("default", "float64", marks=pytest.mark.slow),
]
FULL_GRADIENTS = (
    "ins_head.cate_pred.weight",
    "ins_head.cate_tower.1.weight",
    "ins_head.kernel_pred.bias",
    "ins_head.kernel_tower.0.weight",
    "mask_head.conv_pred.0.weight",
    "backbone.fpn_lateral5.weight",
    "backbone.bottom_up.res3.0.conv1.weight",
    "backbone.bottom_up.res5.1.conv2.weight",
)
CATEGORY_BRANCH = ("ins_head.cate",)


@functools.cache
def loss_and_gradients(ranges, precision):
    """Recorded arrays, our metrics, our gradients by the recorded names."""
    double = precision == "float64"
    with precision_of(precision):
        task, batch = small.build_task(ranges, jnp.dtype(precision)), small.training_batch()
        variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, precision), small.variables())
        weights = task.row_weights(batch)

        def loss_fn(params, batch_stats):
            state = SimpleNamespace(batch_stats=batch_stats)
            return task.loss_fn(params, state, batch, jax.random.key(0), weights)

        step = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
        (_, (updates, metrics)), gradients = step(variables["params"], variables["batch_stats"])
        jax.tree.map(
            np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"]
        )
        metrics = {name: float(value) for name, value in metrics.items()}
        gradients = export_state(ADELAIDET, {"params": jax.tree.map(np.asarray, gradients)})
    recorded = load_arrays(f"solov2_targets_loss/{ranges}_ranges{'_f64' if double else ''}.npz")
    return recorded, metrics, gradients


def tolerance(name, precision):
    """Relative L2 error allowed for a parameter's gradient."""
    if precision == "float32":
        return 2e-3
    return 1e-5 if name.startswith(CATEGORY_BRANCH) else 1e-6


@pytest.mark.parametrize(("ranges", "precision"), CASES)
def test_losses(ranges, precision):
    recorded, metrics, _ = loss_and_gradients(ranges, precision)
    relative = 1e-5 if precision == "float32" else 1e-6
    np.testing.assert_allclose(metrics["loss/mask"], recorded["loss_ins"], rtol=relative)
    np.testing.assert_allclose(metrics["loss/category"], recorded["loss_cate"], rtol=relative)
    np.testing.assert_allclose(
        metrics["loss"], recorded["loss_ins"] + recorded["loss_cate"], rtol=relative
    )


@pytest.mark.parametrize(("ranges", "precision"), CASES)
def test_gradient_norms_of_every_trained_parameter(ranges, precision):
    recorded, _, gradients = loss_and_gradients(ranges, precision)
    table = zip(
        recorded["grad_table/names"],
        recorded["grad_table/l2"],
        recorded["grad_table/sum"],
        recorded["grad_table/absmax"],
        strict=True,
    )
    count = 0
    for name, norm, total, largest in table:
        ours = gradients[str(name)].astype(np.float64)
        assert gradients[str(name)].dtype == precision
        allowed = tolerance(str(name), precision)
        element = 3e-3 if precision == "float32" else allowed
        assert abs(np.linalg.norm(ours) - norm) <= allowed * norm, name
        assert abs(np.abs(ours).max() - largest) <= element * largest, name
        # An error of `allowed` in the norm can be sqrt(size) times that in the sum.
        assert abs(ours.sum() - total) <= allowed * norm * np.sqrt(ours.size), name
        count += 1
    assert count == 83


@pytest.mark.parametrize("name", FULL_GRADIENTS)
@pytest.mark.parametrize(("ranges", "precision"), CASES)
def test_gradients_element_by_element(ranges, precision, name):
    recorded, _, gradients = loss_and_gradients(ranges, precision)
    wanted, ours = sampled(recorded, f"grad/{name}", gradients[name])
    allowed = tolerance(name, precision)
    assert np.linalg.norm(ours - wanted) <= allowed * np.linalg.norm(wanted)
    element = 3e-3 if precision == "float32" else allowed
    assert np.abs(ours - wanted).max() <= element * np.abs(wanted).max()


def test_the_published_parameters_train():
    task = small.build_task()
    recorded = load_arrays("solov2_targets_loss/default_ranges.npz")
    leaves = traverse_util.flatten_dict(small.variables()["params"])
    trained = {path: leaf for path, leaf in leaves.items() if task.is_trainable(path)}
    names = export_state(ADELAIDET, {"params": traverse_util.unflatten_dict(trained)}).keys()
    assert names == {str(name) for name in recorded["grad_table/names"]}
    frozen = leaves.keys() - trained.keys()
    convolutions = {path: leaves[path] for path in frozen if path[-1] == "kernel"}
    names = export_state(ADELAIDET, {"params": traverse_util.unflatten_dict(convolutions)}).keys()
    assert names == {str(name) for name in recorded["params_without_grad"]}


def test_float64_does_not_leak():
    loss_and_gradients("scaled", "float64")
    assert jnp.ones(1).dtype == jnp.float32
