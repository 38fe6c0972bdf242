"""Counts what a store would be asked for by whatever is read through :mod:`spot_ray.storage.uri` in a block.

Of local files the same is counted as of a bucket's: that is how a sample of a log on a disk tells what the whole of it
costs in a bucket.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import pyarrow as pa
from pyarrow import fs as pafs

from spot_ray.estimate import Requests


class Meter:
    """What was read and asked for so far."""

    def __init__(self) -> None:
        self.bytes_read = 0
        self.requests = Requests()

    def got(self, num_bytes: int) -> None:
        """Count a GET that gave so many bytes."""
        self.bytes_read += num_bytes
        self.requests += Requests(num_get=1)

    def asked(self, requests: Requests) -> None:
        """Count requests that give no bytes of files."""
        self.requests += requests


_current: ContextVar[Meter | None] = ContextVar("meter", default=None)


@contextlib.contextmanager
def metered() -> Iterator[Meter]:
    """Count while the block runs, in this thread."""
    meter = Meter()
    token = _current.set(meter)
    try:
        yield meter
    finally:
        _current.reset(token)


def current_meter() -> Meter | None:
    """Return what counts now, None: nothing does."""
    return _current.get()


def with_meter(system: pafs.FileSystem, meter: Meter) -> pafs.FileSystem:
    """Return a file system that counts what is read from another."""
    return pafs.PyFileSystem(_MeteredHandler(system, meter))


class _MeteredHandler(pafs.FileSystemHandler):
    """A file system of pyarrow behind a meter.

    Args:
        system: What does it.
        meter: What counts.
    """

    def __init__(self, system: pafs.FileSystem, meter: Meter) -> None:
        self._system = system
        self._meter = meter

    def get_type_name(self) -> str:
        return f"metered+{self._system.type_name}"

    def normalize_path(self, path: str) -> str:
        return str(self._system.normalize_path(path))

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        self._meter.asked(Requests(num_get=len(paths)))
        return list(self._system.get_file_info(paths))

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        self._meter.asked(Requests(num_list=1))
        return list(self._system.get_file_info(selector))

    def open_input_file(self, path: str) -> pa.NativeFile:
        self._meter.asked(Requests(num_get=1))
        return pa.PythonFile(_MeteredFile(self._system.open_input_file(path), self._meter), mode="r")

    def open_input_stream(self, path: str) -> pa.NativeFile:
        self._meter.asked(Requests(num_get=1))
        stream = self._system.open_input_stream(path, compression=None)
        return pa.PythonFile(_MeteredFile(stream, self._meter), mode="r")

    def create_dir(self, path: str, recursive: bool) -> None:
        self._system.create_dir(path, recursive=recursive)

    def delete_dir(self, path: str) -> None:
        self._system.delete_dir(path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self._system.delete_dir_contents(path, missing_dir_ok=missing_dir_ok)

    def delete_root_dir_contents(self) -> None:
        self._system.delete_dir_contents("/", accept_root_dir=True)

    def delete_file(self, path: str) -> None:
        self._system.delete_file(path)

    def move(self, source: str, target: str) -> None:
        self._system.move(source, target)

    def copy_file(self, source: str, target: str) -> None:
        self._system.copy_file(source, target)

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        return self._system.open_output_stream(path, metadata=metadata)

    def open_append_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        return self._system.open_append_stream(path, metadata=metadata)


class _MeteredFile:
    """A file, or a stream, behind a meter: what `pyarrow.PythonFile` asks of one.

    Args:
        file: It.
        meter: What counts.
    """

    def __init__(self, file: pa.NativeFile, meter: Meter) -> None:
        self._file = file
        self._meter = meter

    @property
    def closed(self) -> bool:
        return bool(self._file.closed)

    def read(self, size: int | None = None) -> bytes:
        content = bytes(self._file.read(size))
        self._meter.got(len(content))
        return content

    def seek(self, position: int, whence: int = 0) -> int:
        return int(self._file.seek(position, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self._file.close()
