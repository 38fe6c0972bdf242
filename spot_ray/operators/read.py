"""Reads the sweeps and labels that a plan names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from spot_ray.errors import DataError, SpotRayError, StoreError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.operators.config import MergeConfig
from spot_ray.operators.history import find_history, place_structs, places
from spot_ray.operators.mixture import Member, Mixture
from spot_ray.operators.plan import Share
from spot_ray.operators.sample import Place, Sample, Slot
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.motion import is_skewed, with_frame_poses
from spot_ray.schema.occupancy import Occupancy, crop_occupancy
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import IGNORE
from spot_ray.storage import uri as uris
from spot_ray.storage.codec import LABEL_COLUMNS, columns_for, decode_occupancy, decode_sweep
from spot_ray.storage.dataset import Dataset
from spot_ray.storage.occupancy import OccupancySet
from spot_ray.storage.shards import ShardReader

_POSE_COLUMNS = ("timestamp_ns", "world_SE3_ego")


def locate(share: Share, mixture: Mixture, *, merge: MergeConfig | None = None, deskew: bool = False) -> pa.Table:
    """Return a worker's share of the plan with the places of its sweeps and labels, one row a :class:`Slot`.

    Args:
        share: The share.
        mixture: The datasets, with their labels if there are to be any.
        merge: Earlier sweeps that are merged into a frame, or None: none.
        deskew: Whether the poses of the frames around a sweep may be asked for.

    Raises:
        ConfigError: If sweeps are to be merged and no frame of a dataset has an earlier one near enough.
        DataError: If frames of the share have no labels.
    """
    member_of = mixture.member_of(share.frame)
    tables, rows = [], []
    for number, member in enumerate(mixture.members):
        mine = np.flatnonzero(member_of == number)
        if len(mine):
            frames = share.frame[mine] - member.first
            tables.append(_locate_in(frames, number, member, merge=merge or MergeConfig(), deskew=deskew))
            rows.append(mine)
    if not tables:
        return pa.table({})
    order = np.empty(len(share), dtype=np.int64)
    order[np.concatenate(rows)] = np.arange(len(share))
    table = pa.concat_tables(tables)
    table = table if len(tables) == 1 else table.take(order)
    for name in ("copy", "weight", "step", "global_weight"):
        table = table.append_column(name, pa.array(getattr(share, name)))
    return table


def _locate_in(
    frames: npt.NDArray[np.int64], number: int, member: Member, *, merge: MergeConfig, deskew: bool
) -> pa.Table:
    dataset = member.dataset
    used, inverse = np.unique(frames, return_inverse=True)
    inverse = pa.array(inverse)
    history = find_history(dataset, num_sweeps=merge.num_sweeps, max_gap_s=merge.max_gap_s)
    beside = history.beside(frames) if deskew else (frames[:0], np.zeros(len(frames), np.int64))
    rows = dataset.manifest.take(used)
    if member.labels is None:
        labels = pa.nulls(len(frames), place_structs(rows.slice(0, 0)).type)
    else:
        labels = place_structs(_label_rows(rows, dataset, member.labels)).take(inverse)
    return pa.table(
        {
            "dataset": np.full(len(frames), number, np.int32),
            "sequence_id": rows["sequence_id"].take(inverse),
            "frame_id": rows["frame_id"].take(inverse),
            "sweep": place_structs(rows).take(inverse),
            "labels": labels,
            "older": places(dataset, *history.older(frames)),
            "beside": places(dataset, *beside),
        }
    )


def _label_rows(frames: pa.Table, dataset: Dataset, labels: OccupancySet) -> pa.Table:
    """Return the rows of the labels' manifest that belong to those of the dataset's."""
    found = pc.index_in(_keys(frames), value_set=_keys(labels.manifest))
    if found.null_count:
        missing = frames.slice(int(np.flatnonzero(found.is_null().to_numpy(zero_copy_only=False))[0]), 1).to_pylist()[0]
        raise DataError(
            f"{found.null_count} of {frames.num_rows} frames have no labels in the set {labels.info.name!r}, the first "
            f"is {missing['sequence_id']}/{missing['frame_id']}",
            where=dataset.uri,
            remedy=f"label them: spot-ray label --data {dataset.uri}"
            if missing["keyframe"]
            else "only key frames are labelled: set data.frames=keyframes, or draw a subset of them",
        )
    return labels.manifest.take(found)


def slots(table: pa.Table) -> Iterator[Slot]:
    """Iterate over the rows of :func:`locate`."""
    for row in table.to_pylist():
        older, beside = (tuple(Place(**place) for place in row.pop(name)) for name in ("older", "beside"))
        sweep, labels = row.pop("sweep"), row.pop("labels")
        yield Slot(
            **row,
            sweep=Place(**sweep),
            labels=None if labels is None else Place(**labels),
            older=older,
            beside=beside,
        )


class ReadFrame:
    """Reads the sweep and the labels of a place in the plan, and the sweeps that are to be merged into it.

    Args:
        uri: The dataset.
        info: Its description.
        labels_grid: The grid that the labels were made on; None: there are none, and nothing is observed.
        class_of_label: (256,) uint8 from the labels' classes to those of the run.
        grid: The grid to crop them to.
        columns: Point columns to read beside `xyz`; boxes are read too.
        frame_columns: Parquet columns to read of the frame itself beside these and what training always needs.
        deskew: Give skewed sweeps without poses of their own those of the frames around them.
    """

    def __init__(
        self,
        *,
        uri: str,
        info: DatasetInfo,
        labels_grid: VoxelGrid | None,
        class_of_label: npt.NDArray[np.uint8],
        grid: VoxelGrid,
        columns: Sequence[str],
        frame_columns: Sequence[str] = (),
        deskew: bool = False,
    ) -> None:
        self._uri = uri
        self._info = info
        self._labels_grid = labels_grid
        self._class_of_label = class_of_label
        self._grid = grid
        names = tuple(dict.fromkeys(("xyz", *columns)))
        self.columns = [*columns_for((*names, "boxes"), info, bare=True), *frame_columns]
        """Columns of a shard that are read of a frame."""
        self.older_columns = columns_for(names, info, bare=True)
        """Columns that are read of a sweep that is merged into one."""
        self._deskew = deskew

    def __call__(self, slot: Slot, reader: ShardReader) -> Sample:
        """Return the sample, not yet changed by any operator.

        Args:
            slot: The place.
            reader: Of the dataset; it keeps files open and so stays in its process.

        Raises:
            DataError: If the frame cannot be read or breaks the schema; it names file and row.
        """
        sweeps = [
            self._sweep(slot, slot.sweep, self.columns, reader),
            *(self._sweep(slot, place, self.older_columns, reader) for place in slot.older),
        ]
        if self._deskew:
            sweeps = self._with_frame_poses(slot, sweeps, reader)
        index, semantic, observed = self._labels(slot, reader)
        return Sample(slot, sweeps[0], index, semantic, observed, np.eye(2, 3), older=tuple(sweeps[1:]))

    def _sweep(self, slot: Slot, place: Place, columns: Sequence[str], reader: ShardReader) -> Sweep:
        try:
            return decode_sweep(reader.read(place.shard, place.row_group, columns), place.row, self._info)
        except ValueError as error:
            raise self._located(error, slot, place) from error

    def _with_frame_poses(self, slot: Slot, sweeps: list[Sweep], reader: ShardReader) -> list[Sweep]:
        if not any(is_skewed(sweep) and sweep.sweep_poses is None for sweep in sweeps):
            return sweeps
        frames = [(s.timestamp_ns, s.world_SE3_ego) for s in sweeps if s.world_SE3_ego is not None]
        for place in slot.beside:
            try:
                row = reader.read(place.shard, place.row_group, _POSE_COLUMNS).slice(place.row, 1).to_pylist()[0]
            except ValueError as error:
                raise self._located(error, slot, place) from error
            if row["world_SE3_ego"] is not None:
                frames.append((row["timestamp_ns"], np.array(row["world_SE3_ego"]).reshape(4, 4)))
        return [with_frame_poses(sweep, frames) for sweep in sweeps]

    def _labels(
        self, slot: Slot, reader: ShardReader
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        if slot.labels is None or self._labels_grid is None:
            bits = np.zeros((self._grid.num_voxels + 7) // 8, np.uint8)
            return np.zeros(0, np.int32), np.zeros(0, np.uint8), bits
        from spot_ray.operators.label_kernels import map_ids

        try:
            table = reader.read(slot.labels.shard, slot.labels.row_group, LABEL_COLUMNS)
            labels = decode_occupancy(table, slot.labels.row)
            _check(labels, self._labels_grid)
            labels = crop_occupancy(labels, self._labels_grid, self._grid)
            semantic = np.empty_like(labels.semantic)
            map_ids(labels.semantic, self._class_of_label, semantic)
            if np.count_nonzero(semantic == IGNORE) != np.count_nonzero(labels.semantic == IGNORE):
                raise DataError("a voxel is of a class that the label set does not have")
        except ValueError as error:
            raise self._located(error, slot, slot.labels) from error
        return labels.index, semantic, labels.observed

    def _located(self, error: ValueError, slot: Slot, place: Place) -> DataError:
        merged = "to be merged into frame" if place in slot.older else "frame"
        where = (
            f"{uris.join(self._uri, place.shard)}, row group {place.row_group}, row {place.row} ({merged} {slot.frame})"
        )
        if isinstance(error, SpotRayError):
            kind = StoreError if isinstance(error, StoreError) else DataError
            return kind(error.what, where=where, expected=error.expected, remedy=error.remedy)
        return DataError(f"the frame cannot be decoded: {error}", where=where, remedy="write its sequence again")


def _check(labels: Occupancy, grid: VoxelGrid) -> None:
    voxels, index = grid.num_voxels, labels.index
    if len(labels.semantic) != len(index) or len(labels.observed) != (voxels + 7) // 8:
        raise DataError(
            f"{len(index)} occupied voxels, {len(labels.semantic)} classes, {len(labels.observed)} bytes of mask",
            expected=f"a class a voxel and {(voxels + 7) // 8} bytes",
        )
    if len(index) and (index[0] < 0 or index[-1] >= voxels or (np.diff(index) <= 0).any()):
        raise DataError("the voxel indices are not ascending within the grid", expected=f"0 to {voxels - 1}")


def _keys(rows: pa.Table) -> pa.Array:
    # No id holds a zero byte, so no two pairs join to the same key.
    return pc.binary_join_element_wise(rows["sequence_id"], rows["frame_id"], "\0").combine_chunks()
