"""Parquet shards: one frame a row group, so that any frame can be read alone."""

from __future__ import annotations

import contextlib
import hashlib
import urllib.parse
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spot_ray.errors import DataError
from spot_ray.storage import uri as uris
from spot_ray.storage.cache import CacheConfig, ShardCache, Traffic
from spot_ray.storage.cache_folder import CachedFile
from spot_ray.storage.whole_file import WholeFile


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


class _OpenShard:
    """A shard that is open.

    Args:
        source: Where it is read from.
        cached: The file of the cache that this is, or None.
        read_by_arrow: Whether Arrow's threads may read it.
    """

    def __init__(self, source: pa.NativeFile, cached: CachedFile | None, *, read_by_arrow: bool) -> None:
        self.cached = cached
        # Not where Python reads: a thread of Arrow that lets go of such a file when a process ends, aborts it.
        self.file = pq.ParquetFile(source, pre_buffer=read_by_arrow, page_checksum_verification=True)
        self.names: list[str] = self.file.schema_arrow.names
        self._leaves = _leaves(self.file.schema_arrow)

    def num_bytes(self, row_groups: Sequence[int], columns: Sequence[str]) -> int:
        """Return the bytes of some columns of some row groups, as compressed in the file."""
        leaves = [leaf for name in columns for leaf in self._leaves[name]]
        groups = map(self.file.metadata.row_group, row_groups)
        return sum(group.column(leaf).total_compressed_size for group in groups for leaf in leaves)

    def close(self) -> None:
        """Close it."""
        self.file.close()
        if self.cached is not None:
            self.cached.close()


class ShardReader:
    """Reads row groups of a dataset's shards; keeps the last files open.

    Args:
        uri: The dataset.
        max_open: Files that stay open.
        cache: Where remote shards are kept on this machine, or None: nowhere, only what is asked for is read. Local
            datasets do not need it.

    Raises:
        ConfigError: If the cache's folder cannot be made or written to.
    """

    def __init__(self, uri: str, *, max_open: int = 32, cache: CacheConfig | None = None) -> None:
        self._uri = uri
        self._max_open = max_open
        self._files: OrderedDict[str, _OpenShard] = OrderedDict()
        self._is_local = uris.is_local(uri)
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
            ConfigError: If the cache's folder cannot be written to, or its disk is full.
            DataError: If the file is missing or broken.
        """

        def read(opened: _OpenShard) -> pa.Table:
            table = opened.file.read_row_group(row_group, columns=list(columns), use_threads=False)
            self._count(opened, [row_group], columns)
            return table

        with self._errors_told(f"row group {row_group}", shard):
            return self._read(shard, columns, read)

    def read_all(self, shard: str, columns: Sequence[str]) -> pa.Table:
        """Return some columns of all row groups, one row each; meant for small columns.

        Args:
            shard: Path of the file, relative to the dataset.
            columns: Columns to read.

        Raises:
            ConfigError: If the cache's folder cannot be written to, or its disk is full.
            DataError: If the file is missing or broken.
        """

        def read(opened: _OpenShard) -> pa.Table:
            table = opened.file.read(columns=list(columns), use_threads=False)
            self._count(opened, range(opened.file.num_row_groups), columns)
            return table

        with self._errors_told("the columns", shard):
            return self._read(shard, columns, read)

    def _read(self, shard: str, columns: Sequence[str], read: Callable[[_OpenShard], pa.Table]) -> pa.Table:
        try:
            return read(self._checked(shard, columns))
        except (pa.ArrowInvalid, OSError):
            if opened := self._files.pop(shard, None):
                opened.close()
            if self._cache is None or not self._cache.doubt(uris.join(self._uri, shard)):
                raise
        return read(self._checked(shard, columns))  # if only the copy was damaged, there is another now

    def _checked(self, shard: str, columns: Sequence[str]) -> _OpenShard:
        opened = self._open(shard)
        missing = [name for name in columns if name not in opened.names]
        if missing:
            raise DataError(
                f"no column {', '.join(missing)}",
                where=uris.join(self._uri, shard),
                expected=f"one of {', '.join(opened.names)}",
            )
        return opened

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
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(
                f"cannot read {what}: {error}",
                where=uris.join(self._uri, shard),
                remedy="the file is damaged: write its sequence again",
            ) from None

    def close(self) -> None:
        """Close all files."""
        while self._files:
            self._files.popitem()[1].close()

    def _open(self, shard: str) -> _OpenShard:
        opened = self._files.pop(shard, None)
        if opened is None:
            if len(self._files) >= self._max_open:
                self._files.popitem(last=False)[1].close()
            opened = self._open_anew(uris.join(self._uri, shard))
        self._files[shard] = opened
        return opened

    def _open_anew(self, uri: str) -> _OpenShard:
        cached = None if self._cache is None else self._cache.open(uri)
        if cached is not None:
            try:
                return _OpenShard(cached.source, cached, read_by_arrow=False)
            except BaseException:
                cached.close()
                raise
        system, path = uris.filesystem(uri)
        return _OpenShard(system.open_input_file(path), None, read_by_arrow=uris.is_read_by_arrow(uri))

    def _count(self, opened: _OpenShard, row_groups: Sequence[int], columns: Sequence[str]) -> None:
        if self._is_local:
            return
        size = opened.num_bytes(row_groups, columns)
        more = Traffic(bytes_direct=size) if opened.cached is None else Traffic(bytes_from_cache=size)
        self._traffic += more


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
