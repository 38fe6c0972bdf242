"""Shows a run's figures while it runs: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from spot_ray.train.skipped import SKIPPED_FILE, SkippedSample

Figures = dict[str, float]

_MOST_SKIPPED = 10
"""Samples that were left out are shown one by one up to so many."""

_AT_A_GLANCE = {"loss": "loss", "geometric_iou": "IoU", "miou": "mIoU", "probe/miou": "probe"}

_PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}


class ProgressDisplay:
    """A context manager that shows the figures it is given.

    Args:
        total_steps: Global steps of the whole run.
        console: Where to show them; None: standard error.
        every_s: Seconds between two lines where there is no terminal.
    """

    def __init__(self, total_steps: int, *, console: Console | None = None, every_s: float = 5.0) -> None:
        self._console = console or Console(stderr=True)
        self._total = total_steps
        self._every_s = every_s
        self._shown = float("-inf")
        self._started: tuple[float, int] | None = None
        self._num_skipped = 0
        self._progress = Progress(
            TextColumn("pre-train"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("", total=total_steps, figures="")

    def __enter__(self) -> ProgressDisplay:
        """Show the bar."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the bar as it is."""
        self._progress.stop()

    def update(self, step: int, figures: Figures) -> None:
        """Show the figures of a global step."""
        text = describe(figures)
        self._progress.update(self._task, completed=step, figures=text)
        now = time.monotonic()
        if self._started is None:
            self._started = now, step
        if self._console.is_terminal or (now - self._shown < self._every_s and step < self._total):
            return
        self._shown = now
        self._console.print(f"step {step}/{self._total}  {text}{self._remaining(now, step)}", **_PLAIN)

    def say(self, text: str) -> None:
        """Show a line above the bar."""
        self._console.print(text, **_PLAIN)

    def say_skipped(self, samples: Sequence[SkippedSample]) -> None:
        """Show samples that were left out, a line each; after some of them, the figures' count is enough."""
        for sample in samples:
            self._num_skipped += 1
            if self._num_skipped <= _MOST_SKIPPED:
                self.say(str(sample))
            elif self._num_skipped == _MOST_SKIPPED + 1:
                self.say(f"more samples are left out: the run's {SKIPPED_FILE} lists them")

    def _remaining(self, now: float, step: int) -> str:
        """Return the time that is left, judged by what has passed since the first figures."""
        since, first = self._started or (now, step)
        if step == first or step == self._total:
            return ""
        seconds = (now - since) / (step - first) * (self._total - step)
        return f"  {seconds / 60:.1f} min left" if seconds >= 60 else f"  {seconds:.0f} s left"


def describe(figures: Figures) -> str:
    """Return the figures that matter at a glance, in one line."""
    parts = [f"{label} {figures[name]:.3f}" for name, label in _AT_A_GLANCE.items() if name in figures]
    parts.append(f"{figures['samples_per_second']:.2f} samples/s")
    parts.append(f"data wait {figures['data_wait']:.0%}")
    if figures["data/skipped_total"]:
        parts.append(f"{figures['data/skipped_total']:,.0f} left out")
    return "  ".join(parts)
