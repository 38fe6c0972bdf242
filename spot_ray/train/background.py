"""A logger in a thread of its own, so that no tracker of experiments can hold up a run or end it."""

from __future__ import annotations

import threading
import warnings
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

from spot_ray.train.credentials import without_credentials

if TYPE_CHECKING:
    from spot_ray.train.loggers import RunLogger

CAPACITY = 2000
"""Lines that wait for a tracker that is away: hours of a run."""

ATTEMPTS = 10
"""Times that a line is offered, over some seven minutes: one that is at fault itself must not hold up the others."""

RETRY_S = 5.0
"""Seconds before the second attempt; twice as long before each further one."""

LONGEST_RETRY_S = 60.0
"""Most seconds between two attempts."""

PATIENCE_S = 30.0
"""Seconds that the end of a run waits for lines to be delivered."""


class BackgroundLogger:
    """Hands lines of figures to a logger, in order, from a thread of its own.

    A line that the logger refuses is offered again, some time later; after the last attempt, or when too many wait, it
    is lost (the oldest first): a tracker that was away for a while gets them all. The first refusal and the number of
    lost lines are told as warnings by :meth:`log` and :meth:`close`, in the caller's thread.

    Args:
        logger: The logger; only the thread calls it.
        name: Its name, for warnings.
        capacity: Most lines that wait.
        retry_s: Seconds before the second attempt.
        patience_s: Seconds that :meth:`close` waits.
    """

    def __init__(
        self,
        logger: RunLogger,
        *,
        name: str,
        capacity: int = CAPACITY,
        retry_s: float = RETRY_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._logger = logger
        self._name = name
        self._capacity = capacity
        self._retry_s = retry_s
        self._patience_s = patience_s
        self._lines: deque[tuple[int, dict[str, float]]] = deque()
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._failed = False
        self._lost = 0
        self._sending = 0
        self._trouble: str | None = None
        self._told = False
        # A daemon: a tracker that never answers must not keep the process.
        self._thread = threading.Thread(target=self._deliver, name=f"spot_ray logger {name}", daemon=True)
        self._thread.start()

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Leave a line for the logger; returns at once."""
        with self._changed:
            if len(self._lines) == self._capacity:
                self._lines.popleft()
                self._lost += 1
            self._lines.append((step, dict(figures)))
            self._changed.notify()
        self._tell_trouble()

    def close(self, *, failed: bool = False) -> None:
        """Wait for the lines to be delivered and the logger to be closed, but not for long."""
        self._failed = failed
        self._closing.set()
        with self._changed:
            self._changed.notify()
        self._thread.join(self._patience_s)
        self._tell_trouble()
        with self._changed:
            lost = self._lost + self._sending + len(self._lines)
        if lost:
            warnings.warn(
                f"lines of figures that have not reached the logger {self._name}: {lost}; metrics.jsonl has them all",
                RuntimeWarning,
                stacklevel=2,
            )

    def _tell_trouble(self) -> None:
        if self._trouble is not None and not self._told:
            self._told = True
            warnings.warn(
                f"the logger {self._name} does not take figures: {self._trouble}; the run goes on without it",
                RuntimeWarning,
                stacklevel=3,
            )

    def _deliver(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._closing.is_set())
                if not self._lines:
                    break
                line = self._lines.popleft()
                self._sending = 1
            taken = self._offer(*line)
            with self._changed:
                self._sending = 0
                self._lost += not taken
        try:
            self._logger.close(failed=self._failed)
        except Exception as error:  # whatever a tracker's client may raise
            self._trouble = self._trouble or _said(error)

    def _offer(self, step: int, figures: dict[str, float]) -> bool:
        for attempt in range(ATTEMPTS):
            if attempt:
                if self._closing.is_set():
                    return False
                self._closing.wait(min(self._retry_s * 2 ** (attempt - 1), LONGEST_RETRY_S))
            try:
                self._logger.log(step, figures)
            except Exception as error:  # whatever a tracker's client may raise
                self._trouble = self._trouble or _said(error)
            else:
                return True
        return False


def _said(error: Exception) -> str:
    first = str(error).partition("\n")[0]
    return without_credentials(f"{type(error).__name__}: {first}")
