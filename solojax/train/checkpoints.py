"""Checkpoints that survive a kill at any moment, on Orbax.

A save is written to a temporary directory and renamed when whole; an old checkpoint is renamed to
a temporary name before its files go. So a directory with a step's name is a whole checkpoint, and
what a killed run leaves behind is recognised by its name. Files that were damaged later are found
when they are read, and such a checkpoint is moved aside instead of ending the run.

All of that rests on storage that renames a folder in one go: a file system, or a mounted bucket
with a hierarchical namespace. `start_checks.check_workdir` finds storage that refuses.

Orbax's CheckpointManager is not used: its list of steps keeps saves that failed, its choice of the
best checkpoint fails on one damaged file, and its deletions can be cut short half-way.
"""

from __future__ import annotations

import logging
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from solojax.errors import InputError
from solojax.train import checkpoint_format as form
from solojax.train.checkpoint_loading import LoadedVariables, best_step, load_variables
from solojax.train.orbax_noise import quiet_orbax
from solojax.train.sharding import gather_json
from solojax.train.shared_files import wait_for_files

_logger = logging.getLogger(__name__)

__all__ = ["BROKEN_FOLDER", "Checkpointer", "LoadedVariables", "load_variables"]

BROKEN_FOLDER = "broken"


class Checkpointer:
    """Saves and restores the training state of one run.

    All processes construct it and call its methods in the same order; the directory is on storage
    that they share. Errors of a save in the background are raised by the next call.
    """

    def __init__(
        self,
        directory: str | epath.Path,
        *,
        keep: int = 3,
        best_metric: str | None = None,
        best_mode: str = "max",
        asynchronous: bool = True,
    ):
        """Makes the directory and removes what killed saves left in it.

        Args:
          directory: where the checkpoints go, one directory a step.
          keep: how many of the newest checkpoints stay.
          best_metric: the checkpoint that is best by this metric stays too.
          best_mode: "max" or "min".
          asynchronous: write in the background, while training goes on.

        Raises:
          InputError: a bad argument, or a directory that cannot be written.
        """
        if keep < 1:
            raise InputError(f"keep={keep} checkpoints is too few; keep at least 1")
        if best_mode not in ("max", "min"):
            raise InputError(f"best_mode '{best_mode}' is unknown; use 'max' or 'min'")
        self.directory = epath.Path(directory).absolute()
        self._keep, self._best_metric, self._best_mode = keep, best_metric, best_mode
        self._known_whole: set[int] = set()
        self._pending: int | None = None
        quiet_orbax()
        self._prepare_directory()
        handler = ocp.CompositeCheckpointHandler()
        self._orbax = ocp.AsyncCheckpointer(handler) if asynchronous else ocp.Checkpointer(handler)

    def save(
        self,
        step: int,
        state: Any,
        metadata: dict[str, Any],
        metrics: dict[str, float] | None = None,
        wait: bool = False,
    ) -> None:
        """Saves the state; returns when the arrays are copied, or with `wait` when they are whole.

        The state's buffers may be donated right after. A step that is already saved whole is left
        as it is (its metrics too: evaluate before saving).

        Args:
          step: must be above every step in the directory.
          state: pytree of jax or NumPy arrays and scalars; None and empty containers may occur.
          metadata: json for the caller's own use.
          metrics: evaluation results of this very state, e.g. {"mask/AP": 0.37}.

        Raises:
          InputError: this or the previous save failed (disk full, not writable), or a later step
            is in the directory. Earlier checkpoints are whole all the same. Or there are metrics,
            but not the one to be best by: then this checkpoint is saved too.
        """
        self.wait()
        step = int(step)
        if self._is_saved(step):
            _logger.info("checkpoint %s is there already", self._path(step))
            return
        newest = self.latest_step()
        if newest is not None and newest > step:
            raise InputError(
                f"checkpoint {step} would lie behind checkpoint {newest} in {self.directory}; "
                f"move the later ones away or use another workdir"
            )
        arguments = form.save_arguments(
            state,
            {
                "step": step,
                "metrics": metrics and {name: float(value) for name, value in metrics.items()},
                "best_metric": self._best_metric,
                "best_mode": self._best_mode,
                "metadata": metadata,
            },
        )
        self._pending = step
        try:
            self._orbax.save(self._path(step), args=arguments)
        except Exception as error:
            self._report_failed_save(error)
        unknown = bool(metrics and self._best_metric) and self._best_metric not in metrics
        if wait or unknown:
            self.wait()
        if unknown:
            raise InputError(
                f"train.best_metric '{self._best_metric}' is none of the evaluation's figures "
                f"{', '.join(sorted(metrics))}; checkpoint {step} is saved, go on from it with one "
                "of these"
            )

    def restore(
        self, template: Any, step: int | None = None, *, renewable: str | None = None
    ) -> tuple[Any, dict[str, Any], int] | None:
        """Restores the newest whole checkpoint, or that of one step.

        A broken checkpoint is moved into `broken/` and the next older one is tried; that is said
        in a warning. With `step` given nothing is moved.

        Args:
          template: a state of the same structure, of arrays or `jax.ShapeDtypeStruct`s; restored
            arrays get its shardings. NumPy leaves and scalars come back as such.
          step: which one; None for the newest.
          renewable: path of a branch, as "extra/queues", that the run can do without: where it is
            absent or any of it is of another shape, which a warning says, all of the branch comes
            back as the template has it.

        Returns:
          (state, metadata, step), or None where there is no checkpoint.

        Raises:
          InputError: the step is absent or broken; the checkpoint is of another model (missing,
            unexpected or misshapen leaves), which never counts as broken.
        """
        self.wait()
        steps = self._list_steps()
        if step is not None:
            if step not in steps:
                raise InputError(
                    f"no checkpoint of step {step} in {self.directory}; there are {steps}"
                )
            restored, reason = self._try_restore(template, step, renewable)
            if restored is None:
                raise InputError(
                    f"checkpoint {self._path(step)} is broken ({reason}); use another of {steps}"
                )
            return restored
        for candidate in reversed(steps):
            restored, reason = self._try_restore(template, candidate, renewable)
            if restored is not None:
                if candidate != steps[-1]:
                    _logger.warning(
                        "steps %d to %d are lost: going on from checkpoint %d",
                        candidate + 1, steps[-1], candidate,
                    )  # fmt: skip
                return restored
            self._move_aside(candidate, reason)
        if steps:
            _logger.warning("no whole checkpoint is left in %s: starting anew", self.directory)
        return None

    def latest_step(self) -> int | None:
        """The newest finished checkpoint; one that is still being written does not count."""
        steps = self._list_steps()
        return steps[-1] if steps else None

    def check(self) -> None:
        """Raises what has befallen the save in the background so far, without waiting for it.

        Raises:
          InputError: it failed.
        """
        if self._pending is None or not isinstance(self._orbax, ocp.AsyncCheckpointer):
            return
        try:
            self._orbax.check_for_errors()
        except Exception as error:
            self._report_failed_save(error)

    def wait(self) -> None:
        """Returns when no save is under way; removes the checkpoints that need not stay.

        Raises:
          InputError: the save in the background failed.
        """
        if self._pending is None:
            return
        try:
            if isinstance(self._orbax, ocp.AsyncCheckpointer):
                self._orbax.wait_until_finished()
        except Exception as error:
            self._report_failed_save(error)
        self._known_whole.add(self._pending)
        self._pending = None
        self._remove_superseded()

    def close(self) -> None:
        """Waits for the save under way and ends; raises what `wait` raises."""
        try:
            self.wait()
        finally:
            self._orbax.close()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self.close()
            return
        try:
            self.close()
        except InputError as second:  # must not hide the error that ended the run
            _logger.error("%s", second)

    def _path(self, step: int) -> epath.Path:
        return self.directory / str(step)

    def _list_steps(self) -> list[int]:
        """The finished checkpoints as process 0 sees them.

        What another host sees of shared storage may be some seconds old, and hosts that disagree
        here would go on from different steps, or wait for each other for ever.
        """
        return gather_json(form.list_steps(self.directory) if jax.process_index() == 0 else [])[0]

    def _prepare_directory(self) -> None:
        if jax.process_index() == 0:
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
                self._remove_temporary()  # first of all: a full disk needs the room
                probe = self.directory / f"write-test{form.TEMPORARY}"
                probe.mkdir()
                probe.rmdir()
            except OSError as error:
                raise InputError(
                    f"checkpoints cannot be written to {self.directory}: {form.brief(error)}; "
                    f"choose another workdir"
                ) from error
        _barrier("prepared")

    def _remove_temporary(self) -> None:
        for path in self.directory.iterdir():
            unfinished = path.name.isdigit() and not ocp.utils.is_checkpoint_finalized(path)
            if path.is_dir() and (form.TEMPORARY in path.name or unfinished):
                path.rmtree()

    def _wait_for(self, step: int) -> None:
        """Until this host sees what process 0 has listed: it must not pass for a broken one."""
        if jax.process_count() > 1:
            wait_for_files([self._path(step) / form.RECORD / form.RECORD])

    def _is_saved(self, step: int) -> bool:
        """Whether a step is saved whole; a broken one is moved aside to make room."""
        if step not in self._list_steps():
            return False
        if step in self._known_whole:
            return True
        self._wait_for(step)
        if not _all_processes(form.is_whole(self._path(step))):
            self._move_aside(step, "found when the step was to be saved again")
            return False
        self._known_whole.add(step)
        return True

    def _try_restore(
        self, template: Any, step: int, renewable: str | None
    ) -> tuple[tuple | None, str]:
        """(state, metadata, step) if every process could read it, and why not."""
        restored, reason = None, "another process could not read it"
        self._wait_for(step)
        try:
            restored = self._restore_step(template, step, renewable)
        except form.BrokenCheckpoint as error:
            reason = str(error)
        if not _all_processes(restored is not None):
            return None, reason
        self._known_whole.add(step)
        return restored, ""

    def _restore_step(
        self, template: Any, step: int, renewable: str | None
    ) -> tuple[Any, dict[str, Any], int]:
        path = self._path(step)
        record = form.read_record(path)
        targets = form.named_leaves(template)
        saved, expected = record["leaves"], form.describe(targets)
        if renewable is not None:
            saved, expected = form.without_renewed(path, saved, expected, renewable)
        form.check_layout(path, saved, expected)
        leaves = form.read_leaves(path, record, expected)
        placed = [
            form.place_like(leaves[name], target) if name in leaves else target
            for name, target in targets.items()
        ]
        state = jax.tree.unflatten(jax.tree.structure(template), placed)
        return state, record["metadata"], step

    def _move_aside(self, step: int, reason: str) -> None:
        target = self.directory / BROKEN_FOLDER / str(step)
        if jax.process_index() == 0:
            try:
                target.parent.mkdir(exist_ok=True)
                copies = 1
                while target.exists():
                    target = target.parent / f"{step}-{copies}"
                    copies += 1
                self._path(step).rename(target)
            except OSError as error:
                raise InputError(
                    f"broken checkpoint {self._path(step)} ({reason}) cannot be moved to "
                    f"{target}: {form.brief(error)}; move it away by hand"
                ) from error
        _barrier(f"moved_{step}")
        _logger.warning(
            "checkpoint %s is broken (%s): moved to %s", self._path(step), reason, target
        )

    def _remove_superseded(self) -> None:
        if jax.process_index() != 0:
            return
        steps = form.list_steps(self.directory)
        best = best_step(self.directory, self._best_metric, self._best_mode)
        for step in steps[: -self._keep]:
            if step != best:
                self._remove(step)

    def _remove(self, step: int) -> None:
        path = self._path(step)
        try:
            if not ocp.utils.is_gcs_path(path):  # where a rename would copy every byte
                path = path.rename(self.directory / f"{step}{form.REMOVED}")
            path.rmtree()
        except OSError as error:
            _logger.warning("old checkpoint %s cannot be removed: %s", path, form.brief(error))

    def _report_failed_save(self, error: Exception) -> None:
        """Raises a failure of the storage as InputError and anything else as it is."""
        step, self._pending = self._pending, None
        if jax.process_index() == 0:
            try:
                self._remove_temporary()  # a full disk needs the room
            except OSError as second:
                _logger.warning("%s is not tidy: %s", self.directory, form.brief(second))
        if not form.is_storage_error(error):
            raise error
        raise InputError(
            f"checkpoint {step} could not be saved in {self.directory}: {form.brief(error)}; "
            f"free space or mend the directory and run again from the earlier checkpoints"
        ) from error


def _all_processes(flag: bool) -> bool:
    """Whether the flag is set on every process."""
    if jax.process_count() == 1:
        return flag
    return bool(np.all(multihost_utils.process_allgather(np.asarray(flag))))


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"solojax_checkpoints_{name}")
