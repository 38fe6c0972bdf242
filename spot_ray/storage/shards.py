"""Parquet shards: one frame a row group, so that any frame can be read alone."""

from __future__ import annotations

import contextlib
import hashlib
import urllib.parse
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spot_ray.errors import DataError
from spot_ray.storage import uri as uris
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


class ShardReader:
    """Reads row groups of a dataset's shards; keeps the last files open.

    Args:
        uri: The dataset.
        max_open: Files that stay open.
    """

    def __init__(self, uri: str, *, max_open: int = 32) -> None:
        self._uri = uri
        self._max_open = max_open
        self._files: OrderedDict[str, pq.ParquetFile] = OrderedDict()

    def read(self, shard: str, row_group: int, columns: Sequence[str]) -> pa.Table:
        """Return one row group.

        Args:
            shard: Path of the file, relative to the dataset.
            row_group: Its number.
            columns: Columns to read.

        Raises:
            DataError: If the file is missing or broken.
        """
        with self._errors_told(f"row group {row_group}", shard):
            return self._checked(shard, columns).read_row_group(row_group, columns=list(columns), use_threads=False)

    def read_all(self, shard: str, columns: Sequence[str]) -> pa.Table:
        """Return some columns of all row groups, one row each; meant for small columns.

        Args:
            shard: Path of the file, relative to the dataset.
            columns: Columns to read.

        Raises:
            DataError: If the file is missing or broken.
        """
        with self._errors_told("the columns", shard):
            return self._checked(shard, columns).read(columns=list(columns), use_threads=False)

    def _checked(self, shard: str, columns: Sequence[str]) -> pq.ParquetFile:
        file = self._open(shard)
        present = file.schema_arrow.names
        missing = [name for name in columns if name not in present]
        if missing:
            raise DataError(
                f"no column {', '.join(missing)}",
                where=uris.join(self._uri, shard),
                expected=f"one of {', '.join(present)}",
            )
        return file

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

    def _open(self, shard: str) -> pq.ParquetFile:
        file = self._files.pop(shard, None)
        if file is None:
            system, path = uris.filesystem(uris.join(self._uri, shard))
            source = system.open_input_file(path)
            # Not where Python reads: a thread of Arrow that lets go of such a file when a process ends, aborts it.
            file = pq.ParquetFile(source, pre_buffer=uris.is_read_by_arrow(self._uri), page_checksum_verification=True)
            if len(self._files) >= self._max_open:
                self._files.popitem(last=False)[1].close()
        self._files[shard] = file
        return file


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
