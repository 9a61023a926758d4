"""Ends a run whose loss or gradient is no number, and keeps the batch that made it so."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from solojax.errors import InputError

_SHOWN_IMAGES = 8


class NonFiniteLoss(InputError):
    """A loss term or the norm of the gradient is NaN or infinite."""


def check_finite(step: int, metrics: Mapping[str, Any], batch: Any, directory: str | Path) -> None:
    """Raises if the loss, one of its terms or the gradient is not finite, after saving the batch.

    The batch goes to DIRECTORY/nonfinite_step_N.npz, one entry per leaf under its path
    ("image", "instances/boxes"); with several processes each saves its own rows, with its index in
    the file's name. It is written to a temporary file first, so it is whole or absent.

    Args:
      step: the step that the loss belongs to.
      metrics: {name: scalar}; "loss", what begins with "loss/", and "grad_norm" are looked at: a
        gradient may be NaN where the loss is not, and the next checkpoint would hold it.
      batch: the host batch of that step (`structures.Batch` or any pytree of NumPy arrays); its
        `valid` and `image_index`, if it has them, are used in the message.
      directory: made if need be.

    Raises:
      NonFiniteLoss: one line with the step, the loss terms, the file, the images, what to try.
    """
    terms = {
        name: float(value)
        for name, value in metrics.items()
        if name in ("loss", "grad_norm") or name.startswith("loss/")
    }
    if all(math.isfinite(value) for value in terms.values()):
        return
    listed = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
    raise NonFiniteLoss(
        f"the loss or its gradient is not finite at step {step} ({listed}); "
        f"{_save(step, batch, Path(directory))}{_name_images(batch)}; "
        "try a lower optimizer.learning_rate, a longer warm-up, gradient clipping or float32 "
        "compute, or look at these images and their annotations"
    )


def _save(step: int, batch: Any, directory: Path) -> str:
    """Writes the batch; says where, or why it could not (which must not hide the loss)."""
    process = f"_process_{jax.process_index()}" if jax.process_count() > 1 else ""
    path = directory / f"nonfinite_step_{step}{process}.npz"
    temporary = path.with_suffix(".tmp")
    leaves = {
        jax.tree_util.keystr(keys, simple=True, separator="/"): np.asarray(leaf)
        for keys, leaf in jax.tree_util.tree_flatten_with_path(batch)[0]
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.savez(file, **leaves)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        return f"its batch could not be saved to {path} ({error.strerror or error})"
    return f"its batch is in {path}"


def _name_images(batch: Any) -> str:
    """The image indices of the valid rows, a few of them."""
    indices = getattr(batch, "image_index", None)
    if indices is None:
        return ""
    valid = np.asarray(getattr(batch, "valid", np.ones(len(indices), bool)))
    named = [int(index) for index in np.asarray(indices)[valid]]
    rest = f" and {len(named) - _SHOWN_IMAGES} more" if len(named) > _SHOWN_IMAGES else ""
    return f", image indices {', '.join(map(str, named[:_SHOWN_IMAGES]))}{rest}"
