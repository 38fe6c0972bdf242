"""Component files of the Waymo Open Dataset v2: small ones read whole, range images streamed frame by frame.

The official files promise no order of rows, nor small row groups: a whole segment of range images may be one row group
of a gigabyte. So keys are read first, then the heavy columns flow through a bounded buffer, row by row.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from spot_ray.convert import files
from spot_ray.convert.files import AGAIN
from spot_ray.errors import DataError
from spot_ray.storage import uri as uris

TIME = "key.frame_timestamp_micros"
LASER = "key.laser_name"
OBJECT = "key.laser_object_id"

Check = Any
"""A function of an Arrow type, as :mod:`pyarrow.types` has them."""

_MAGIC = b"PAR1"
_BUFFER_BYTES = 4 << 20
"""Read from a column at a time: large enough for object stores, small beside a frame."""

_MAX_WAITING_ROWS = 60
"""Rows kept until their frame is due: 12 frames of all lasers, some 250 MB."""


def is_floats(kind: pa.DataType) -> bool:
    """Tell whether an Arrow type is a list of floating-point numbers, of fixed length or not."""
    return _is_list(kind) and pa.types.is_floating(kind.value_type)


def is_integers(kind: pa.DataType) -> bool:
    """Tell whether an Arrow type is a list of whole numbers, of fixed length or not."""
    return _is_list(kind) and pa.types.is_integer(kind.value_type)


def is_text(kind: pa.DataType) -> bool:
    """Tell whether an Arrow type is one of strings."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


class ComponentFile:
    """An opened `<component>/<segment>.parquet`. Its size and footer stand for its content in the hash of the source.

    Args:
        root: The folder of the log.
        relative: The file, relative to it.
        columns: The columns that are needed, each with what its type must be.

    Raises:
        DataError: If the file is missing or no Parquet, or lacks a column or has one of another type.
    """

    def __init__(self, root: str, relative: str, columns: Mapping[str, Check]) -> None:
        self.where = files.inside(root, relative)
        system, path = uris.filesystem(self.where)
        with uris.refusals_told("read the file", self.where):
            self._source = system.open_input_file(path)
        size = self._source.size()
        tail = self._source.read_at(min(size, 8), max(size - 8, 0))
        if size < 12 or tail[4:] != _MAGIC:
            raise DataError(
                f"no Parquet file: {size} bytes" if size else "the file is empty",
                where=self.where,
                expected="a file that ends in a Parquet footer",
                remedy=AGAIN,
            )
        footer = int.from_bytes(tail[:4], "little") + 8
        files.record(relative, f"{size}:".encode() + self._source.read_at(min(footer, size), max(size - footer, 0)))
        with self._damage_told():
            self._file = pq.ParquetFile(self._source, pre_buffer=False, buffer_size=_BUFFER_BYTES)
            self.schema: pa.Schema = self._file.schema_arrow
        for name, check in columns.items():
            self._check_column(name, check)

    def has(self, column: str) -> bool:
        """Tell whether the file has a column."""
        return column in self.schema.names

    def row(self, number: int) -> str:
        """Return where a row is, for messages."""
        return f"{self.where}, row {number}"

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Return whole columns, for those that are small.

        Raises:
            DataError: If the file is damaged.
        """
        with self._damage_told():
            return self._file.read(columns=list(columns), use_threads=False)

    def integers(self, column: str) -> npt.NDArray[np.int64]:
        """Return a column of whole numbers.

        Raises:
            DataError: If the file is damaged or a value is null.
        """
        return required(self, self.read([column]), column).astype(np.int64)

    def batches(self, columns: Sequence[str]) -> Generator[pa.RecordBatch, None, None]:
        """Yield rows in the order of the file, decoded as they come.

        Raises:
            DataError: If the file is damaged.
        """
        with self._damage_told():
            yield from self._file.iter_batches(batch_size=1, columns=list(columns), use_threads=False)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        self._source.close()

    def _check_column(self, name: str, check: Check) -> None:
        if not self.has(name):
            raise DataError(
                f"the file has no column {name!r}",
                where=self.where,
                expected="the columns of the official component",
                remedy=AGAIN,
            )
        kind = self.schema.field(name).type
        if not check(kind):
            raise DataError(f"column {name!r} is of type {kind}", where=self.where, expected="the official type")

    @contextlib.contextmanager
    def _damage_told(self) -> Iterator[None]:
        try:
            with uris.failures_told("read the file", self.where):
                yield
        except pa.ArrowException as error:
            raise self._damaged(error) from None
        except OSError as error:
            # Arrow reports bytes that do not decode as an OSError without a number; those of file systems have one.
            if error.errno is not None:
                raise
            raise self._damaged(error) from None

    def _damaged(self, error: Exception) -> DataError:
        return DataError(f"the file cannot be read: {error}", where=self.where, remedy=AGAIN)


def required(file: ComponentFile, table: pa.Table, column: str) -> npt.NDArray[Any]:
    """Return a column of numbers or strings.

    Raises:
        DataError: If a value is null.
    """
    values = table[column]
    if values.null_count:
        number = int(np.flatnonzero(values.is_null().to_numpy())[0])
        raise DataError(f"column {column!r} is null", where=file.row(number), expected="a value in every row")
    return np.asarray(values.to_numpy())


@dataclass(frozen=True, eq=False)
class Row:
    """One row of a streamed component.

    Args:
        laser: Its `key.laser_name`.
        where: The file and row.
        values: A batch that holds the row alone.
    """

    laser: int
    where: str
    values: pa.RecordBatch

    def image(self, prefix: str, channels: int, dtype: type[np.generic]) -> npt.NDArray[Any] | None:
        """Return the range image of the columns `PREFIX.values` and `PREFIX.shape`; None if it is null.

        Raises:
            DataError: If the number of values does not fit the shape, or the shape is not (H, W, channels).
        """
        values = self.values.column(f"{prefix}.values").flatten()
        if not len(values):
            return None
        shape = self.values.column(f"{prefix}.shape").flatten().to_pylist()
        if len(shape) != 3 or None in shape or shape[2] != channels or min(shape) < 1 or len(values) != np.prod(shape):
            raise DataError(
                f"{prefix} has {len(values)} values and the shape {shape}",
                where=self.where,
                expected=f"H × W × {channels} values and their shape",
            )
        if values.null_count:
            raise DataError(f"{prefix}.values holds nulls", where=self.where, expected="numbers")
        return values.to_numpy(zero_copy_only=True).astype(dtype, copy=False).reshape(shape)


class FrameRows:
    """The rows of a component with a laser and range images, frame by frame.

    Rows that come before their frame is due wait in memory, up to `_MAX_WAITING_ROWS`. Files that are sorted by laser
    and only then by time are read once for each laser, side by side.

    Args:
        file: The component.
        columns: The heavy columns.

    Raises:
        DataError: If the rows are in no such order, or a key is null.
    """

    def __init__(self, file: ComponentFile, columns: Sequence[str]) -> None:
        self._file = file
        self._columns = columns
        times, self._lasers = file.integers(TIME), file.integers(LASER)
        self._rows_of: dict[int, list[int]] = {}
        for row, time in enumerate(times.tolist()):
            self._rows_of.setdefault(time, []).append(row)
        whole = np.arange(len(times))
        passes = [whole]
        if _max_waiting(times, whole) > _MAX_WAITING_ROWS:
            passes = [np.flatnonzero(self._lasers == laser) for laser in np.unique(self._lasers)]
            if sum(_max_waiting(times, rows) for rows in passes) > _MAX_WAITING_ROWS:
                raise DataError(
                    "the rows of a frame lie too far apart to be read in bounded memory",
                    where=file.where,
                    expected="rows in the order of time, of all lasers or laser by laser",
                    remedy=f"sort the file by {TIME}",
                )
        self._pass_of = np.zeros(len(times), np.intp)
        for number, rows in enumerate(passes):
            self._pass_of[rows] = number
        self._passes = [self._read(number) for number in range(len(passes))]
        self._waiting: dict[int, Row] = {}

    @property
    def times(self) -> set[int]:
        """The timestamps that the component has rows of."""
        return set(self._rows_of)

    def take(self, time: int) -> list[Row]:
        """Return the rows of a frame; frames must be taken in time order.

        Raises:
            DataError: If the file is damaged.
        """
        return [self._take_row(row) for row in self._rows_of.pop(time, ())]

    def close(self) -> None:
        """Let go of the rows that wait and of the decoders' buffers, some 50 MB, which a cycle would keep for long."""
        for rows in self._passes:
            rows.close()
        self._waiting.clear()

    def _take_row(self, number: int) -> Row:
        while number not in self._waiting:
            read, row = next(self._passes[self._pass_of[number]])
            self._waiting[read] = row
        return self._waiting.pop(number)

    def _read(self, number: int) -> Generator[tuple[int, Row], None, None]:
        with contextlib.closing(self._file.batches(self._columns)) as batches:
            for row, batch in enumerate(batches):
                if self._pass_of[row] == number:
                    yield row, Row(int(self._lasers[row]), self._file.row(row), batch)


def _max_waiting(times: npt.NDArray[np.int64], rows: npt.NDArray[np.intp]) -> int:
    """Return how many of these rows wait at most if read in their order and taken in time order."""
    if not len(rows):
        return 0
    read = np.maximum.accumulate(np.argsort(times[rows], kind="stable")) + 1
    return int((read - np.arange(len(rows))).max())
