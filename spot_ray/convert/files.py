"""Files of a raw log: read whole and checked, their content hashed for the dataset's provenance."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
import numpy.typing as npt

from spot_ray.errors import DataError
from spot_ray.storage import uri as uris

AGAIN = "the file is cut or damaged: download and unpack it again"


class SourceHash:
    """A hash over the names and contents of the files that were read, in the order of reading."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self._num_files = 0

    def add(self, name: str, content: bytes) -> None:
        """Take in one file: its path within the source, and its bytes (or what stands for them)."""
        self._hash.update(f"{len(name)}:{name}{len(content)}:".encode())
        self._hash.update(content)
        self._num_files += 1

    @property
    def hexdigest(self) -> str | None:
        """The hash; None if no file was read through this module."""
        return self._hash.hexdigest() if self._num_files else None


_current: ContextVar[SourceHash | None] = ContextVar("source_hash", default=None)


@contextlib.contextmanager
def hashed_reading() -> Iterator[SourceHash]:
    """Hash every file that is read by this module's functions while the block runs."""
    token = _current.set(SourceHash())
    try:
        current = _current.get()
        assert current is not None
        yield current
    finally:
        _current.reset(token)


def record(name: str, content: bytes) -> None:
    """Add to the running hash what was read by other means, e.g. the footer of a Parquet file."""
    current = _current.get()
    if current is not None:
        current.add(name, content)


def inside(root: str, relative: str) -> str:
    """Return the URI of a file that a table or list of the log names.

    Raises:
        DataError: If the name leads out of the log's folder.
    """
    parts = relative.replace("\\", "/").split("/")
    if ".." in parts or relative.startswith(("/", "\\", "~")) or "://" in relative or ":" in parts[0]:
        raise DataError(
            f"the log names a file outside its folder: {relative!r}",
            where=root,
            expected="a path below the folder, without `..`",
            remedy="do not convert a log that you do not trust",
        )
    return uris.join(root, *parts)


def read_file(root: str, relative: str, what: str) -> bytes:
    """Return the content of a file of the log.

    Args:
        root: The log's folder.
        relative: The file, relative to it.
        what: What the file is, for messages: `point file`.

    Raises:
        DataError: If the file is missing or outside the folder.
    """
    where = inside(root, relative)
    if not uris.exists(where):
        raise DataError(
            f"the {what} is missing",
            where=where,
            expected="every file of the official release that the log refers to",
            remedy="download and unpack all of its archives",
        )
    content = uris.read_bytes(where)
    record(relative, content)
    return content


def read_json(root: str, relative: str, what: str) -> Any:
    """Return what a JSON file holds.

    Raises:
        DataError: If the file is missing, or no JSON.
    """
    content = read_file(root, relative, what)
    try:
        return json.loads(content)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"not valid JSON: {error}", where=inside(root, relative), remedy=AGAIN) from None


def read_text(root: str, relative: str, what: str) -> str:
    """Return what a text file holds.

    Raises:
        DataError: If the file is missing, or no UTF-8 text.
    """
    content = read_file(root, relative, what)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"not a text file: {error}", where=inside(root, relative), remedy=AGAIN) from None


def read_points(root: str, relative: str, columns: Sequence[str]) -> npt.NDArray[np.float32]:
    """Return the points of a raw float32 file, one row a point.

    Args:
        root: The log's folder.
        relative: The file, relative to it.
        columns: Names of the values of a point, in order.

    Returns:
        (N, number of columns) float32, N > 0, all finite.

    Raises:
        DataError: If the file is missing, empty or cut, or a value is not finite.
    """
    data = read_file(root, relative, "point file")
    where = inside(root, relative)
    width = 4 * len(columns)
    if not data:
        raise DataError("the point file is empty", where=where, expected=f"{width} bytes a point", remedy=AGAIN)
    if len(data) % width:
        raise DataError(
            f"the point file has {len(data)} bytes",
            where=where,
            expected=f"a multiple of {width}: {', '.join(columns)} as float32",
            remedy=AGAIN,
        )
    points = np.frombuffer(data, dtype="<f4").reshape(-1, len(columns))
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if len(bad):
        raise DataError(
            f"{len(bad)} of {len(points)} points are not finite, the first is point {bad[0]}: "
            f"{points[bad[0]].tolist()}",
            where=where,
            expected=f"finite {', '.join(columns)}",
            remedy=AGAIN,
        )
    return points


def read_labels(root: str, relative: str, dtype: npt.DTypeLike, num_points: int) -> npt.NDArray[Any]:
    """Return the labels of a raw file, one a point.

    Args:
        root: The log's folder.
        relative: The file, relative to it.
        dtype: Of one label in the file.
        num_points: Points of the sweep.

    Raises:
        DataError: If the file is missing or has another number of labels.
    """
    data = read_file(root, relative, "label file")
    size = np.dtype(dtype).itemsize
    if len(data) != size * num_points:
        raise DataError(
            f"{len(data) / size:g} labels for {num_points} points",
            where=inside(root, relative),
            expected=f"{size} bytes a point of the sweep",
            remedy="install the labels and the points of the same version again",
        )
    return np.frombuffer(data, dtype=dtype)
