"""Notices that a worker makes no progress: a deadlock raises nothing, and its neighbours wait with it for ever."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType

_STACK_DEPTH = 12


class Watchdog:
    """Calls out once, from a thread of its own, when nobody has patted it for too long; a context manager.

    Where one worker hangs, all of them stop, since they wait for each other: each reports where it stands, and the
    one whose stack is not in an exchange between workers is the one to look at. A worker whose whole process is stopped
    reports nothing; then all the others stand in an exchange.

    Args:
        timeout_s: Seconds without a pat.
        on_hang: Called with what to tell the user.
        start_s: Seconds that the first pat may take, if they are more: a start reads a checkpoint and compiles.
    """

    def __init__(self, timeout_s: float, on_hang: Callable[[str], None], *, start_s: float = 0.0) -> None:
        self._timeout_s = timeout_s
        self._allowed_s = max(timeout_s, start_s)
        self._on_hang = on_hang
        self._patted = time.monotonic()
        self._last = "the start"
        self._watched = threading.get_ident()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def pat(self, what: str) -> None:
        """Say that there is progress.

        Args:
            what: What was reached, for the message.
        """
        self._patted, self._last, self._allowed_s = time.monotonic(), what, self._timeout_s

    def __enter__(self) -> Watchdog:
        """Begin to watch the thread that is here."""
        self._watched = threading.get_ident()
        self._patted = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop watching."""
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(min(1.0, self._timeout_s / 4)):
            idle = time.monotonic() - self._patted
            if idle > self._allowed_s:
                self._on_hang(f"no progress for {idle:.0f} s after {self._last}; it stands at\n{self._stack()}")
                return

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._watched)
        if frame is None:
            return "  (its thread has ended)"
        return "".join(traceback.format_stack(frame)[-_STACK_DEPTH:]).rstrip()
