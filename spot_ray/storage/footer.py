"""Footers of shards, kept so that a row group of any of a hundred files can be read at once.

Arrow parses a footer whole: 200 frames of 38 columns are 0.5 MB, which take 3.5 ms and then 6.9 MB of memory. An epoch
in random order, or in a window of 83 logs, finds hardly any file open and would parse one for every frame, of which the
reading itself takes 0.4 ms. Kept as bytes, a footer takes 0.5 MB, and what describes one row group of it (2 KB) is cut
out and parsed in 0.15 ms.

                                      read one of 200 frames    memory a shard
    parse the whole footer each time  4.4 ms of CPU             none
    keep it parsed                    0.4 ms                    6.9 MB
    cut out the row group             0.8 ms                    0.5 MB

(2026-11-23; pyarrow 26, frames of 180 k points; compressed columns in the page cache; finding the row groups of a
footer takes 0.7 ms once.)
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_MAGIC = b"PAR1"
_END = struct.Struct("<I4s")
"""A footer's length and the magic bytes end a file."""
TAIL_BYTES = 128 * 1024
"""Read first of a remote file: the footer of 200 frames of labels, which are small; that of sweeps takes two requests.
"""


class Footer:
    """A shard's footer.

    Args:
        source: The shard.
        is_remote: Whether a request costs more than some bytes too many.

    Raises:
        pyarrow.ArrowInvalid: If the file is no Parquet file.
    """

    def __init__(self, source: pa.NativeFile, *, is_remote: bool) -> None:
        from spot_ray.storage.footer_kernel import row_group_places

        self._bytes = _read(source, TAIL_BYTES if is_remote else _END.size)
        try:
            self._places = row_group_places(np.frombuffer(self._bytes, np.uint8).copy())
        except (IndexError, ValueError):
            raise pa.ArrowInvalid("the footer is damaged") from None
        if not len(self._places) or self._places[-1] > len(self._bytes):
            raise pa.ArrowInvalid("the footer lists no row groups")
        schema: pa.Schema = self._cut(0, 0).schema.to_arrow_schema()
        self.names: list[str] = schema.names
        """The columns."""
        self.num_row_groups = len(self._places) - 2
        self._leaves = _leaves(schema)

    def parsed(self) -> pq.FileMetaData:
        """Return all of it, parsed: 3.5 ms and 7 MB for 200 frames."""
        return _parsed(self._bytes)

    def row_group(self, number: int) -> pq.FileMetaData:
        """Return the metadata of a file of one row group alone.

        Raises:
            pyarrow.ArrowInvalid: If there is no such row group.
        """
        if not 0 <= number < self.num_row_groups:
            raise pa.ArrowInvalid(f"there is no row group {number} of {self.num_row_groups}")
        return self._cut(number, 1)

    def num_bytes(self, group: pq.RowGroupMetaData, columns: Sequence[str]) -> int:
        """Return the bytes of some columns of a row group, as compressed in the file."""
        return sum(group.column(leaf).total_compressed_size for leaf in self.leaves(columns))

    @property
    def num_file_bytes(self) -> int:
        """The bytes that it takes at the end of the file."""
        return len(self._bytes) + _END.size

    def leaves(self, columns: Sequence[str]) -> list[int]:
        """Return which of Parquet's columns some columns consist of."""
        return [leaf for name in columns for leaf in self._leaves[name]]

    def _cut(self, first: int, count: int) -> pq.FileMetaData:
        """Return the metadata of a file with fewer row groups: a list of up to 14 structures, in Thrift's terms."""
        start, end = self._places[1 + first], self._places[1 + first + count]
        listed = bytes([count << 4 | 12]) + self._bytes[start:end]
        return _parsed(self._bytes[: self._places[0]] + listed + self._bytes[self._places[-1] :])


def _read(source: pa.NativeFile, first: int) -> bytes:
    size = source.size()
    tail = source.read_at(min(first, size), size - min(first, size))
    if len(tail) < _END.size:
        raise pa.ArrowInvalid(f"a file of {size} bytes")
    length, magic = _END.unpack(tail[-_END.size :])
    if magic != _MAGIC or length + _END.size > size:
        raise pa.ArrowInvalid("the file does not end as a Parquet file does")
    missing = length + _END.size - len(tail)
    if missing > 0:
        tail = source.read_at(missing, size - len(tail) - missing) + tail
    return bytes(tail[len(tail) - _END.size - length : len(tail) - _END.size])


def _parsed(footer: bytes) -> pq.FileMetaData:
    try:
        return pq.read_metadata(pa.BufferReader(_MAGIC + footer + _END.pack(len(footer), _MAGIC)))
    except UnicodeDecodeError:
        raise pa.ArrowInvalid("the footer is damaged") from None


def _leaves(schema: pa.Schema) -> dict[str, range]:
    """Return which of Parquet's columns each column of a schema consists of."""
    leaves, start = {}, 0
    for column in schema:
        count = _num_leaves(column.type)
        leaves[column.name] = range(start, start + count)
        start += count
    return leaves


def _num_leaves(kind: pa.DataType) -> int:
    return sum(_num_leaves(kind.field(i).type) for i in range(kind.num_fields)) if kind.num_fields else 1
