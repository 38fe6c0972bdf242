"""The folder of a cache: whole files that many processes read, locks, and notes that tell what a file is.

    files/KEY.parquet   a file, whole since it appeared; its time of access is when it was last opened
    files/KEY.part      one that is being fetched, as large as it will be
    files/KEY.json      the note of a file that is, or was, here
    locks/              what processes hold while they fetch or check a file, or make room; they end with a process

Who has a file open holds a shared lock on it, and nobody removes it then: an open file keeps its blocks, removed or
not, so that a limit on what is listed would be none on the disk.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import time
import weakref
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from spot_ray.errors import StoreError

_BESIDE_BYTES = 4096
"""Counted for a note: a block of the disk."""
_FORGET_S = 7 * 86_400
"""After which the note of a file that is here no more goes too."""
_HASHED_AT_ONCE = 2**22


@dataclass(frozen=True)
class Note:
    """What is known of a file.

    Args:
        uri: Whence it came.
        size: Its bytes.
        version: What the store said it was then.
        digest: Hexadecimal BLAKE2b of its bytes.
        stamps: Who has found the file to be right since, the last first.
    """

    uri: str
    size: int
    version: str
    digest: str
    stamps: tuple[str, ...]


class CachedFile:
    """A file of the cache that is open; it is not removed before :meth:`close`, or before it is collected.

    Args:
        pin: Its file descriptor, which holds the lock; closed with this object.
    """

    def __init__(self, pin: int) -> None:
        self._pin = pin
        self._unpin = weakref.finalize(self, os.close, pin)
        status = os.fstat(pin)
        os.utime(pin, ns=(time.time_ns(), status.st_mtime_ns))
        self.stat = status
        self.source = pa.OSFile(f"/proc/self/fd/{pin}")  # this file, whatever is at its path by now
        """To read from."""

    def digest(self) -> str:
        """Return the hexadecimal BLAKE2b of all of it."""
        digest, start = hashlib.blake2b(), 0
        while part := os.pread(self._pin, _HASHED_AT_ONCE, start):
            digest.update(part)
            start += len(part)
        return digest.hexdigest()

    def close(self) -> None:
        """Let go of it."""
        self.source.close()
        self._unpin()


class CacheFolder:
    """A cache's folder as one process sees it; threads may share it.

    Args:
        folder: Its absolute path.
        limit_bytes: Most that its files take.

    Raises:
        StoreError: If it cannot be made or written to; no frame is to blame. All methods raise it where the disk fails.
    """

    def __init__(self, folder: str, limit_bytes: int) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._files, self._locks = Path(folder, "files"), Path(folder, "locks")
        with self.failures_told("write"):
            for path in (self._files, self._locks):
                path.mkdir(parents=True, exist_ok=True)
                if not os.access(path, os.W_OK | os.X_OK):
                    raise PermissionError(errno.EACCES, "no permission to write")

    def holds(self, size: int) -> bool:
        """Tell whether a file of `size` bytes fits into the empty folder."""
        return size + _BESIDE_BYTES <= self._limit_bytes

    @contextlib.contextmanager
    def lock(self, key: str, *, wait: bool = True) -> Iterator[bool]:
        """Hold a file's lock against threads and processes; yield whether it is held."""
        # One of 4096 locks, which stay: a lock that somebody may be waiting for cannot be removed safely.
        with self._lock(key[:3], wait=wait) as held:
            yield held

    def pin(self, key: str) -> CachedFile | None:
        """Open a file so that it stays, and have it count as used; None if it is not there."""
        with self.failures_told("read"):
            while True:
                try:
                    pin = os.open(self._path(key), os.O_RDONLY)
                except FileNotFoundError:
                    return None
                file = _pinned(pin)
                if file.stat.st_nlink:
                    return file
                file.close()  # it was removed before it was locked

    def remove(self, key: str) -> None:
        """Remove a file; its lock is held, and who has it open reads on."""
        with self.failures_told("remove a file"):
            self._path(key).unlink(missing_ok=True)

    def read_note(self, key: str) -> Note | None:
        """Return a file's note; None if there is none, or a crash has torn it: then nothing is known of the file."""
        with self.failures_told("read"):
            try:
                values = json.loads(self._path(key, ".json").read_bytes())
                return Note(**values | {"stamps": tuple(values["stamps"])})
            except FileNotFoundError:
                return None
            except (ValueError, TypeError, KeyError):
                return None

    def write_note(self, key: str, note: Note) -> None:
        """Write a file's note, whose lock is held."""
        with self.failures_told("write"):
            aside = self._path(key, ".json~")
            aside.write_text(json.dumps(asdict(note)))
            aside.replace(self._path(key, ".json"))

    def reserve(self, key: str, size: int) -> tuple[Path | None, int]:
        """Make a file of `size` bytes to be filled, whose lock is held, if there is room.

        Room is made by removing what nobody has open, least recently used first.

        Returns:
            The file, or None if there is no room, and how many others were removed.
        """
        part = self._path(key, ".part")
        if not self.holds(size):
            return None, 0
        with self._lock("room"), self.failures_told("write"):
            has_room, removed = self._make_room(key, size + _BESIDE_BYTES)
            if not has_room:
                return None, 0
            file = os.open(part, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o666)
            try:
                if size:
                    os.posix_fallocate(file, 0, size)
            except OSError:
                part.unlink()
                raise
            finally:
                os.close(file)
        return part, removed

    def fill(self, file: int, data: bytes, start: int) -> None:
        """Write bytes into a file that was reserved and opened, at a place in it."""
        with self.failures_told("write"):
            left = memoryview(data)
            while left:
                written = os.pwrite(file, left, start)
                left, start = left[written:], start + written

    def show(self, key: str, part: Path) -> CachedFile:
        """Make a reserved file that was filled visible, and open it; its lock is held."""
        with self.failures_told("write"):
            file = _pinned(os.open(part, os.O_RDONLY))  # first, or it might be removed before it is used
            part.replace(self._path(key))  # not synced: after a crash, its digest tells
        return file

    @contextlib.contextmanager
    def failures_told(self, doing: str) -> Iterator[None]:
        """Turn failures of the disk into the user's error."""
        try:
            yield
        except OSError as error:
            why = os.strerror(error.errno).lower() if error.errno else str(error)
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise StoreError(
                f"cannot {doing} in the cache folder {self._folder}: {why}",
                where="--cache-dir",
                remedy=f"free room for {self._limit_bytes:,} bytes in all, or lower --cache-limit"
                if full
                else "give a folder on a local disk that may be written to",
            ) from None

    def _make_room(self, key: str, needed: int) -> tuple[bool, int]:
        """Remove what is in the way, if that will do; tell whether it did, and how many files went."""
        # What is being fetched comes first: if it is finished meanwhile, it is found under its other name.
        parts = self._others(key, ".part")
        parts = {other: status for other, status in parts.items() if not self._remove_abandoned(other)}
        whole, notes = self._others(key, ".parquet"), self._others(key, ".json")
        for other, status in notes.items():
            if other not in whole and status.st_mtime < time.time() - _FORGET_S:
                self._path(other, ".json").unlink(missing_ok=True)
        used = sum(status.st_size for status in (parts | whole).values())
        used += _BESIDE_BYTES * len(notes.keys() | whole.keys() | parts.keys())
        with contextlib.ExitStack() as held:
            victims = []
            for other in sorted(whole, key=lambda other: whole[other].st_atime_ns):
                if used + needed <= self._limit_bytes:
                    break
                if held.enter_context(self._unused(other)):
                    used -= whole[other].st_size
                    victims.append(other)
            if used + needed > self._limit_bytes:
                return False, 0
            for other in victims:
                self._path(other).unlink(missing_ok=True)
        return True, len(victims)

    def _others(self, key: str, kind: str) -> dict[str, os.stat_result]:
        found = {}
        for path in self._files.glob(f"*{kind}"):
            with contextlib.suppress(FileNotFoundError):
                found[path.name.removesuffix(kind)] = path.stat()
        found.pop(key, None)
        return found

    def _remove_abandoned(self, key: str) -> bool:
        """Remove what a killed process has left, and tell whether it is gone: not if somebody is at it."""
        with self.lock(key, wait=False) as free:
            if free:
                self._path(key, ".part").unlink(missing_ok=True)
            return free

    @contextlib.contextmanager
    def _unused(self, key: str) -> Iterator[bool]:
        """Yield whether nobody has a file open, and see to it that nobody does."""
        try:
            file = os.open(self._path(key), os.O_RDONLY)
        except FileNotFoundError:
            yield True
            return
        try:
            yield _locked(file, wait=False)
        finally:
            os.close(file)

    @contextlib.contextmanager
    def _lock(self, name: str, *, wait: bool = True) -> Iterator[bool]:
        with self.failures_told("lock a file"):
            file = os.open(self._locks / name, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            with self.failures_told("lock a file"):
                held = _locked(file, wait=wait)
            yield held
        finally:
            os.close(file)

    def _path(self, key: str, kind: str = ".parquet") -> Path:
        return self._files / f"{key}{kind}"


def _locked(file: int, *, wait: bool) -> bool:
    """Take the only lock on a file, or tell that there are others."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _pinned(file: int) -> CachedFile:
    try:
        fcntl.flock(file, fcntl.LOCK_SH)
    except BaseException:
        os.close(file)
        raise
    return CachedFile(file)
