"""Reads the sweeps and labels that a plan names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from spot_ray.errors import DataError, SpotRayError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.operators.plan import Share
from spot_ray.operators.sample import Sample, Slot
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.occupancy import Occupancy, crop_occupancy
from spot_ray.schema.sweep import Sweep
from spot_ray.storage import uri as uris
from spot_ray.storage.codec import OCCUPANCY_SCHEMA, columns_for, decode_occupancy, decode_sweep
from spot_ray.storage.dataset import Dataset
from spot_ray.storage.occupancy import OccupancySet
from spot_ray.storage.shards import ShardReader

_LABEL_COLUMNS = tuple(OCCUPANCY_SCHEMA.names)


def locate(share: Share, dataset: Dataset, labels: OccupancySet) -> pa.Table:
    """Return a worker's share of the plan with the places of its sweeps and labels, one row a :class:`Slot`.

    Raises:
        DataError: If frames of the share have no labels.
    """
    used, inverse = np.unique(share.frame, return_inverse=True)
    sweeps = dataset.manifest.take(used)
    found = pc.index_in(_keys(sweeps), value_set=_keys(labels.manifest))
    if found.null_count:
        row = sweeps.slice(int(np.flatnonzero(found.is_null().to_numpy(zero_copy_only=False))[0]), 1).to_pylist()[0]
        raise DataError(
            f"{found.null_count} of {len(used)} frames have no labels in the set {labels.info.name!r}, the first is "
            f"{row['sequence_id']}/{row['frame_id']}",
            where=dataset.uri,
            remedy=f"label them: spot-ray label --data {dataset.uri}",
        )
    sweeps = sweeps.take(inverse)
    places = labels.manifest.take(found.take(pa.array(inverse)))
    return pa.table(
        {
            "sequence_id": sweeps["sequence_id"],
            "frame_id": sweeps["frame_id"],
            "copy": share.copy,
            "weight": share.weight,
            "step": share.step,
            "global_weight": share.global_weight,
            "shard": sweeps["shard"],
            "row_group": sweeps["row_group"],
            "row": sweeps["row"],
            "label_shard": places["shard"],
            "label_row_group": places["row_group"],
            "label_row": places["row"],
        }
    )


def slots(table: pa.Table) -> Iterator[Slot]:
    """Iterate over the rows of :func:`locate`."""
    return (Slot(**row) for row in table.to_pylist())


class ReadFrame:
    """Reads the sweep and the labels of a place in the plan.

    Args:
        uri: The dataset.
        info: Its description.
        labels_grid: The grid that the labels were made on.
        grid: The grid to crop them to.
        columns: Point columns to read beside `xyz`; boxes are read too.
    """

    def __init__(
        self, *, uri: str, info: DatasetInfo, labels_grid: VoxelGrid, grid: VoxelGrid, columns: Sequence[str]
    ) -> None:
        self._uri = uri
        self._info = info
        self._labels_grid = labels_grid
        self._grid = grid
        self._columns = columns_for(list(dict.fromkeys(("xyz", *columns, "boxes"))), info)

    def __call__(self, slot: Slot, reader: ShardReader) -> Sample:
        """Return the sample, not yet changed by any operator.

        Args:
            slot: The place.
            reader: Of the dataset; it keeps files open and so stays in its process.

        Raises:
            DataError: If the frame cannot be read or breaks the schema; it names file and row.
        """
        sweep = self._sweep(slot, reader)
        labels = self._labels(slot, reader)
        return Sample(slot, sweep, labels.index, labels.semantic, labels.observed, np.eye(2, 3))

    def _sweep(self, slot: Slot, reader: ShardReader) -> Sweep:
        try:
            return decode_sweep(reader.read(slot.shard, slot.row_group, self._columns), slot.row, self._info)
        except ValueError as error:
            raise self._located(error, slot, slot.shard, slot.row_group, slot.row) from error

    def _labels(self, slot: Slot, reader: ShardReader) -> Occupancy:
        try:
            table = reader.read(slot.label_shard, slot.label_row_group, _LABEL_COLUMNS)
            labels = decode_occupancy(table, slot.label_row)
            self._check(labels)
            return crop_occupancy(labels, self._labels_grid, self._grid)
        except ValueError as error:
            raise self._located(error, slot, slot.label_shard, slot.label_row_group, slot.label_row) from error

    def _check(self, labels: Occupancy) -> None:
        voxels, index = self._labels_grid.num_voxels, labels.index
        if len(labels.semantic) != len(index) or len(labels.observed) != (voxels + 7) // 8:
            raise DataError(
                f"{len(index)} occupied voxels, {len(labels.semantic)} classes, {len(labels.observed)} bytes of mask",
                expected=f"a class a voxel and {(voxels + 7) // 8} bytes",
            )
        if len(index) and (index[0] < 0 or index[-1] >= voxels or (np.diff(index) <= 0).any()):
            raise DataError("the voxel indices are not ascending within the grid", expected=f"0 to {voxels - 1}")

    def _located(self, error: ValueError, slot: Slot, shard: str, row_group: int, row: int) -> DataError:
        where = f"{uris.join(self._uri, shard)}, row group {row_group}, row {row} (frame {slot.frame})"
        if isinstance(error, SpotRayError):
            return DataError(error.what, where=where, expected=error.expected, remedy=error.remedy)
        return DataError(f"the frame cannot be decoded: {error}", where=where, remedy="write its sequence again")


def _keys(rows: pa.Table) -> pa.Array:
    # No id holds a zero byte, so no two pairs join to the same key.
    return pc.binary_join_element_wise(rows["sequence_id"], rows["frame_id"], "\0").combine_chunks()
