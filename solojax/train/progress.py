"""Progress of long work: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Mapping

from tqdm import tqdm

_LOG_SECONDS = 30.0  # between two lines of a log file
_LOG_FORMAT = "{desc}: {n_fmt}/{total_fmt} {unit} [{elapsed}<{remaining}, {rate_fmt}]"


class TrainProgress:
    """Steps, images/s, time left and losses on stderr; silent where `enabled` is False.

    On a terminal it is a bar. Elsewhere every `advance` with metrics writes a line.

    Args:
      total_steps: length of the run.
      start_step: where this process begins.
      batch_size: global images per step.
      enabled: False on all processes but the first.
    """

    def __init__(self, *, total_steps: int, start_step: int, batch_size: int, enabled: bool = True):
        self._total, self._step, self._batch_size = total_steps, start_step, batch_size
        self._writes_lines = enabled and not _is_terminal()
        self._bar = tqdm(
            total=total_steps,
            initial=start_step,
            unit="step",
            desc="train",
            disable=not enabled or self._writes_lines,
            dynamic_ncols=True,
            mininterval=0.5,
        )

    def advance(self, metrics: Mapping[str, float] | None) -> None:
        """Counts a step; new metrics (of `_Meter.means`) change the text behind the bar."""
        self._step += 1
        if metrics is not None:
            text = self._describe(metrics)
            self._bar.set_postfix_str(text, refresh=False)
            if self._writes_lines:
                left = (self._total - self._step) * metrics.get("seconds_per_step", 0.0)
                time_left = datetime.timedelta(seconds=round(left))
                self.note(f"step {self._step}/{self._total}  {text}, {time_left} left")
        self._bar.update()

    def skip_time(self) -> None:
        """Keeps what has passed since the last step (compilation, evaluation) out of the rate."""
        self._bar.unpause()

    def note(self, text: str) -> None:
        """Prints a line, above the bar where there is one."""
        if self._writes_lines or not self._bar.disable:
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Leaves the finished bar on the screen."""
        self._bar.close()

    def _describe(self, metrics: Mapping[str, float]) -> str:
        """loss 2.62 (category 0.97, mask 1.65), 12.3 images/s."""
        terms = [
            f"{name.removeprefix('loss/')} {value:.3g}"
            for name, value in metrics.items()
            if name.startswith("loss/")
        ]
        parts = [f"loss {metrics['loss']:.3g}" + (f" ({', '.join(terms)})" if terms else "")]
        if metrics.get("seconds_per_step"):
            parts.append(f"{self._batch_size / metrics['seconds_per_step']:.3g} images/s")
        return ", ".join(parts)


def progress_bar(
    total: int, *, description: str, unit: str, leave: bool = True, enabled: bool = True
) -> tqdm:
    """A bar for counted work on stderr; in a log file a line now and then, none for short work.

    Args:
      total: how much there is to do.
      description: what is done.
      unit: of what.
      leave: whether the finished bar stays on the screen.
      enabled: False on all processes but the first.
    """
    shared = {
        "total": total,
        "desc": description,
        "unit": unit,
        "leave": leave,
        "disable": not enabled,
    }
    if _is_terminal():
        return tqdm(**shared, dynamic_ncols=True)
    return tqdm(
        **shared,
        file=_LogLines(),
        delay=_LOG_SECONDS,
        mininterval=_LOG_SECONDS,
        maxinterval=2 * _LOG_SECONDS,
        bar_format=_LOG_FORMAT,
    )


def _is_terminal() -> bool:
    return sys.stderr.isatty()


class _LogLines:
    """Turns the redrawing of a bar into lines of their own."""

    def write(self, text: str) -> None:
        if text.strip():
            sys.stderr.write(text.strip() + "\n")

    def flush(self) -> None:
        sys.stderr.flush()
