"""Contrastive pre-training: DenseCL (thesis chapter 5), and MoCo-v2, which is it without the dense
head."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from solojax.errors import InputError
from solojax.losses.contrastive import contrastive_loss
from solojax.models.contrastive_encoder import EncodedView
from solojax.ops.picking import pick_rows
from solojax.ops.queues import enqueue, init_queue
from solojax.ops.shuffle import FixedShuffle, GroupShuffle
from solojax.ops.vectors import l2_normalize
from solojax.structures import Array, PyTree, ViewBatch
from solojax.targets.correspondence import match_cells, random_cells

CORRESPONDENCES = ("max_sim_features", "max_sim_embeddings", "random")
NEGATIVES = ("pooled", "sampled")


@dataclasses.dataclass(frozen=True)
class DenseCL:
    """DenseCL as a task; see `solojax.tasks` for the functions.

    Beside `params` and `batch_stats` of the query encoder the state keeps in `extra`, under the
    names of the collections in `solojax.interop.contrastive`:

        key_params, key_batch_stats    of the key encoder
        queues/global/{vectors, position}, queues/dense/{vectors, position}
            negatives (Q, E) and the place () int32 of the oldest one

    Without a dense head there is no dense queue. Queues and groups of BatchNorm belong to the whole
    batch of a step, so that gradients cannot be accumulated over parts of it.

    Attributes:
      encoder: images to `EncodedView`, see `ContrastiveEncoder`.
      normalize: views (..., H, W, 3) uint8 to what the encoder reads, of the same shape.
      augment: (views (B, V, H, W, 3) uint8, seeds (B,) uint32, place of the first in its row) to
        the same after random changes of the colours, each row for itself.
      batch_size: B, images of a step.
      queue_length: Q of both queues; a multiple of B.
      momentum: of the key encoder's parameters.
      temperature: of both losses.
      dense_weight: lambda of equation 5.3: 0 is the global loss alone, 1 the dense.
      dense_warmup_steps: steps at the start during which lambda is 0 (thesis 5.3.4).
      correspondence: which key cell is a query cell's positive: "max_sim_features" the most similar
        one by the backbone's features (max-sim F), "max_sim_embeddings" by the dense head's outputs
        (max-sim Theta), "random" any (Table 5.7).
      negatives: what of an image enters the dense queue: the mean of its cells ("pooled") or one
        cell at random ("sampled"), see thesis 5.3.3.
      shuffle: how the key images change BatchNorm groups; None leaves them as they are.
      negatives_at_once: see `contrastive_loss`.
      queue_sharding: how the vectors of the queues are spread over devices, along Q; None where
        every device has all. It changes no number but by the order of sums, see `contrastive_loss`
        for what it costs and saves.
    """

    encoder: nn.Module
    normalize: Callable[[Array], Array]
    augment: Callable[[Array, Array, int], Array]
    batch_size: int
    queue_length: int = 65536
    momentum: float = 0.999
    temperature: float = 0.2
    dense_weight: float = 0.5
    dense_warmup_steps: int = 0
    correspondence: str = "max_sim_features"
    negatives: str = "pooled"
    shuffle: GroupShuffle | FixedShuffle | None = None
    negatives_at_once: int = 4096
    queue_sharding: NamedSharding | None = None

    def __post_init__(self):
        if self.queue_length % self.batch_size:
            raise InputError(
                f"a queue of {self.queue_length} vectors does not take batches of "
                f"{self.batch_size} images; make its length a multiple of the batch size"
            )
        for key, names in (("correspondence", CORRESPONDENCES), ("negatives", NEGATIVES)):
            if getattr(self, key) not in names:
                raise InputError(
                    f"DenseCL {key} {getattr(self, key)!r} is unknown; use one of "
                    f"{', '.join(names)}"
                )
        if not self.has_dense_head and self.dense_weight:
            raise InputError(
                f"DenseCL dense_weight {self.dense_weight} needs a dense head; set it to 0 or "
                "give the neck one"
            )

    @property
    def has_dense_head(self) -> bool:
        """Whether there is a dense loss."""
        return self.encoder.neck.dense

    def init(self, rng: Array, batch: ViewBatch) -> PyTree:
        """Variables of both encoders, equal at the start, and random queues.

        Only the batch's shape is read, and of that only the size of the images.
        """
        network_rng, *queue_rngs = jax.random.split(rng, 3)
        views = jax.eval_shape(self.normalize, batch.views)
        image = jnp.zeros((1, *views.shape[2:]), views.dtype)
        variables = self.encoder.init(network_rng, image)
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        names = ("global", "dense") if self.has_dense_head else ("global",)
        queues = {
            name: {
                "vectors": init_queue(key, self.queue_length, self.encoder.neck.out),
                "position": jnp.zeros((), jnp.int32),
            }
            for name, key in zip(names, queue_rngs, strict=False)
        }
        extra = {
            "key_params": jax.tree.map(jnp.copy, params),
            "key_batch_stats": jax.tree.map(jnp.copy, batch_stats),
            "queues": queues,
        }
        return {"params": params, "batch_stats": batch_stats, "extra": extra}

    def row_weights(self, batch: ViewBatch) -> dict[str, Array]:
        """What the rows' losses are multiplied by, {"row": (B,)}: valid rows alone, equally."""
        valid = batch.valid.astype(jnp.result_type(float))
        return {"row": valid / jnp.maximum(jnp.sum(valid), 1.0)}

    def loss_fn(
        self, params: PyTree, state: Any, batch: ViewBatch, rng: Array, weights: dict[str, Array]
    ) -> tuple[Array, tuple[dict, dict]]:
        """(1 - lambda) global + lambda dense loss (equation 5.3), and the new keys and queues.

        In the published order: queries; the key encoder moves towards this step's query encoder;
        keys, in other BatchNorm groups and with running statistics of their own; losses against the
        queues as they were; then the keys enter the queues.

        Args:
          params: of the query encoder.
          state: anything with `batch_stats`, `extra` and `step`.
          batch: the whole batch of the step.
          rng: key of the shuffle, of random matches and of sampled negatives.
          weights: from `row_weights`.

        Returns:
          The loss, and (updates with "batch_stats" and "extra", metrics). The metrics loss/global
          and loss/dense are not multiplied by lambda. Accuracy is the share of queries whose
          positive is more similar than all negatives; std is the standard deviation of a normalised
          output over the images, 0 where all of them end in one point, and 1 / sqrt(E) where they
          fill the sphere. std/dense compares the images at equal cells: it is 0 where a cell knows
          nothing but its place, which can tell it from pooled negatives at an accuracy of 1.

        Raises:
          InputError: the batch is not the whole one.
        """
        self._require_whole(batch)
        shuffle_rng, match_rng, negative_rng = jax.random.split(rng, 3)
        image = self._augment_view(batch.views[:, 0], batch.seed, 0)
        query, batch_stats = self._encode(params, state.batch_stats, image, batch.valid)
        extra = dict(state.extra, key_params=self._moved_keys(state.extra["key_params"], params))
        key, extra["key_batch_stats"] = self._encode_keys(extra, batch, shuffle_rng)

        def mean(rows: Array) -> Array:
            return jnp.sum(rows * weights["row"])

        queues = extra["queues"]
        query_vector = l2_normalize(query.embeddings.vector)
        key_vector = l2_normalize(key.embeddings.vector)
        rows, correct = self._contrast(query_vector, key_vector, queues["global"])
        loss = mean(rows)
        metrics = {
            "loss/global": loss,
            "accuracy/global": mean(correct),
            "std/query": _spread(query_vector, weights["row"]),
            "std/key": _spread(key_vector, weights["row"]),
            "data/broken_images": jnp.sum(~batch.valid, dtype=jnp.float32),
        }
        new_keys = {"global": key_vector}
        if self.has_dense_head:
            cells = l2_normalize(query.embeddings.grid)
            rows, correct = self._dense_loss(cells, query, key, queues["dense"], match_rng)
            metrics |= {
                "loss/dense": mean(rows),
                "accuracy/dense": mean(correct),
                "std/dense": _spread(cells, weights["row"]),
            }
            share = self._dense_share(state.step)
            loss = (1.0 - share) * loss + share * metrics["loss/dense"]
            new_keys["dense"] = self._dense_negatives(key, negative_rng)
        extra["queues"] = {
            name: _enqueued(queues[name], keys, batch.valid) for name, keys in new_keys.items()
        }
        return loss, ({"batch_stats": batch_stats, "extra": extra}, {"loss": loss} | metrics)

    def predict(self, variables: PyTree, batch: ViewBatch) -> EncodedView:
        """Both views as the query encoder sees them at inference, arrays (B, 2, ...)."""
        rows = batch.views.shape[0]
        views = self.normalize(batch.views)
        encoded = self.encoder.apply(variables, views.reshape(2 * rows, *views.shape[2:]))
        return jax.tree.map(lambda x: x.reshape(rows, 2, *x.shape[1:]), encoded)

    def is_trainable(self, path: tuple[str, ...]) -> bool:
        """True: all of the query encoder trains; the key encoder lies in `extra`."""
        del path
        return True

    def is_spread(self, path: tuple[str, ...]) -> bool:
        """Whether the array at a path of `extra` is spread over the devices along its first axis.

        For `solojax.train.sharding.state_sharding`.
        """
        return self.queue_sharding is not None and path[0] == "queues" and path[-1] == "vectors"

    def _require_whole(self, batch: ViewBatch) -> None:
        rows = batch.views.shape[0]
        if rows != self.batch_size:
            raise InputError(
                f"DenseCL got {rows} of a step's {self.batch_size} images, and its queues and "
                "BatchNorm groups need all of them at once; set train.accumulate_steps to 1"
            )

    def _moved_keys(self, key_params: PyTree, params: PyTree) -> PyTree:
        """The key encoder's parameters, a little closer to those of the query encoder."""
        return jax.tree.map(
            lambda key, query: self.momentum * key + (1.0 - self.momentum) * query,
            key_params,
            jax.lax.stop_gradient(params),
        )

    def _augment_view(self, images: Array, seeds: Array, view: int) -> Array:
        """Images (B, H, W, 3) uint8, view number `view` of every row, as the encoder reads them."""
        return self.augment(images[:, None], seeds, view)[:, 0]

    def _encode(self, params, batch_stats, image: Array, valid: Array):
        """(EncodedView, new running statistics) in training mode."""
        encoded, updated = self.encoder.apply(
            {"params": params, "batch_stats": batch_stats},
            image,
            train=True,
            row_mask=valid,
            mutable=["batch_stats"],
        )
        return encoded, updated.get("batch_stats", batch_stats)

    def _encode_keys(self, extra: dict, batch: ViewBatch, rng: Array):
        """The same of the second views by the key encoder, among other images."""
        rows = (batch.views[:, 1], batch.seed, batch.valid)
        # Before the colours change: what travels is a quarter of the augmented images' bytes.
        if self.shuffle is not None:
            rows = self.shuffle.shuffle(rows, rng)
        pixels, seeds, valid = rows
        image = self._augment_view(pixels, seeds, 1)
        encoded, stats = self._encode(extra["key_params"], extra["key_batch_stats"], image, valid)
        if self.shuffle is not None:
            encoded = self.shuffle.unshuffle(encoded, rng)
        return encoded, stats

    def _contrast(self, query: Array, positive: Array, queue: dict) -> tuple[Array, Array]:
        return contrastive_loss(
            query,
            positive,
            queue["vectors"],
            self.temperature,
            negatives_at_once=self.negatives_at_once,
            sharding=self.queue_sharding,
        )

    def _dense_loss(
        self, cells: Array, query: EncodedView, key: EncodedView, queue: dict, rng: Array
    ) -> tuple[Array, Array]:
        """Loss and accuracy of every image's cells (B, S_h * S_w, E), averaged: (B,) each."""
        choices = l2_normalize(key.embeddings.grid)
        matches = self._matches(query, key, rng)
        positive = pick_rows(choices, matches)
        losses, correct = self._contrast(cells, positive, queue)
        return jnp.mean(losses, axis=1), jnp.mean(correct, axis=1, dtype=losses.dtype)

    def _matches(self, query: EncodedView, key: EncodedView, rng: Array) -> Array:
        """The key cell of every query cell, (B, S_h * S_w)."""
        if self.correspondence == "max_sim_features":
            return match_cells(query.features, key.features)
        if self.correspondence == "max_sim_embeddings":
            return match_cells(query.embeddings.grid, key.embeddings.grid)
        rows, cells = query.embeddings.grid.shape[:2]
        return random_cells(rng, rows, cells, cells)

    def _dense_negatives(self, key: EncodedView, rng: Array) -> Array:
        """One unit vector (B, E) for each image."""
        if self.negatives == "pooled":
            return l2_normalize(key.embeddings.pooled)
        grid = key.embeddings.grid
        cell = random_cells(rng, grid.shape[0], 1, grid.shape[1])
        return l2_normalize(pick_rows(grid, cell)[:, 0])

    def _dense_share(self, step: Array) -> Array | float:
        """Lambda of a step."""
        if not self.dense_warmup_steps:
            return self.dense_weight
        return jnp.where(step < self.dense_warmup_steps, 0.0, self.dense_weight)


def _enqueued(queue: dict[str, Array], keys: Array, valid: Array) -> dict[str, Array]:
    vectors, position = enqueue(queue["vectors"], queue["position"], keys, valid)
    return {"vectors": vectors, "position": position}


def _spread(vectors: Array, weights: Array) -> Array:
    """Standard deviation of unit vectors (B, ..., E) over the weighted rows, averaged."""
    vectors = jax.lax.stop_gradient(vectors)
    weights = weights.reshape(-1, *[1] * (vectors.ndim - 1))
    center = jnp.sum(vectors * weights, axis=0)
    return jnp.mean(jnp.sqrt(jnp.sum(jnp.square(vectors - center) * weights, axis=0)))
