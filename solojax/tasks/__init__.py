"""Tasks: what joins models, targets, losses and post-processing.

A task is a few pure functions; the loop in `solojax.train` and the commands know it by these alone.

* `init(rng, batch) -> variables`: {"params": ..., "batch_stats": ...}.
* `prepare(batch) -> batch`, which a task may be without: what a step makes of its whole batch on
  the device before anything else.
* `row_weights(batch) -> pytree of (B, ...)`: what each row's sums are multiplied by, so that the
  losses of all rows of the global batch add up to the mean. Computed from the whole batch before
  any micro-batch, so that accumulating gradients over k parts equals one step.
* `loss_fn(params, state, batch, rng, weights) -> (loss, (updates, metrics))`: additive over rows;
  `updates` holds the new `batch_stats` and `extra`.
* `predict(variables, batch) -> outputs`.
* `is_trainable(path) -> bool`: which parameters the optimizer moves.
* `is_spread(path) -> bool`, which a task may be without: which arrays of `extra` lie spread over
  the devices, along their first axis.
"""

from __future__ import annotations

from typing import Any, Protocol

from solojax.structures import Array, Batch, PyTree


class Task(Protocol):
    """See the module's docstring."""

    def init(self, rng: Array, batch: Batch) -> PyTree:
        """Variables for images of the batch's shape."""

    def row_weights(self, batch: Batch) -> PyTree:
        """Weights (B, ...) of the rows' sums."""

    def loss_fn(
        self, params: PyTree, state: Any, batch: Batch, rng: Array, weights: PyTree
    ) -> tuple[Array, tuple[dict, dict]]:
        """Loss, (updates, metrics), all additive over rows."""

    def predict(self, variables: PyTree, batch: Batch) -> PyTree:
        """Outputs of inference."""

    def is_trainable(self, path: tuple[str, ...]) -> bool:
        """Whether the parameter at `path` is trained."""
