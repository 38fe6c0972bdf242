"""The files of one sequence, or of several that share files: what a process of a parallel conversion writes alone."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from spot_ray.errors import DataError
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.manifest import SWEEP_MANIFEST
from spot_ray.schema.sweep import Sweep
from spot_ray.storage import uri as uris
from spot_ray.storage.codec import encode_sweep, sweep_schema
from spot_ray.storage.shards import ShardWriter, shard_name, stem_of

FRAMES_A_PART = 250
"""Frames in a file; longer sequences go on in a next one. So writing needs bounded memory, and whoever reads one frame
does not wait for the footer of an hour."""

Row = dict[str, Any]


class SequenceWriter:
    """Writes frames, sequence after sequence and each in time order; invisible until the manifest lists :attr:`rows`.

    A file appears under its name when it is whole. If the `with` block ends with an error, the files are removed.

    Args:
        uri: The dataset's folder.
        info: The dataset.
        sequences: The sequences that share the files, in the order in which they come.
    """

    def __init__(self, uri: str, info: DatasetInfo, sequences: Sequence[str]) -> None:
        self.uri = uri
        self.sequences = tuple(sequences)
        self._info = info
        self._schema = sweep_schema(info)
        self._shard: ShardWriter | None = None
        self._shards: list[str] = []
        self._current = 0
        self._frames: set[str] = set()
        self._last_timestamp = 0
        self._rows: list[Row] = []
        self._tables: list[pa.Table] = []

    @property
    def rows(self) -> pa.Table:
        """The manifest rows of what was added."""
        return pa.concat_tables([*self._tables, pa.Table.from_pylist(self._rows, schema=SWEEP_MANIFEST)])

    def add(self, sweep: Sweep) -> None:
        """Append a sweep.

        Raises:
            DataError: If it contradicts the dataset, is of another sequence, or comes out of order.
        """
        self.write(self.encode(sweep))

    def encode(self, sweep: Sweep) -> Row:
        """Return the row of a sweep that may come next, for :meth:`write`; a sweep that is refused changes nothing.

        Raises:
            DataError: If it contradicts the dataset, is of another sequence, or comes out of order.
        """
        self._check(sweep)
        return encode_sweep(sweep, self._info)

    def write(self, row: Row) -> None:
        """Append a row that :meth:`encode` has just returned.

        Raises:
            DataError: If the file cannot be written.
        """
        if self._shard is None or self._shard.num_rows >= FRAMES_A_PART:
            self.close()
            self._shards.append(f"shards/{shard_name(self.sequences, len(self._shards))}")
            self._shard = ShardWriter(
                uris.join(self.uri, self._shards[-1]), self._schema, compression=self._info.compression
            )
        row_group = self._shard.add(row)
        if row["sequence_id"] != self.sequences[self._current]:
            self._current = self.sequences.index(row["sequence_id"])
            self._frames.clear()
        self._frames.add(row["frame_id"])
        self._last_timestamp = row["timestamp_ns"]
        self._rows.append(
            {name: row[name] for name in SWEEP_MANIFEST.names if name in row}
            | {"shard": self._shards[-1], "row_group": row_group, "row": 0}
        )

    def close(self) -> None:
        """Finish the open file."""
        if self._shard is not None:
            shard, self._shard = self._shard, None  # not to be closed again, should this fail
            shard.close()
            # Rows of Python objects weigh ten times a table's.
            self._tables.append(pa.Table.from_pylist(self._rows, schema=SWEEP_MANIFEST))
            self._rows = []

    def abort(self) -> None:
        """Remove what was written."""
        shard, self._shard = self._shard, None
        if shard is not None:
            shard.abort()
        uris.remove_files(uris.join(self.uri, shard) for shard in self._shards)

    def __enter__(self) -> SequenceWriter:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Finish the files, or remove them if the block failed."""
        failed = error is not None
        try:
            if not failed:
                self.close()
        except BaseException:
            failed = True
            raise
        finally:
            if failed:
                self.abort()

    def _check(self, sweep: Sweep) -> None:
        expected = self.sequences[self._current]
        if sweep.sequence_id != expected and sweep.sequence_id not in self.sequences[self._current :]:
            raise DataError(f"the sweep belongs to sequence {sweep.sequence_id!r}", where=sweep.name, expected=expected)
        if set(sweep.extra) != set(self._info.extra):
            raise DataError(
                f"extra columns are {sorted(sweep.extra)}", where=sweep.name, expected=f"{sorted(self._info.extra)}"
            )
        if sweep.lidar_id is not None:
            known = [lidar.lidar_id for lidar in self._info.rig]
            unknown = np.setdiff1d(sweep.lidar_id, known)
            if len(unknown):
                raise DataError(
                    f"lidar_id {unknown[0]} is not in the rig", where=sweep.name, expected=f"one of {known}"
                )
        if sweep.sequence_id != expected:
            return
        if sweep.frame_id in self._frames:
            raise DataError("the frame occurs twice", where=sweep.name, expected="unique frame ids in a sequence")
        if self._frames and sweep.timestamp_ns <= self._last_timestamp:
            raise DataError(
                f"timestamp {sweep.timestamp_ns} does not follow {self._last_timestamp}",
                where=sweep.name,
                expected="frames of a sequence in time order",
            )


def remove_shards(uri: str, stem: str) -> None:
    """Remove all files whose names begin with a :func:`~spot_ray.storage.shards.shard_stem`: nobody lists them."""
    folder = uris.join(uri, "shards")
    uris.remove_files(uris.join(folder, name) for name in uris.list_dir(folder) if stem_of(name) == stem)
