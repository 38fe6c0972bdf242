"""How far a job over sequences is: counted in its tasks, shown as a bar on a terminal, else a line now and then."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

if TYPE_CHECKING:
    from ray.actor import ActorHandle

REPORT_EVERY_S = 0.5


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    Args:
        num_sequences: Sequences that are finished.
        of_sequences: Sequences that are to be written.
        num_at_start: Of the finished ones, those that a run before had finished.
        num_frames: Frames done so far, in this run.
        seconds: Since the run began.
    """

    num_sequences: int
    of_sequences: int
    num_at_start: int
    num_frames: int
    seconds: float


class Meter:
    """Counts, and calls the user's `on_progress` about twice a second.

    Args:
        of_sequences: Sequences that are to be written.
        num_at_start: Of these, those that a run before has finished.
        on_progress: Whom to tell, if anybody.
    """

    def __init__(self, of_sequences: int, num_at_start: int, on_progress: Callable[[Progress], None] | None) -> None:
        self._of_sequences = of_sequences
        self._num_sequences = self._num_at_start = num_at_start
        self._on_progress = on_progress
        self._began = self._told = time.monotonic()
        self.num_frames = 0

    def finished(self, num_sequences: int) -> None:
        """Take in that so many more sequences are finished."""
        self._num_sequences += num_sequences
        self._tell()

    def frames(self, number: int) -> None:
        """Take in how many frames were done so far."""
        self.num_frames = number
        if time.monotonic() - self._told >= REPORT_EVERY_S:
            self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        if self._on_progress is not None:
            seconds = self._told - self._began
            self._on_progress(
                Progress(self._num_sequences, self._of_sequences, self._num_at_start, self.num_frames, seconds)
            )


class Stopped(Exception):  # noqa: N818 (no error: the run is being ended)
    """The run is ending; what is half written is left out."""


class Monitor:
    """What the tasks tell how far they are, and what tells them when to stop; a Ray actor."""

    def __init__(self) -> None:
        self._num_frames = 0
        self._stopped = False

    def report(self, num_frames: int) -> bool:
        """Count frames; returns whether to go on."""
        self._num_frames += num_frames
        return not self._stopped

    def num_frames(self) -> int:
        """Return the number of frames that were counted."""
        return self._num_frames

    def stop(self) -> None:
        """Have every task stop at its next frame."""
        self._stopped = True


class Reporter:
    """Tells a :class:`Monitor` about twice a second, from within a Ray task.

    Args:
        monitor: The actor.
    """

    def __init__(self, monitor: ActorHandle) -> None:
        self._monitor = monitor
        self._count = 0
        self._told = time.monotonic()

    def frame(self, number: int = 1) -> None:
        """Count frames that are done; 0 where some work on one is.

        Raises:
            Stopped: If the run is ending.
        """
        self._count += number
        if time.monotonic() - self._told >= REPORT_EVERY_S:
            self.tell()

    def tell(self) -> None:
        """Tell now what has not been told yet.

        Raises:
            Stopped: If the run is ending.
        """
        import ray

        count, self._count = self._count, 0
        goes_on = ray.get(self._monitor.report.remote(count))
        self._told = time.monotonic()
        if not goes_on:
            raise Stopped


@contextlib.contextmanager
def shown_progress(
    verb: str, *, console: Console | None = None, every_s: float = 10.0
) -> Iterator[Callable[[Progress], None]]:
    """Show progress while the block runs.

    Args:
        verb: What is being done.
        console: Where to show it; None: standard error.
        every_s: Seconds between two lines where there is no terminal.

    Yields:
        What to call with the progress.
    """
    console = console or Console(stderr=True)
    bar = Bar(
        TextColumn(verb),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("sequences  {task.fields[figures]}"),
        console=console,
        disable=not console.is_terminal,
    )
    task = bar.add_task("", total=None, figures="")
    told = 0.0

    def show(progress: Progress) -> None:
        nonlocal told
        figures = describe(progress)
        bar.update(task, total=progress.of_sequences, completed=progress.num_sequences, figures=figures)
        if not console.is_terminal and progress.seconds - told >= every_s:
            told = progress.seconds
            line = f"{progress.num_sequences}/{progress.of_sequences} sequences  {figures}"
            console.print(line, highlight=False, markup=False, soft_wrap=True)

    with bar:
        yield show


@contextlib.contextmanager
def shown_frames(
    verb: str, *, console: Console | None = None, every_s: float = 10.0
) -> Iterator[Callable[[int, int], None]]:
    """Show how many frames are done while the block runs.

    Args:
        verb: What is being done.
        console: Where to show it; None: standard error.
        every_s: Seconds between two lines where there is no terminal.

    Yields:
        What to call with (frames done, frames in all).
    """
    console = console or Console(stderr=True)
    bar = Bar(
        TextColumn(verb), BarColumn(), MofNCompleteColumn(), TextColumn("frames"), console=console,
        disable=not console.is_terminal,
    )  # fmt: skip
    task = bar.add_task("", total=None)
    told = time.monotonic()

    def show(done: int, of: int) -> None:
        nonlocal told
        bar.update(task, total=of, completed=done)
        if not console.is_terminal and time.monotonic() - told >= every_s:
            told = time.monotonic()
            console.print(f"{verb}: {done:,}/{of:,} frames", highlight=False, markup=False, soft_wrap=True)

    with bar:
        yield show


def describe(progress: Progress) -> str:
    """Return frames, frames a second, and the time that is left as far as it can be told."""
    rate = progress.num_frames / progress.seconds if progress.seconds > 0 else 0.0
    text = f"{progress.num_frames:,} frames  {rate:,.1f} frames/s"
    left = seconds_left(progress)
    if left is None:
        return text
    return f"{text}  {left / 60:,.0f} min left" if left >= 90 else f"{text}  {left:.0f} s left"


def seconds_left(progress: Progress) -> float | None:
    """Return the time that is left, judged by the sequences that this run has finished; None before the first."""
    done = progress.num_sequences - progress.num_at_start
    left = progress.of_sequences - progress.num_sequences
    if not left:
        return 0.0
    return progress.seconds / done * left if done else None
