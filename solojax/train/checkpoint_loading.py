"""Variables for prediction out of a checkpoint that a run may still be adding to."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from etils import epath
from flax import traverse_util

from solojax.errors import InputError
from solojax.train import checkpoint_format as form
from solojax.train.orbax_noise import quiet_orbax

FOLDER = "checkpoints"  # inside a work directory


@dataclasses.dataclass(frozen=True)
class LoadedVariables:
    """What prediction needs of a checkpoint, as NumPy arrays.

    Attributes:
      params, batch_stats: nested dicts; batch_stats is {} for a model without any.
      ema_params: nested dict, or None if the run kept no moving average.
      metadata: what was given to `save`.
      step: the training step.
      path: the directory that was read.
      extra: what else the task keeps, where it was asked for, and {} otherwise.
    """

    params: dict[str, Any]
    batch_stats: dict[str, Any]
    ema_params: dict[str, Any] | None
    metadata: dict[str, Any]
    step: int
    path: str
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def best_params(self) -> dict[str, Any]:
        """The moving average of the parameters where the run kept one, else the parameters."""
        return self.params if self.ema_params is None else self.ema_params


def load_metadata(path: str | epath.Path, *, step: int | str | None = None) -> dict[str, Any]:
    """What a checkpoint says of itself; arguments and errors as `load_variables`."""
    return _read_record(_find_checkpoint(epath.Path(path).absolute(), step))["metadata"]


def newest_metadata(path: str | epath.Path) -> tuple[dict[str, Any], str] | None:
    """What the newest checkpoint of a run that can be read says of itself, and its path.

    Args:
      path: a work directory, which may be absent or hold nothing yet.

    Returns:
      (metadata, path of the checkpoint); None where there is no such checkpoint.

    Raises:
      InputError: it may not be read, or a newer version wrote it.
    """
    directory = epath.Path(path).absolute() / FOLDER
    for step in reversed(form.list_steps(directory)):
        try:
            return form.read_record(directory / str(step))["metadata"], str(directory / str(step))
        except form.BrokenCheckpoint:
            continue
    return None


def load_variables(
    path: str | epath.Path, *, step: int | str | None = None, extra: bool = False
) -> LoadedVariables:
    """Reads the variables of a checkpoint without its optimizer, changing nothing on disk.

    Args:
      path: a work directory, its `checkpoints` directory, or the directory of one step.
      step: a step, "best" (by the metric that the run kept its best checkpoint by), or None for
        the newest.
      extra: whether what the task keeps beside the network is read too.

    Raises:
      InputError: the path is absent, holds no (such) checkpoint, or the checkpoint is broken: then
        no other is taken silently.
    """
    step_path = _find_checkpoint(epath.Path(path).absolute(), step)
    quiet_orbax()
    record = _read_record(step_path)
    branches = ("params", "batch_stats", "ema_params", *(("extra",) if extra else ()))
    wanted = [name for name in record["leaves"] if name.split("/")[0] in branches]
    try:
        leaves = form.read_leaves(step_path, record, wanted)
    except form.BrokenCheckpoint as error:
        raise _broken(step_path, error) from error
    tree = traverse_util.unflatten_dict(leaves, sep="/")
    if "params" not in tree:
        raise InputError(f"checkpoint {step_path} holds no params; was it written by solojax?")
    return LoadedVariables(
        params=tree["params"],
        batch_stats=tree.get("batch_stats", {}),
        ema_params=tree.get("ema_params"),
        metadata=record["metadata"],
        step=record["step"],
        path=str(step_path),
        extra=tree.get("extra", {}),
    )


def best_step(directory: str | epath.Path, metric: str | None, mode: str) -> int | None:
    """The step whose checkpoint has the best finite value of a metric; the later one of equals."""
    best, best_score = None, -math.inf
    for step in form.list_steps(epath.Path(directory)) if metric else []:
        try:
            metrics = form.read_record(epath.Path(directory) / str(step))["metrics"] or {}
        except form.BrokenCheckpoint:
            continue
        score = metrics.get(metric, math.nan) * (1 if mode == "max" else -1)
        if math.isfinite(score) and score >= best_score:
            best, best_score = step, score
    return best


def _read_record(step_path: epath.Path) -> dict[str, Any]:
    try:
        return form.read_record(step_path)
    except form.BrokenCheckpoint as error:
        raise _broken(step_path, error) from error


def _broken(step_path: epath.Path, error: form.BrokenCheckpoint) -> InputError:
    steps = form.list_steps(step_path.parent)
    return InputError(f"checkpoint {step_path} is broken ({error}); use another of {steps}")


def _find_checkpoint(path: epath.Path, step: int | str | None) -> epath.Path:
    """The directory of one checkpoint, from any of the paths that a person may give."""
    if not path.exists():
        raise InputError(f"checkpoint {path} does not exist; give a workdir or a checkpoint in it")
    if not path.is_dir():
        raise InputError(f"{path} is a file, not a checkpoint directory; give a workdir")
    if form.TEMPORARY in path.name:
        raise InputError(f"{path} is what an unfinished save left behind; use a whole checkpoint")
    if (path / form.STATE).exists() or (path / form.RECORD).exists():
        if step not in (None, path.name) and str(step) != path.name:
            raise InputError(f"{path} is one checkpoint: step {step} must be sought beside it")
        return path
    directory = path / FOLDER if (path / FOLDER).is_dir() else path
    steps = form.list_steps(directory)
    if not steps:
        raise InputError(f"no checkpoint in {directory}; give a workdir that was trained in")
    return directory / str(_choose(directory, steps, step))


def _choose(directory: epath.Path, steps: list[int], step: int | str | None) -> int:
    if step is None:
        return steps[-1]
    if step == "best":
        return _recorded_best(directory, steps)
    if not str(step).isdigit() or int(step) not in steps:
        raise InputError(f"no checkpoint '{step}' in {directory}; choose one of {steps} or 'best'")
    return int(step)


def _recorded_best(directory: epath.Path, steps: list[int]) -> int:
    """The best step by the metric that the newest readable checkpoint names."""
    for step in reversed(steps):
        try:
            record = form.read_record(directory / str(step))
        except form.BrokenCheckpoint:
            continue
        best = best_step(directory, record["best_metric"], record["best_mode"])
        if best is not None:
            return best
    raise InputError(f"no checkpoint in {directory} has metrics to be best by; use one of {steps}")
