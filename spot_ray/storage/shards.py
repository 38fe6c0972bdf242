"""Parquet shards: one frame a row group, so that any frame can be read alone."""

from __future__ import annotations

import contextlib
import hashlib
import os
import urllib.parse
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spot_ray.errors import DataError
from spot_ray.storage import uri as uris
from spot_ray.storage.cache import CacheConfig, ShardCache, Traffic
from spot_ray.storage.footer import Footer
from spot_ray.storage.whole_file import WholeFile

MOST_KEPT = 256
"""Shards of which a reader keeps something, if it is not told another number: some 0.5 MB each."""
_MAX_OPEN = 8
"""Shards of a reader that stay open: their parsed footers take 7 MB each."""
_READS_BEFORE_OPENING = 12
"""Of a shard among as many readings as so many of each open shard are: cutting its footer for each has then taken as
long as parsing it."""

_DAMAGE = (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError)
"""What Arrow says of bytes that are no Parquet any more: of some, that what they ask for is not implemented."""


class ShardWriter:
    """Writes rows of one schema into one Parquet file, which appears when it is closed and whole.

    Args:
        uri: The file.
        schema: Its schema.
        compression: Parquet codec.

    Raises:
        DataError: If the place is not to be written to.
    """

    def __init__(self, uri: str, schema: pa.Schema, *, compression: str) -> None:
        self.uri = uri
        self.num_rows = 0
        self._schema = schema
        self._file = WholeFile(uri)
        self._writer = pq.ParquetWriter(
            self._file.stream,
            schema,
            compression=compression,
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        )

    def add(self, row: dict[str, Any]) -> int:
        """Append one row as a row group of its own and return the row group's number."""
        columns = [pa.array([row[f.name]], type=f.type) for f in self._schema]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema), row_group_size=1)
        self.num_rows += 1
        return self.num_rows - 1

    def close(self) -> None:
        """Write the footer and show the file.

        Raises:
            DataError: If the file cannot be finished; then nothing of it is left.
        """
        try:
            with uris.refusals_told("write the file", self.uri):
                self._writer.close()
        except BaseException:
            self.abort()
            raise
        self._file.commit()

    def abort(self) -> None:
        """Leave nothing."""
        self._writer.is_open = False  # or its destructor would go on writing
        self._file.discard()

    def __enter__(self) -> ShardWriter:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the file, or leave nothing if the block failed."""
        if error is None:
            self.close()
        else:
            self.abort()


@dataclass
class _Kept:
    """What is kept of a shard between readings.

    Args:
        footer: Its footer.
        identity: Of the file on the disk that the footer is of; None if it is not read from the disk.
        source: The file in the store; None if it is read from the disk, where opening costs nothing.
        counted_from: Number of the reader's reading from which `num_reads` counts.
        num_reads: How often the shard was read since.
    """

    footer: Footer
    identity: tuple[int, ...] | None
    source: pa.NativeFile | None
    counted_from: int
    num_reads: int = 0


@dataclass
class _Open:
    """A shard that stays open, its footer parsed.

    Args:
        file: The shard.
        kept: What is kept of it.
        close: Lets go of it.
    """

    file: pq.ParquetFile
    kept: _Kept
    close: Callable[[], object]


class ShardReader:
    """Reads row groups of a dataset's shards; keeps what it needs to read the last shards again at once.

    A shard that is read often in a row stays open. Of the others only footers are kept, as :mod:`.footer` tells.

    Args:
        uri: The dataset.
        max_open: Shards of which something is kept: some 0.5 MB a shard of 200 frames.
        cache: Where remote shards are kept on this machine, or None: nowhere, only what is asked for is read. Local
            datasets do not need it.

    Raises:
        StoreError: If the cache's folder cannot be made or written to.
    """

    def __init__(self, uri: str, *, max_open: int = MOST_KEPT, cache: CacheConfig | None = None) -> None:
        self._uri = uri
        self._max_open = max_open
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._num_reads = 0
        self._is_local = uris.is_local(uri)
        self._root = uris.absolute(uri)
        self._cache = None if cache is None or self._is_local else ShardCache(cache)
        self._traffic = Traffic()

    @property
    def traffic(self) -> Traffic:
        """What this reader has moved so far; of local datasets nothing is counted."""
        return self._traffic if self._cache is None else self._traffic + self._cache.traffic

    def read(self, shard: str, row_group: int, columns: Sequence[str]) -> pa.Table:
        """Return one row group.

        Args:
            shard: Path of the file, relative to the dataset.
            row_group: Its number.
            columns: Columns to read.

        Raises:
            StoreError: If the store fails, or the cache's folder cannot be written to or its disk is full.
            DataError: If the file is missing or broken.
        """
        with self._errors_told(f"row group {row_group}", shard):
            return self._twice(shard, lambda: self._read(shard, row_group, list(columns)))

    def read_all(self, shard: str, columns: Sequence[str]) -> pa.Table:
        """Return some columns of all row groups, one row each; meant for small columns.

        Args:
            shard: Path of the file, relative to the dataset.
            columns: Columns to read.

        Raises:
            StoreError: If the store fails, or the cache's folder cannot be written to or its disk is full.
            DataError: If the file is missing or broken.
        """
        with self._errors_told("the columns", shard):
            return self._twice(shard, lambda: self._read_all(shard, list(columns)))

    def close(self) -> None:
        """Let go of all files."""
        for shard in list(self._kept):
            self._forget(shard)

    def _twice(self, shard: str, read: Callable[[], pa.Table]) -> pa.Table:
        was_kept = shard in self._kept
        try:
            return read()
        except _DAMAGE:
            self._forget(shard)
            if self._cache is None and not was_kept:
                raise
            if self._cache is not None and not self._cache.doubt(uris.join(self._uri, shard)) and not was_kept:
                raise
        # If only the copy on this disk was damaged, there is another now; and what was kept may have been of a shard
        # that has been written again since.
        return read()

    def _read(self, shard: str, row_group: int, columns: list[str]) -> pa.Table:
        self._num_reads += 1
        opened = self._open.get(shard)
        if opened is not None and self._is_current(shard, opened.kept):
            self._open.move_to_end(shard)
            self._kept.move_to_end(shard)
            self._check(shard, opened.kept, columns)
            table = opened.file.read_row_group(row_group, columns=columns, use_threads=False)
            self._count(opened.kept, [opened.file.metadata.row_group(row_group)], columns)
            return table
        with self._source(shard) as (source, kept):
            self._check(shard, kept, columns)
            metadata = kept.footer.row_group(row_group)
            table = self._parquet_file(source, kept, metadata).read_row_group(0, columns=columns, use_threads=False)
            self._count(kept, [metadata.row_group(0)], columns)
        if self._is_often_read(kept):
            self._stay_open(shard)
        return table

    def _read_all(self, shard: str, columns: list[str]) -> pa.Table:
        with self._source(shard) as (source, kept):
            self._check(shard, kept, columns)
            metadata = kept.footer.parsed()
            table = self._parquet_file(source, kept, metadata).read(columns=columns, use_threads=False)
            self._count(kept, [metadata.row_group(i) for i in range(metadata.num_row_groups)], columns)
        return table

    def _is_current(self, shard: str, kept: _Kept) -> bool:
        """Tell whether a local shard is still the file that is open; another may have been put in its place."""
        if not self._is_local:
            return True
        if kept.identity == _identity(Path(uris.join(self._root, shard)).stat()):
            return True
        self._forget(shard)
        return False

    def _is_often_read(self, kept: _Kept) -> bool:
        kept.num_reads += 1
        if kept.num_reads < _READS_BEFORE_OPENING:
            return False
        is_often = self._num_reads - kept.counted_from <= _READS_BEFORE_OPENING * _MAX_OPEN
        kept.counted_from, kept.num_reads = self._num_reads, 0
        return is_often

    def _stay_open(self, shard: str) -> None:
        with contextlib.ExitStack() as stack:
            source, kept = stack.enter_context(self._source(shard))
            file = self._parquet_file(source, kept, kept.footer.parsed())
            self._open[shard] = _Open(file, kept, stack.pop_all().close)
        if len(self._open) > min(_MAX_OPEN, self._max_open):
            self._open.popitem(last=False)[1].close()

    @contextlib.contextmanager
    def _source(self, shard: str) -> Iterator[tuple[pa.NativeFile, _Kept]]:
        """Open a shard, and look up or read its footer."""
        uri = uris.join(self._uri, shard)
        copy = None if self._cache is None else self._cache.open(uri)
        if copy is not None:
            with contextlib.closing(copy):
                yield copy.source, self._keep(shard, copy.source, copy.stat)
            return
        kept = self._kept.get(shard)
        if kept is not None and kept.source is not None:
            self._kept.move_to_end(shard)
            yield kept.source, kept
            return
        system, path = uris.filesystem(uri)
        source = system.open_input_file(path)
        if self._is_local:
            with source:
                yield source, self._keep(shard, source, Path(path).stat())
        else:
            yield source, self._keep(shard, source, None)

    def _keep(self, shard: str, source: pa.NativeFile, status: os.stat_result | None) -> _Kept:
        identity = None if status is None else _identity(status)
        kept = self._kept.get(shard)
        if kept is None or kept.identity is None or kept.identity != identity:
            self._forget(shard)
            while len(self._kept) >= self._max_open:
                self._forget(next(iter(self._kept)))
            footer = Footer(source, is_remote=status is None)
            self._kept[shard] = kept = _Kept(footer, identity, source if status is None else None, self._num_reads)
        self._kept.move_to_end(shard)
        return kept

    def _forget(self, shard: str) -> None:
        if shard in self._open:
            self._open.pop(shard).close()
        kept = self._kept.pop(shard, None)
        if kept is not None and kept.source is not None:
            kept.source.close()

    def _check(self, shard: str, kept: _Kept, columns: list[str]) -> None:
        present = kept.footer.names
        missing = [name for name in columns if name not in present]
        if missing:
            raise DataError(
                f"no column {', '.join(missing)}",
                where=uris.join(self._uri, shard),
                expected=f"one of {', '.join(present)}",
            )

    def _parquet_file(self, source: pa.NativeFile, kept: _Kept, metadata: pq.FileMetaData) -> pq.ParquetFile:
        # Not where Python reads: a thread of Arrow that lets go of such a file when a process ends, aborts it.
        ahead = kept.source is not None and uris.is_read_by_arrow(self._uri)
        return pq.ParquetFile(source, metadata=metadata, pre_buffer=ahead, page_checksum_verification=True)

    def _count(self, kept: _Kept, groups: Sequence[pq.RowGroupMetaData], columns: list[str]) -> None:
        if self._is_local:
            return
        size = sum(kept.footer.num_bytes(group, columns) for group in groups)
        self._traffic += Traffic(bytes_direct=size) if kept.source is not None else Traffic(bytes_from_cache=size)

    @contextlib.contextmanager
    def _errors_told(self, what: str, shard: str) -> Iterator[None]:
        try:
            with uris.failures_told(f"read {what}", uris.join(self._uri, shard)):
                yield
        except FileNotFoundError:
            raise DataError(
                "a shard that the manifest names is missing",
                where=uris.join(self._uri, shard),
                remedy="copy the whole dataset folder, or convert again",
            ) from None
        except _DAMAGE as error:
            raise DataError(
                f"cannot read {what}: {error}",
                where=uris.join(self._uri, shard),
                remedy="the file is damaged: write its sequence again",
            ) from None


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def shard_stem(sequences: Sequence[str]) -> str:
    """Return what the names of all files of some sequences begin with: the first id, made safe for every store.

    Where several sequences share files, a `+` and a hash of all ids follow: another choice of sequences that begins
    alike never writes over what is there. No id is written with a `+`.
    """
    first = urllib.parse.quote(sequences[0], safe="")
    if len(sequences) == 1:
        return first
    return f"{first}+{hashlib.blake2b(chr(0).join(sequences).encode(), digest_size=8).hexdigest()}"


def shard_name(sequences: Sequence[str], part: int = 0) -> str:
    """Return the name of a file of some sequences."""
    return f"{shard_stem(sequences)}.{part:04d}.parquet"


def stem_of(name: str) -> str:
    """Return the :func:`shard_stem` of a file's name."""
    return name.rsplit(".", 2)[0]
