"""Batches that a thread prepares ahead of the loop that uses them."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Self

from spot_ray.operators.batch import Batch

_LOOK_S = 0.2
"""Seconds after which a thread that waits looks whether it is still wanted."""


@dataclass(frozen=True)
class _End:
    """What follows the last batch.

    Args:
        error: What ended the batches, or None: their plan.
    """

    error: BaseException | None


@dataclass(frozen=True, eq=False)
class _Line:
    """What the thread and the loop share; the thread knows nothing else, so that an abandoned feed can go.

    Args:
        ready: Batches that wait for the loop.
        closed: Whether the loop wants no more.
    """

    ready: queue.Queue[Batch | _End]
    closed: threading.Event = field(default_factory=threading.Event)

    def put(self, item: Batch | _End) -> bool:
        """Wait for room, and tell whether the item is wanted."""
        while not self.closed.is_set():
            try:
                self.ready.put(item, timeout=_LOOK_S)
            except queue.Full:
                continue
            return True
        return False


class BatchFeed(Iterator[Batch]):
    """An iterator over batches that are unpacked ahead in a thread.

    Unpacking copies a batch out of the object store, 1 ms a sample, which is so done beside the training step. Close it
    where a loop leaves early, or use it as a context.

    Args:
        batches: Yields the batches; it is run, and closed, in the thread.
        depth: Most batches that are ready at a time.
    """

    def __init__(self, batches: Generator[Batch, None, None], *, depth: int) -> None:
        self._line = _Line(queue.Queue(maxsize=depth))
        self._thread = threading.Thread(target=_fill, args=(batches, self._line), name="spot-ray-feed", daemon=True)
        self._finalizer = weakref.finalize(self, _close, self._line, self._thread)
        self._thread.start()

    @property
    def num_ready(self) -> int:
        """Batches that are ready now; 0 all the time: the loop waits for data."""
        return self._line.ready.qsize()

    def __next__(self) -> Batch:
        """Return the next batch.

        Raises:
            SpotRayError: If a frame that is due cannot be read.
        """
        if self._line.closed.is_set():
            raise StopIteration
        item = self._line.ready.get()
        if isinstance(item, Batch):
            return item
        self.close()
        if item.error is not None:
            raise item.error
        raise StopIteration

    def close(self) -> None:
        """End the preparation of further batches; the iterator is at its end then."""
        self._finalizer()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()


def _fill(batches: Generator[Batch, None, None], line: _Line) -> None:
    error: BaseException | None = None
    try:
        for batch in batches:
            if not line.put(batch):
                break
    except BaseException as raised:
        error = raised
    finally:
        batches.close()
    line.put(_End(error))


def _close(line: _Line, thread: threading.Thread) -> None:
    line.closed.set()
    if thread is not threading.current_thread():
        thread.join()
