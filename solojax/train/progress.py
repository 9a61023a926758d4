"""The progress bar of long work."""

from __future__ import annotations

import math
import sys

from tqdm import tqdm


class TrainProgress:
    """One line on stderr: steps, images/s, ETA and losses; silent where `enabled` is False.

    Args:
      total_steps: length of the run.
      start_step: where this process begins.
      batch_size: global images per step.
      enabled: False on all processes but the first.
    """

    def __init__(self, *, total_steps: int, start_step: int, batch_size: int, enabled: bool = True):
        self._batch_size = batch_size
        self._bar = tqdm(
            total=total_steps,
            initial=start_step,
            unit="step",
            desc="train",
            disable=not enabled,
            dynamic_ncols=True,
            # A log file gets a line now and then instead of a bar redrawn.
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
        )

    def advance(self, metrics: dict[str, float] | None) -> None:
        """Counts a step; new metrics change the text behind the bar."""
        if metrics is not None:
            shown = {k: f"{v:.3g}" for k, v in metrics.items() if k.startswith("loss")}
            rate = self._bar.format_dict.get("rate") or math.nan
            shown["images/s"] = f"{rate * self._batch_size:.1f}"
            self._bar.set_postfix(shown, refresh=False)
        self._bar.update()

    def note(self, text: str) -> None:
        """Prints a line above the bar."""
        if not self._bar.disable:
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Leaves the finished bar on the screen."""
        self._bar.close()
