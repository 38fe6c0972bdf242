"""Shards of a bucket on the local disk, shared by all processes of a machine, so that no epoch reads the bucket again.

How large should it be? The first epoch brings every shard that the machine touches, whole; the later ones read the
disk. That holds if the limit is above the size of what the run uses: the shards of the dataset, or of its subset, and
of the label set. Frames are dealt out to all machines anew in each epoch, so each machine comes to need all of them:
full Waymo, 158 k frames of 180 k points, is 0.2 TB on every machine.

Where it does not hold, a cache is of little use. Least recently used is a poor rule for what every epoch visits once,
in an order drawn anew: of shards of which a share f fits, f + (1 - f) ln(1 - f) would be found again: 1 % at 0.15, 15 %
at a half, 67 % at nine tenths; and what is not found would be fetched whole each time, 200 frames for the sake of one.
So no run fetches a shard twice: one that it had, and that was evicted, it reads from the store, frame by frame, as
without a cache. What is left then stays, and a share of nearly f is found in every later epoch. But the first epoch
still fetches whole shards, on every machine. So for 500 TB in a bucket and 4 TB of disk, either

- train on a subset that fits (`spot-ray subset`), and give the cache its size and a tenth more, or
- let no cache be: reading single frames from the store asks for little more than their bytes.

:class:`Traffic` tells: after the first epoch, `bytes_from_store`, `evictions` and `direct` should stay where they are.

What is on the disk is as the store has it and as it was written. A process that opens a file that this run has not
looked at on this machine asks the store for size and ETag, and compares the bytes with their BLAKE2b digest; that it
did so is written beside the file, and the others go by it. Whole files appear at once, by renaming, and nothing else is
ever read: a process may be killed at any time.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import threading
import uuid
import warnings
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from spot_ray.errors import ConfigError, DataError
from spot_ray.storage import uri as uris
from spot_ray.storage.cache_folder import CachedFile, CacheFolder, Note
from spot_ray.storage.download import RemoteFile

_UNITS = {"B": 1} | {
    f"{letter}{unit}": base**power
    for unit, base in (("B", 1000), ("iB", 1024))
    for power, letter in enumerate("KMGTP", start=1)
}
_STAMPS = 16
"""Runs that a note remembers: so many may share a machine without checking again for each other."""
_ATTEMPTS = 3
"""Of fetching a file that is written again meanwhile."""


def parse_size(text: str) -> int:
    """Return the bytes of a size such as `200GB` (10^9) or `1.5TiB` (2^40); a bare number is bytes.

    Raises:
        ConfigError: If it is none.
    """
    factors = {unit.lower(): factor for unit, factor in _UNITS.items()} | {"": 1}
    match = re.fullmatch(r"(\d+)(?:\.(\d+))? ?([a-z]*)", text.strip().lower(), re.ASCII)
    factor = factors.get(match[3]) if match else None
    if match is None or factor is None or (match[2] and factor == 1):
        raise ConfigError(f"{text!r} is no size", expected=f"a number with one of {', '.join(_UNITS)}, such as 200GB")
    part = match[2] or ""
    return int(match[1] + part) * factor // 10 ** len(part)  # in whole numbers: floats are off by some bytes


@dataclass(frozen=True)
class CacheConfig:
    """Where shards are kept on the machines that read them.

    Give one object to all readers of a run, in all its epochs: for each new one, every file is looked at again.

    Args:
        dir: Folder on a local disk; each machine has its own under this name. Several runs may share it.
        limit_bytes: Most that its files take.
        run: Names the run. What a run has once found to be right on a machine, it goes by: files that are written again
            in the store meanwhile are fetched anew by the next run.

    Raises:
        ConfigError: If the folder is not local or the limit not positive.
    """

    dir: str
    limit_bytes: int
    run: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        """Check."""
        if not self.dir or not uris.is_local(self.dir):
            raise ConfigError(f"the cache folder is {self.dir!r}", expected="a folder on a local disk")
        if self.limit_bytes < 1:
            raise ConfigError(f"the cache limit is {self.limit_bytes} bytes", expected="at least 1")
        object.__setattr__(self, "dir", uris.absolute(self.dir))  # processes elsewhere have another working folder


@dataclass(frozen=True)
class Traffic:
    """What readers have moved; add up those of all processes.

    Args:
        requests: Asked of the store on the cache's behalf, repetitions by the store's client not counted.
        bytes_from_store: Fetched into the cache.
        bytes_from_cache: Column data read from files of the cache, as compressed there.
        bytes_direct: Column data read from remote files without the cache, as compressed there. The store gives more:
            footers, and gaps between columns that are cheaper read than left out. In how many requests, its client does
            not tell.
        hits: Openings of files that were there; one that stays open is opened once.
        misses: Openings that fetched a file.
        direct: Openings past a cache: of files that are larger than it, for which all of it is in use, or that this run
            has already fetched and lost again.
        evictions: Files removed for others.
        refetches: Files thrown away because their bytes were not what had been written.
    """

    requests: int = 0
    bytes_from_store: int = 0
    bytes_from_cache: int = 0
    bytes_direct: int = 0
    hits: int = 0
    misses: int = 0
    direct: int = 0
    evictions: int = 0
    refetches: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        """Return the sum."""
        return Traffic(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: Traffic) -> Traffic:
        """Return what came after `other`, an earlier state."""
        return Traffic(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))


class ShardCache:
    """The cache of one machine, as one process sees it; threads may share it.

    Args:
        config: Where it is and what it may hold.

    Raises:
        StoreError: If its folder cannot be made or written to.
    """

    def __init__(self, config: CacheConfig) -> None:
        self._config = config
        self._folder = CacheFolder(config.dir, config.limit_bytes)
        self._traffic = Traffic()
        self._guard = threading.Lock()
        self._right: dict[str, str] = {}
        self._passed_over: set[str] = set()

    @property
    def traffic(self) -> Traffic:
        """What this object has moved so far; `bytes_from_cache` and `bytes_direct` are for who reads to count."""
        return self._traffic

    def open(self, uri: str) -> CachedFile | None:
        """Open a file of a store, fetching it first if it is not here; None if it is to be read from the store.

        Room is made by removing what nobody has open, least recently opened first. Of processes that ask for one file
        at one time, one fetches it and the others wait. None is for what is larger than the cache, finds all of it in
        use, or has had to give way in this run.

        Args:
            uri: The file.

        Raises:
            FileNotFoundError: If the store has no such file.
            StoreError: If the store fails, the folder cannot be written to, or its disk is full.
            DataError: If the store cannot tell one writing of the file from the next.
        """
        key = _key(uri)
        if key in self._passed_over:
            self._count(direct=1)
            return None
        file = self._open_known(key)
        if file is None:
            with self._folder.lock(key):
                file = self._open_known(key)  # another process may have been first
                if file is None:
                    return self._fetch_or_check(key, uri)
        self._count(hits=1)
        return file

    def doubt(self, uri: str) -> bool:
        """Have a file compared with its digest when it is next opened, whoever has done so before.

        Returns:
            Whether it is here.
        """
        key = _key(uri)
        self._right.pop(key, None)
        with self._folder.lock(key):
            file, note = self._folder.pin(key), self._folder.read_note(key)
            if file is None:
                return False
            file.close()
            if note is not None:
                self._folder.write_note(key, replace(note, stamps=()))
            return True

    def _open_known(self, key: str) -> CachedFile | None:
        """Open a file that this run has found to be right since the machine started, and nobody has touched since."""
        file = self._folder.pin(key)
        if file is None:
            return None
        stamp = self._stamp(file)
        if self._right.get(key) == stamp:
            return file
        note = self._folder.read_note(key)
        if note is not None and stamp in note.stamps:
            self._right[key] = stamp
            return file
        file.close()
        return None

    def _fetch_or_check(self, key: str, uri: str) -> CachedFile | None:
        file, note = self._folder.pin(key), self._folder.read_note(key)
        if file is None and note is not None and any(stamp.startswith(f"{self._config.run} ") for stamp in note.stamps):
            self._passed_over.add(key)
            self._count(direct=1)
            return None
        remote = self._look(uri)
        if file is not None:
            if note is not None and (note.size, note.version) == (remote.size, remote.version):
                if self._is_right(file, note):
                    stamps = (self._stamp(file), *note.stamps)[:_STAMPS]
                    self._folder.write_note(key, replace(note, stamps=stamps))
                    self._count(hits=1)
                    return file
                self._tell_damage(uri)
            file.close()
            self._folder.remove(key)
        return self._fetch(key, remote)

    def _fetch(self, key: str, remote: RemoteFile) -> CachedFile | None:
        for _ in range(_ATTEMPTS):
            part, evicted = self._folder.reserve(key, remote.size)
            self._count(evictions=evicted)
            if part is None:
                if not self._folder.holds(remote.size):  # so that the next need not ask the store
                    self._folder.write_note(key, Note(remote.uri, remote.size, remote.version, "", (self._stamp(),)))
                self._count(direct=1)
                return None
            try:
                digest = self._fill(part, remote)
                now = self._look(remote.uri)
                if now.is_same(remote):
                    file = self._folder.show(key, part)
                    note = Note(remote.uri, remote.size, remote.version, digest, (self._stamp(file),))
                    self._folder.write_note(key, note)
                    self._count(misses=1)
                    return file
                remote = now
            finally:
                part.unlink(missing_ok=True)
        raise DataError(
            "the file is written again and again while it is read",
            where=remote.uri,
            remedy="train on it when it is finished",
        )

    def _look(self, uri: str) -> RemoteFile:
        self._count(requests=1)
        return RemoteFile(uri)

    def _fill(self, part: Path, remote: RemoteFile) -> str:
        with self._folder.failures_told("write"):
            file = os.open(part, os.O_WRONLY)
        try:
            self._count(requests=remote.num_ranges, bytes_from_store=remote.size)
            return remote.copy(functools.partial(self._folder.fill, file))
        finally:
            os.close(file)

    def _is_right(self, file: CachedFile, note: Note) -> bool:
        with self._folder.failures_told("read"):
            return file.stat.st_size == note.size and file.digest() == note.digest

    def _tell_damage(self, uri: str) -> None:
        self._count(refetches=1)
        warnings.warn(
            f"the copy of {uri} in {self._config.dir} is damaged and is fetched again; if this recurs, so is the disk",
            RuntimeWarning,
            stacklevel=2,
        )

    def _stamp(self, file: CachedFile | None = None) -> str:
        """Return who found a file to be right, and how to tell that it is still that one; or that it is not here."""
        if file is None:
            return f"{self._config.run} not here"
        status = file.stat
        return f"{self._config.run} {_boot()} {status.st_ino} {status.st_size} {status.st_mtime_ns}"

    def _count(self, **more: int) -> None:
        with self._guard:
            self._traffic += Traffic(**more)


def _key(uri: str) -> str:
    return hashlib.blake2b(uri.encode(), digest_size=16).hexdigest()


@functools.cache
def _boot() -> str:
    """Return what is another after a restart: a crash may tear what was not yet on the disk, unseen by its times."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
