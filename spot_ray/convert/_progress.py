"""Shows how far a conversion is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from spot_ray.convert.run import Progress


@contextlib.contextmanager
def shown_progress(*, console: Console | None = None, every_s: float = 10.0) -> Iterator[Callable[[Progress], None]]:
    """Show progress while the block runs.

    Args:
        console: Where to show it; None: standard error.
        every_s: Seconds between two lines where there is no terminal.

    Yields:
        What to call with the progress.
    """
    console = console or Console(stderr=True)
    bar = Bar(
        TextColumn("convert"),
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
