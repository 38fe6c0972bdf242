"""One driver at a time works on a run's folder: a lease that is kept alive by a counter.

Who holds it writes `lease.json` anew every few seconds. Who comes later watches whether it still changes: no clocks of
two machines are compared, and a driver that was killed holds nothing for long. It works alike on a disk and in an
object store, whose reads follow its writes (S3 since 2020, GCS, Ceph).

What remains possible, since object stores have no locks that all of them share: of two drivers that start in the same
moment, each writes, waits a moment and reads back, and the one that was overwritten yields. Where a write takes longer
than that moment, both go on until the first notices at its next beat. So what is done under a lease has to bear being
done twice for some seconds: metrics are written anew from the last checkpoint on, and a checkpoint whose files were
mixed is passed over for its digests.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace

from spot_ray.config.load import from_json, to_json
from spot_ray.errors import ConfigError, DataError, SpotRayError, StoreError
from spot_ray.storage import uri as uris

LEASE_FILE = "lease.json"

_SETTLING_ON_DISK_S = 0.05
_SETTLING_IN_STORE_S = 1.0
"""How long after writing it is read back."""
_LOOKS = 20
"""Looks at another's lease within the patience."""
_log = logging.getLogger(__name__)


class LeaseLostError(SpotRayError):
    """Another driver has taken over the run."""


@dataclass(frozen=True)
class _Record:
    """What `lease.json` holds.

    Args:
        owner: Random; of this holding alone.
        beat: Grows while the holder lives.
        host: The holder's machine.
        pid: The holder's process.
        started: When it began, by its own clock.
    """

    owner: str
    beat: int
    host: str
    pid: int
    started: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.started}"


class Lease:
    """A run's folder, held. Made by :func:`hold`.

    Args:
        uri: The lease's file.
        own: What was written there.
        beat_s: Seconds between two beats.
    """

    def __init__(self, uri: str, own: _Record, *, beat_s: float) -> None:
        self.lost = threading.Event()
        """Set once another has taken the run."""
        self._uri = uri
        self._own = own
        self._beat_s = beat_s
        self._ended = threading.Event()
        self._taken_by = ""
        self._thread = threading.Thread(target=self._keep_alive, name="run-lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Make sure that the run is still ours; costs nothing, since a thread looks.

        Raises:
            LeaseLostError: If another has taken it.
        """
        if self.lost.is_set():
            raise LeaseLostError(
                f"another driver works on the run: {self._taken_by}",
                where=self._uri,
                expected="one driver at a time",
                remedy="leave the run to it; this one was silent for so long that it was taken for dead",
            )

    def end(self) -> None:
        """Stop the beat and remove the lease, if it is ours."""
        self._ended.set()
        self._thread.join()
        try:
            if self._is_ours():
                uris.remove_files([self._uri])
        except (SpotRayError, OSError) as error:
            _log.warning("the lease stays, and the next driver will wait for it to prove dead: %s", error)

    def _keep_alive(self) -> None:
        while not self._ended.wait(self._beat_s):
            try:
                if not self._is_ours():
                    self.lost.set()
                    return
                self._own = replace(self._own, beat=self._own.beat + 1)
                _write(self._uri, self._own)
            except (SpotRayError, OSError) as error:
                # A store that is away for a minute is no loss: whoever cannot see us cannot take the run either.
                _log.warning("cannot renew the lease, trying again in %.3g s: %s", self._beat_s, error)

    def _is_ours(self) -> bool:
        found = _parse(_read(self._uri), self._uri)
        if found is not None and found.owner == self._own.owner:
            return True
        self._taken_by = "it has ended since" if found is None else str(found)
        return False


@contextlib.contextmanager
def hold(run_uri: str, *, patience_s: float = 30.0, beat_s: float = 5.0) -> Iterator[Lease]:
    """Hold a run's folder while the block runs.

    Args:
        run_uri: The run's folder.
        patience_s: Seconds for which another's lease has to stay unchanged to be taken for a dead one's: several beats.
        beat_s: Seconds between two beats.

    Raises:
        ConfigError: If another driver works on the run.
        DataError: If the folder is not to be written to, or the store is away.
    """
    if patience_s <= beat_s:
        raise ValueError(f"a patience of {patience_s} s does not span a beat of {beat_s} s")
    uri = uris.join(uris.absolute(run_uri), LEASE_FILE)
    _wait_for_death(uri, patience_s)
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    own = _Record(uuid.uuid4().hex, 0, socket.gethostname(), os.getpid(), started)
    _write(uri, own)
    time.sleep(_SETTLING_ON_DISK_S if uris.is_local(uri) else _SETTLING_IN_STORE_S)
    found = _parse(_read(uri), uri)
    if found is None or found.owner != own.owner:
        raise _held_by(found, uri)
    lease = Lease(uri, own, beat_s=beat_s)
    try:
        yield lease
    finally:
        lease.end()


def _wait_for_death(uri: str, patience_s: float) -> None:
    """Return once no living driver holds a lease.

    Raises:
        ConfigError: If one does.
    """
    first = _read(uri)
    if first is None:
        return
    _log.warning("a driver holds the run, or died in it: watching for %.3g s whether it lives", patience_s)
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        time.sleep(patience_s / _LOOKS)
        content = _read(uri)
        if content is None:
            return
        if content != first:
            raise _held_by(_parse(content, uri), uri)


def _held_by(record: _Record | None, uri: str) -> ConfigError:
    return ConfigError(
        f"another driver works on the run: {'unknown' if record is None else record}",
        where=uri,
        expected="one driver at a time",
        remedy="wait until it ends, or end it; or choose another --out",
    )


def _write(uri: str, record: _Record) -> None:
    uris.write_bytes(uri, to_json(record).encode())


def _read(uri: str) -> bytes | None:
    try:
        return uris.read_bytes(uri)
    except StoreError:
        raise
    except DataError:
        if uris.exists(uri):
            raise
        return None


def _parse(content: bytes | None, uri: str) -> _Record | None:
    """Return what a lease says; None if there is none, or one that nobody of ours wrote."""
    if content is None:
        return None
    try:
        return from_json(_Record, content, where=uri)
    except ConfigError:
        return None
