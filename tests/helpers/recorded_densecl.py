"""The recorded training steps of the published DenseCL, and the same steps here."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
from helpers.golden import load_arrays, seeded_state

from solojax.interop.contrastive import DENSECL
from solojax.interop.layout import import_state
from solojax.models.contrastive_encoder import ContrastiveEncoder
from solojax.models.densecl_neck import DenseCLNeck
from solojax.models.resnet import ResNet
from solojax.ops.vectors import l2_normalize
from solojax.structures import ViewBatch
from solojax.targets.correspondence import match_cells
from solojax.tasks.densecl import DenseCL

QUEUE_LENGTH = 256
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# One program for both settings of lambda: it is 0 before this step and 0.5 from it on.
LAMBDA_FROM = 1000


def build_task(
    precision: str, *, depth: int = 18, batch_size: int = 8, grid=None, **options
) -> DenseCL:
    """The recorded settings; options are those of DenseCL."""

    # Every value of a channel, in NumPy's float32: XLA rounds the division otherwise.
    levels = np.arange(256, dtype=np.float32)[:, None] / np.float32(255)
    table = (levels - np.float32(MEAN)) / np.float32(STD)

    def normalize(views):
        return jnp.asarray(table, precision)[views, jnp.arange(3)]

    backbone = ResNet(depth, norm="batch_norm", frozen_stages=-1)
    options = {"dense_warmup_steps": LAMBDA_FROM, "negatives_at_once": 64} | options
    return DenseCL(
        ContrastiveEncoder(backbone, DenseCLNeck(256, 128, grid)),
        normalize,
        lambda views, seeds, first_view: normalize(views),
        batch_size,
        queue_length=QUEUE_LENGTH,
        **options,
    )


def initial_state(name: str, precision: str, dense_weight: float) -> dict:
    """The seeded checkpoint as the parts of a training state."""
    variables = import_state(DENSECL, seeded_state(f"densecl/{name}_state_shapes.json"))
    variables = jax.tree.map(
        lambda x: jnp.asarray(x, jnp.int32 if x.dtype == np.int64 else precision), variables
    )
    params, batch_stats = variables.pop("params"), variables.pop("batch_stats")
    return {
        "step": jnp.asarray(LAMBDA_FROM if dense_weight else 0),
        "params": params,
        "batch_stats": batch_stats,
        "extra": variables,
        "opt_state": optimizer().init(params),
    }


def optimizer() -> optax.GradientTransformation:
    return optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.03, momentum=0.9))


def batch_of(key: str) -> ViewBatch:
    """A recorded batch, such as "step0"."""
    views = load_arrays("densecl/inputs.npz")[f"{key}_views_u8_NVHWC"]
    rows = jnp.arange(views.shape[0])
    return ViewBatch(jnp.asarray(views), rows >= 0, rows, rows.astype(jnp.uint32))


@functools.partial(jax.jit, static_argnums=0)
def train_step(task: DenseCL, state: dict, batch: ViewBatch) -> tuple[dict, dict]:
    """(new state, what is recorded of a step)."""
    weights = task.row_weights(batch)

    def loss_of(params):
        return task.loss_fn(params, SimpleNamespace(**state), batch, jax.random.key(0), weights)

    (_, (updates, metrics)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state["params"])
    moves, opt_state = optimizer().update(gradients, state["opt_state"], state["params"])
    params = optax.apply_updates(state["params"], moves)
    new = {"step": state["step"] + 1, "params": params, "opt_state": opt_state} | updates
    return new, {"metrics": metrics, "gradients": gradients} | _outputs(task, state, new, batch)


def _outputs(task: DenseCL, state: dict, new: dict, batch: ViewBatch) -> dict:
    """Embeddings and matches, by the encoders alone."""
    views = task.normalize(batch.views)

    def encode(params, batch_stats, image):
        variables = {"params": params, "batch_stats": batch_stats}
        encoded, _ = task.encoder.apply(variables, image, train=True, mutable=["batch_stats"])
        return encoded, jax.tree.map(l2_normalize, encoded.embeddings)

    query, q = encode(state["params"], state["batch_stats"], views[:, 0])
    extra = state["extra"]
    key, k = encode(new["extra"]["key_params"], extra["key_batch_stats"], views[:, 1])
    matches = match_cells(query.features, key.features)
    positives = jnp.take_along_axis(k.grid, matches[:, :, None], axis=1)
    return {
        "q": q.vector,
        "k": k.vector,
        "q2": q.pooled,
        "k2": k.pooled,
        "q_grid_NS2xC": q.grid.reshape(-1, 128),
        "k_grid_NxCxS2": k.grid.transpose(0, 2, 1),
        "l_pos": jnp.sum(q.vector * k.vector, axis=1, keepdims=True),
        "l_pos_dense": jnp.sum(q.grid * positives, axis=2).reshape(-1, 1),
        "match_idx": matches,
        "features": {"q_b": query.features, "k_b": key.features},
    }
