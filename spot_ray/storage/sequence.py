"""The shards of one sequence: what each process of a parallel conversion writes alone."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import pyarrow as pa

from spot_ray.errors import DataError
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.manifest import SWEEP_MANIFEST
from spot_ray.schema.sweep import Sweep
from spot_ray.storage import uri as uris
from spot_ray.storage.codec import encode_sweep, sweep_schema
from spot_ray.storage.shards import ShardWriter, shard_name

FRAMES_A_PART = 1000
"""Frames of one sequence in a file; longer sequences go on in a next one, so that writing needs bounded memory."""


class SequenceWriter:
    """Writes one sequence's frames in time order; they are invisible until the manifest lists :attr:`rows`.

    If the `with` block ends with an error, the files are removed.

    Args:
        uri: The dataset's folder.
        info: The dataset.
        sequence_id: The sequence.
    """

    def __init__(self, uri: str, info: DatasetInfo, sequence_id: str) -> None:
        self.uri = uri
        self.sequence_id = sequence_id
        self._info = info
        self._schema = sweep_schema(info)
        self._shard: ShardWriter | None = None
        self._shards: list[str] = []
        self._frames: set[str] = set()
        self._last_timestamp = 0
        self._rows: list[dict[str, Any]] = []

    @property
    def rows(self) -> pa.Table:
        """The manifest rows of what was added."""
        return pa.Table.from_pylist(self._rows, schema=SWEEP_MANIFEST)

    def add(self, sweep: Sweep) -> None:
        """Append a sweep.

        Raises:
            DataError: If it contradicts the dataset, is of another sequence, or comes out of order.
        """
        self._check(sweep)
        row = encode_sweep(sweep, self._info)
        if self._shard is None or self._shard.num_rows >= FRAMES_A_PART:
            self.close()
            self._shards.append(f"shards/{shard_name(self.sequence_id, len(self._shards))}")
            self._shard = ShardWriter(
                uris.join(self.uri, self._shards[-1]), self._schema, compression=self._info.compression
            )
        row_group = self._shard.add(row)
        self._frames.add(sweep.frame_id)
        self._last_timestamp = sweep.timestamp_ns
        self._rows.append(
            {name: row[name] for name in SWEEP_MANIFEST.names if name in row}
            | {"shard": self._shards[-1], "row_group": row_group, "row": 0}
        )

    def close(self) -> None:
        """Finish the open file."""
        if self._shard is not None:
            shard, self._shard = self._shard, None  # not to be closed again, should this fail
            shard.close()

    def __enter__(self) -> SequenceWriter:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Finish the files, or remove them if the block failed."""
        failed = error is not None
        try:
            self.close()
        except BaseException:
            failed = True
            raise
        finally:
            if failed:
                uris.remove_files(uris.join(self.uri, shard) for shard in self._shards)

    def _check(self, sweep: Sweep) -> None:
        if sweep.sequence_id != self.sequence_id:
            raise DataError(
                f"the sweep belongs to sequence {sweep.sequence_id!r}", where=sweep.name, expected=self.sequence_id
            )
        if set(sweep.extra) != set(self._info.extra):
            raise DataError(
                f"extra columns are {sorted(sweep.extra)}", where=sweep.name, expected=f"{sorted(self._info.extra)}"
            )
        if sweep.lidar_id is not None:
            known = [lidar.lidar_id for lidar in self._info.rig]
            unknown = sorted(set(sweep.lidar_id.tolist()) - set(known))
            if unknown:
                raise DataError(
                    f"lidar_id {unknown[0]} is not in the rig", where=sweep.name, expected=f"one of {known}"
                )
        if sweep.frame_id in self._frames:
            raise DataError("the frame occurs twice", where=sweep.name, expected="unique frame ids in a sequence")
        if self._frames and sweep.timestamp_ns <= self._last_timestamp:
            raise DataError(
                f"timestamp {sweep.timestamp_ns} does not follow {self._last_timestamp}",
                where=sweep.name,
                expected="frames of a sequence in time order",
            )


def remove_sequence(uri: str, sequence_id: str) -> None:
    """Remove all shards of a sequence that the manifest does not list, whoever wrote them."""
    folder = uris.join(uri, "shards")
    stem = shard_name(sequence_id).removesuffix(".0000.parquet")
    names = [name for name in uris.list_dir(folder) if name.rsplit(".", 2)[0] == stem]
    uris.remove_files(uris.join(folder, name) for name in names)
