"""Try again, for some minutes and with growing pauses, what a store that is away may answer later."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from spot_ray.errors import DataError, StoreError
from spot_ray.storage import uri as uris

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Patience:
    """How long to try again.

    Args:
        total_s: Seconds after the first attempt's beginning in which another one may begin.
        first_pause_s: Pause after the first attempt; each is twice as long as the one before.
        longest_pause_s: Longest pause.
    """

    total_s: float = 300.0
    first_pause_s: float = 1.0
    longest_pause_s: float = 30.0


MINUTES = Patience()
"""What a run of hours has for its store."""


def try_patiently(
    work: Callable[[], T],
    *,
    doing: str,
    where: str,
    patience: Patience = MINUTES,
    give_up: threading.Event | None = None,
) -> T:
    """Return what `work` does; where a store or a disk fails it, try it again and log that.

    The client of a store tries each request several times before it fails (:mod:`spot_ray.storage.s3`), which takes it
    seconds where it is refused, and minutes where nothing answers: this is what comes after that. What a local path
    forbids (no permission, no space left) is not tried again.

    Args:
        work: What to do; it may be done in part already.
        doing: What that is, for messages: "write the checkpoint".
        where: The URI, for messages.
        patience: How long.
        give_up: Set from another thread: the error is told at the next pause; or None.

    Raises:
        StoreError: If the store or disk goes on failing.
        DataError: If it is a local path that forbids it.
    """
    give_up = threading.Event() if give_up is None else give_up
    began = time.monotonic()
    for attempt in itertools.count():
        try:
            return work()
        except (DataError, OSError) as error:
            if isinstance(error, DataError) and not isinstance(error, StoreError) and uris.is_local(where):
                raise
            pause = min(patience.first_pause_s * 2**attempt, patience.longest_pause_s)
            waited = time.monotonic() - began
            what = error.what if isinstance(error, DataError) else str(error)
            if waited + pause <= patience.total_s:
                _log.warning("cannot %s %s, trying again in %.3g s: %s", doing, where, pause, what)
                if not give_up.wait(pause):
                    continue
            tried = f"tried {attempt + 1} times in {waited:.0f} s"
            raise StoreError(
                f"cannot {doing}: {what} ({tried})",
                where=where,
                expected=error.expected if isinstance(error, DataError) else "",
                remedy="when the store answers again, go on with the run by --resume",
            ) from None
    raise AssertionError("unreachable")
