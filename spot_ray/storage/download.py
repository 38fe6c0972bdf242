"""Objects of a store, fetched whole: ranges side by side, hashed in order while they are written."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from spot_ray.errors import DataError, StoreError
from spot_ray.storage import uri as uris

RANGE_BYTES = 8 * 2**20
STREAMS = 8
"""Ranges that are fetched at a time: Amazon calls 8 or 16 MB usual for a range, and a connection to a distant store is
slower than a disk. A server on loopback gave 330 MB/s to one and 450 to eight (2026-11-23). They are all the memory
that a download takes, 64 MiB."""

_VERSIONS = ("ETag", "etag", "generation", "md5Hash", "LastModified", "mtime", "created")
"""What stores call that which changes when an object is written again; the first that there is counts."""


class RemoteFile:
    """An object as the store has it now; making one asks the store once.

    Args:
        uri: The object.

    Attributes:
        size: Its bytes.
        version: What is another when the object was written again.

    Raises:
        FileNotFoundError: If there is none.
        StoreError: If the store cannot be reached or does not let us in.
        DataError: If it does not tell one writing of an object from the next.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        system, path = uris.filesystem(uri)
        with uris.failures_told("read the file", uri):
            file = system.open_input_file(path) if uris.is_read_by_arrow(uri) else None
            told: dict[str, Any] = {} if file is None else file.metadata()
            if file is None or "ETag" not in told:  # not Arrow's own client
                remote = system.handler.fs
                told = remote.info(path)
                self._read: Callable[[int, int], bytes] = lambda start, end: remote.cat_file(path, start=start, end=end)
                self.size = int(told["size"])
            else:
                self._read = lambda start, end: file.read_at(end - start, start)
                self.size = int(file.size())
        self.version = next((_text(told[name]) for name in _VERSIONS if told.get(name)), "")
        if not self.version:
            raise DataError(
                "the store does not say which writing of the file this is, so no copy of it can be kept",
                where=uri,
                remedy="read it without a cache",
            )

    def is_same(self, other: RemoteFile) -> bool:
        """Tell whether nobody wrote the object between two looks at it."""
        return (self.size, self.version) == (other.size, other.version)

    @property
    def num_ranges(self) -> int:
        """How many ranges :meth:`copy` asks for."""
        return -(-self.size // RANGE_BYTES)

    def copy(self, write: Callable[[bytes, int], object]) -> str:
        """Fetch all of it and return the hexadecimal BLAKE2b digest of what came.

        Args:
            write: Called with bytes and the place that they belong at, in ascending order.

        Raises:
            StoreError: If the store fails, or gives less than it has.
        """
        digest = hashlib.blake2b()
        starts = deque(range(0, self.size, RANGE_BYTES))
        running: deque[tuple[int, Future[bytes]]] = deque()
        pool = ThreadPoolExecutor(STREAMS)
        try:
            while starts or running:
                while starts and len(running) < STREAMS:
                    start = starts.popleft()
                    running.append((start, pool.submit(self._range, start, min(start + RANGE_BYTES, self.size))))
                start, future = running.popleft()
                part = future.result()
                digest.update(part)
                write(part, start)
        finally:
            pool.shutdown(cancel_futures=True)
        return digest.hexdigest()

    def _range(self, start: int, end: int) -> bytes:
        with uris.failures_told("read the file", self.uri):
            part = self._read(start, end)
        if len(part) != end - start:
            raise StoreError(f"the store gave {len(part)} of the {end - start} bytes from {start} on", where=self.uri)
        return part


def _text(value: object) -> str:
    return (value.decode() if isinstance(value, bytes) else str(value)).strip('"')
