"""Datasets: written sweep by sweep, opened and read frame by frame."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from types import TracebackType

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from spot_ray.config.load import from_json, suggestion
from spot_ray.errors import DataError
from spot_ray.schema.dataset import SCHEMA_VERSION, DatasetInfo, ExtraColumn
from spot_ray.schema.manifest import SWEEP_MANIFEST
from spot_ray.schema.sensors import LidarSpec
from spot_ray.schema.sweep import POINT_DTYPES, Boxes, Sweep
from spot_ray.schema.taxonomy import Taxonomy
from spot_ray.storage import manifest
from spot_ray.storage import uri as uris
from spot_ray.storage.codec import EXTRA, POSE_AND_BOXES, columns_for, decode_pose_and_boxes, decode_sweep
from spot_ray.storage.description import FILE, describes_new, write_description
from spot_ray.storage.removed import FILE as REMOVED
from spot_ray.storage.removed import removed_sequences
from spot_ray.storage.sequence import SequenceWriter, remove_shards
from spot_ray.storage.shards import ShardReader, shard_stem


class DatasetWriter:
    """Writes a dataset, or adds sequences to one.

    Frames come sequence after sequence, each in time order. Nothing is visible to a reader before the `with` block
    ends well; if it ends with an error, what it wrote is removed.

    Args:
        uri: The dataset's folder: a path, `s3://…` or `gs://…`.
        name: Name of the dataset.
        rig: Every LiDAR of the vehicle.
        taxonomy: The classes.
        extra: Point columns of your own, by name; each sweep's `extra` then has exactly these.
        licence: Licence of the data.
        provenance: Where the data came from.
        compression: Parquet codec.
        lossless: Keep every bit of float32; else coordinates are rounded to steps of 1/256 m, see `DatasetInfo`.

    Raises:
        DataError: If the folder holds something else, or a dataset with another rig, taxonomy or columns.
    """

    def __init__(
        self,
        uri: str,
        *,
        name: str,
        rig: Sequence[LidarSpec],
        taxonomy: Taxonomy,
        extra: dict[str, ExtraColumn] | None = None,
        licence: str = "",
        provenance: str = "",
        compression: str = "zstd",
        lossless: bool = False,
    ) -> None:
        self.uri = uris.absolute(uri)
        self.info = DatasetInfo(
            name=name,
            rig=tuple(rig),
            taxonomy=taxonomy,
            extra=extra or {},
            compression=compression,
            lossless=lossless,
            licence=licence,
            provenance=provenance,
        )
        # Checked now: what cannot be written should fail before the first sweep.
        self._is_new = describes_new(self.uri, self.info)
        folder = uris.join(self.uri, "manifest")
        rows = manifest.read_parts(folder, SWEEP_MANIFEST, manifest.list_parts(folder))
        self._done = set(rows.column("sequence_id").unique().to_pylist())
        self._removed = removed_sequences(self.uri)
        self._sequence: SequenceWriter | None = None
        self._stems: list[str] = []
        self._rows: list[pa.Table] = []

    @classmethod
    def of(cls, uri: str, info: DatasetInfo) -> DatasetWriter:
        """Return a writer of a dataset that is described already, e.g. by :func:`~spot_ray.load_description`.

        Raises:
            DataError: If the folder holds something else, or a dataset with another rig, taxonomy or columns.
        """
        return cls(
            uri,
            name=info.name,
            rig=info.rig,
            taxonomy=info.taxonomy,
            extra=info.extra,
            licence=info.licence,
            provenance=info.provenance,
            compression=info.compression,
            lossless=info.lossless,
        )

    def add(self, sweep: Sweep) -> None:
        """Append a sweep.

        Raises:
            DataError: If it contradicts the dataset (class ids, LiDAR ids, extra columns), or comes out of order.
        """
        if self._sequence is None or sweep.sequence_id not in self._sequence.sequences:
            self._finish_sequence()
            if sweep.sequence_id in self._done:
                raise DataError(
                    f"sequence {sweep.sequence_id!r} is already in the dataset",
                    where=self.uri,
                    expected="all frames of a sequence together, each sequence once",
                )
            if sweep.sequence_id in self._removed:
                raise DataError(
                    f"sequence {sweep.sequence_id!r} was taken out of the dataset",
                    where=uris.join(self.uri, REMOVED),
                    remedy="to bring it back, delete its line there",
                )
            self._done.add(sweep.sequence_id)
            self._sequence = SequenceWriter(self.uri, self.info, [sweep.sequence_id])
            self._stems.append(shard_stem([sweep.sequence_id]))
        self._sequence.add(sweep)

    def __enter__(self) -> DatasetWriter:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Make what was written visible, or remove it if the block failed."""
        failed = error is not None
        try:
            if not failed:
                self._commit()
        except BaseException:
            failed = True
            raise
        finally:
            if failed:
                self._remove()

    def _commit(self) -> None:
        self._finish_sequence()
        rows = pa.concat_tables([SWEEP_MANIFEST.empty_table(), *self._rows])
        if not rows.num_rows:
            raise DataError("no sweep was written", where=self.uri, remedy="add at least one")
        if self._is_new:
            write_description(self.uri, self.info)
        manifest.append_part(uris.join(self.uri, "manifest"), rows)

    def _finish_sequence(self) -> None:
        if self._sequence is not None:
            self._sequence.close()
            self._rows.append(self._sequence.rows)
            self._sequence = None

    def _remove(self) -> None:
        if self._sequence is not None:
            with contextlib.suppress(OSError):  # a full disk, on which it could not be finished either
                self._sequence.abort()
        folder = uris.join(self.uri, "shards")
        for stem in self._stems:
            remove_shards(self.uri, stem)
        if self._is_new:
            uris.remove_files([uris.join(self.uri, FILE)])
        if self._is_new and not uris.list_dir(folder):
            uris.remove_tree(folder)
            if not uris.list_dir(self.uri):
                uris.remove_tree(self.uri)


class Dataset:
    """A dataset that was opened; indexable by frame, in the order of sequence and time.

    Args:
        uri: Its folder.
        info: Its `dataset.json`.
        rows: Its manifest, sorted by sequence and time.
        parts: The manifest parts that it consists of.
    """

    def __init__(self, uri: str, info: DatasetInfo, rows: pa.Table, parts: list[str]) -> None:
        self.uri = uri
        self.info = info
        self.manifest = rows
        self.parts = parts
        self._reader = ShardReader(uri)
        runs = pc.run_end_encode(rows.column("sequence_id").combine_chunks())
        ends = [0, *runs.run_ends.to_pylist()]
        self._ranges = dict(zip(runs.values.to_pylist(), map(range, ends, ends[1:]), strict=True))

    def __len__(self) -> int:
        """Return the number of frames."""
        return int(self.manifest.num_rows)

    def __getitem__(self, i: int) -> Sweep:
        """Return frame `i` with all its columns."""
        return self.read(i, ("xyz", *POINT_DTYPES, *(EXTRA + name for name in self.info.extra), "boxes"))

    def __iter__(self) -> Iterator[Sweep]:
        """Iterate over all frames."""
        return (self[i] for i in range(len(self)))

    def read(self, i: int, columns: Sequence[str]) -> Sweep:
        """Return frame `i` with only the given columns; `xyz` is always among them, the others are None.

        Args:
            i: Index of the frame; negative counts from the end.
            columns: Of the point columns, `extra.NAME`, and `boxes`.

        Raises:
            IndexError: If there is no frame `i`.
        """
        shard, row_group, row = self._place(i)
        names = columns_for(list(dict.fromkeys(("xyz", *columns))), self.info)
        return decode_sweep(self._reader.read(shard, row_group, names), row, self.info)

    def pose_and_boxes(self, i: int) -> tuple[npt.NDArray[np.float64] | None, Boxes | None]:
        """Return the (4, 4) `world_SE3_ego` and the boxes of frame `i`, each None where there is none.

        No point is read.

        Raises:
            IndexError: If there is no frame `i`.
            DataError: If the file is broken.
        """
        shard, row_group, row = self._place(i)
        return decode_pose_and_boxes(self._reader.read(shard, row_group, POSE_AND_BOXES), row)

    def poses(self, sequence_id: str) -> list[npt.NDArray[np.float64] | None]:
        """Return the (4, 4) `world_SE3_ego` of each of a sequence's frames, or None; no point is read.

        Raises:
            DataError: If there is no such sequence, or a file is broken.
        """
        frames = self.frames_of(sequence_id)
        rows = self.manifest.slice(frames.start, len(frames))
        shards, groups = rows.column("shard").to_pylist(), rows.column("row_group").to_pylist()
        columns = {s: self._reader.read_all(s, ["world_SE3_ego"]).column(0) for s in dict.fromkeys(shards)}
        values = [columns[shard][group].as_py() for shard, group in zip(shards, groups, strict=True)]
        return [None if value is None else np.array(value).reshape(4, 4) for value in values]

    def _place(self, i: int) -> tuple[str, int, int]:
        if not -len(self) <= i < len(self):
            raise IndexError(f"frame {i} of {len(self)}")
        shard, row_group, row = (self.manifest.column(c)[i % len(self)].as_py() for c in ("shard", "row_group", "row"))
        return shard, row_group, row

    @property
    def sequences(self) -> tuple[str, ...]:
        """The sequence ids, sorted."""
        return tuple(self._ranges)

    def frames_of(self, sequence_id: str) -> range:
        """Return the indices of a sequence's frames, in time order.

        Raises:
            DataError: If there is no such sequence.
        """
        if sequence_id not in self._ranges:
            raise DataError(
                f"no sequence {sequence_id!r}", where=self.uri, remedy=suggestion(sequence_id, list(self._ranges)[:50])
            )
        return self._ranges[sequence_id]

    def index_of(self, name: str) -> int:
        """Return the index of the frame `SEQUENCE/FRAME`.

        Raises:
            DataError: If there is no such frame.
        """
        parts = name.split("/")
        # Both ids may hold slashes themselves.
        splits = [("/".join(parts[:k]), "/".join(parts[k:])) for k in range(len(parts) - 1, 0, -1)]
        if not splits:
            raise DataError(f"{name!r} names no frame", where=self.uri, expected="SEQUENCE/FRAME")
        known = [split for split in splits if split[0] in self._ranges]
        for sequence_id, frame_id in known:
            ids = self._frame_ids(sequence_id)
            if frame_id in ids:
                return self._ranges[sequence_id].start + ids.index(frame_id)
        sequence_id, frame_id = (known or splits)[0]
        self.frames_of(sequence_id)
        raise DataError(
            f"sequence {sequence_id!r} has no frame {frame_id!r}",
            where=self.uri,
            remedy=suggestion(frame_id, self._frame_ids(sequence_id)),
        )

    def _frame_ids(self, sequence_id: str) -> list[str]:
        frames = self._ranges[sequence_id]
        ids: list[str] = self.manifest.column("frame_id").slice(frames.start, len(frames)).to_pylist()
        return ids

    def pin(self, snapshot: str) -> None:
        """Give the frames that are listed now a name: `open_dataset(uri, snapshot=NAME)` returns just these."""
        manifest.write_snapshot(uris.join(self.uri, "manifest"), snapshot, self.parts)


def open_dataset(uri: str, *, snapshot: str | None = None, parts: Sequence[str] | None = None) -> Dataset:
    """Open a dataset for reading.

    Args:
        uri: Its folder: a path, `s3://…` or `gs://…`.
        snapshot: Name of a pinned snapshot, or None: all frames that are listed now.
        parts: The manifest parts to open, a `Dataset.parts` of before, in place of a snapshot.

    Raises:
        DataError: If there is no dataset, or one of a newer version.
    """
    root = uris.absolute(uri)
    where = uris.join(root, FILE)
    if not uris.exists(where):
        what = "the folder is no dataset: it has no dataset.json" if uris.exists(root) else "no such folder"
        raise DataError(
            what, where=uri, expected="the folder that `spot-ray convert`, `synthesize` or DatasetWriter wrote"
        )
    info = from_json(DatasetInfo, uris.read_bytes(where), where=where)
    if info.schema_version > SCHEMA_VERSION:
        raise DataError(
            f"the dataset has schema version {info.schema_version}",
            where=where,
            expected=f"at most {SCHEMA_VERSION}",
            remedy="upgrade spot_ray",
        )
    folder = uris.join(root, "manifest")
    if parts is None:
        parts = manifest.list_parts(folder) if snapshot is None else manifest.read_snapshot(folder, snapshot)
    parts = list(parts)
    return Dataset(root, info, manifest.read_parts(folder, SWEEP_MANIFEST, parts), parts)
