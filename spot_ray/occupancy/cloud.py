"""Aggregated points: what many sweeps saw, merged on a fine lattice of cells so that it fits in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spot_ray.errors import DataError
from spot_ray.schema.taxonomy import IGNORE

# A cell's key is x, y (21 bits each), z (14 bits), then 8 bits of class: one sortable integer.
_BITS_XY, _BITS_Z, _BITS_CLASS = 21, 14, 8
_MERGE_AT = 4_000_000


@dataclass(frozen=True, eq=False)
class Cloud:
    """Merged points; at most one a cell.

    Args:
        cell_m: Edge of a cell, metres.
        key: (M,) uint64 cells, ascending.
        xyz: (M,) float32 mean of the points in the cell, metres.
        label: (M,) uint8 class that most of the cell's labelled points have (of two alike the lower id), or 255 if none
            is labelled.
    """

    cell_m: float
    key: npt.NDArray[np.uint64]
    xyz: npt.NDArray[np.float32]
    label: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        """Return the number of cells."""
        return len(self.key)

    def where(self, mask: npt.NDArray[np.bool_]) -> Cloud:
        """Return the part of the cloud that a (M,) mask selects."""
        return Cloud(self.cell_m, self.key[mask], self.xyz[mask], self.label[mask])

    def label_at(self, xyz: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
        """Return the (N,) uint8 class of the cells that hold (N, 3) points; 255 where there is none."""
        if not len(self):
            return np.full(len(xyz), IGNORE, dtype=np.uint8)
        wanted = _cell_keys(xyz, self.cell_m)
        position = np.minimum(np.searchsorted(self.key, wanted), len(self) - 1)
        return np.where(self.key[position] == wanted, self.label[position], np.uint8(IGNORE))


class CloudBuilder:
    """Collects points of many sweeps.

    Args:
        cell_m: Edge of a cell, metres.
    """

    def __init__(self, cell_m: float) -> None:
        self._cell_m = cell_m
        self._parts: list[tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64], npt.NDArray[np.float64]]] = []
        self._merge_at = _MERGE_AT

    def add(self, xyz: npt.NDArray[np.floating], label: npt.NDArray[np.uint8]) -> None:
        """Add (N, 3) points in metres with (N,) classes 1 to N, 255 where unlabelled.

        Raises:
            DataError: If a point lies too far from the frame's origin to be of the same sequence.
        """
        if not len(xyz):
            return
        key = (_cell_keys(xyz, self._cell_m) << np.uint64(_BITS_CLASS)) | label
        self._parts.append(_merge(key, np.ones(len(xyz), np.int64), xyz.astype(np.float64)))
        if sum(len(part[0]) for part in self._parts) > self._merge_at:
            self._merge_parts()
            self._merge_at = 2 * len(self._parts[0][0]) + _MERGE_AT

    def build(self) -> Cloud:
        """Return the merged cloud."""
        if not self._parts:
            return Cloud(self._cell_m, np.zeros(0, np.uint64), np.zeros((0, 3), np.float32), np.zeros(0, np.uint8))
        self._merge_parts()
        key, count, total = self._parts[0]
        cell = key >> np.uint64(_BITS_CLASS)
        label = (key & np.uint64(IGNORE)).astype(np.uint8)
        starts = _run_starts(cell)
        mean = np.add.reduceat(total, starts, axis=0) / np.add.reduceat(count, starts)[:, None]
        # Within a cell: labelled before unlabelled, then by count; the sort is stable, so equal counts stay by class.
        order = np.lexsort((-count, label == IGNORE, cell))
        return Cloud(self._cell_m, cell[starts], mean.astype(np.float32), label[order][starts])

    def _merge_parts(self) -> None:
        key, count, total = (np.concatenate(columns) for columns in zip(*self._parts, strict=True))
        self._parts = [_merge(key, count, total)]


def _merge(
    key: npt.NDArray[np.uint64], count: npt.NDArray[np.int64], total: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Sum the counts and coordinates of equal keys; the result is sorted by key."""
    order = np.argsort(key, kind="stable")
    key = key[order]
    starts = _run_starts(key)
    return key[starts], np.add.reduceat(count[order], starts), np.add.reduceat(total[order], starts, axis=0)


def _run_starts(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.intp]:
    """Return where each run of equal values starts."""
    return np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))


def _cell_keys(xyz: npt.NDArray[np.floating], cell_m: float) -> npt.NDArray[np.uint64]:
    """Return the (N,) uint64 key of the cell of each (N, 3) point."""
    half = np.array([1 << (_BITS_XY - 1), 1 << (_BITS_XY - 1), 1 << (_BITS_Z - 1)])
    cell = np.floor(xyz.astype(np.float64) / cell_m).astype(np.int64) + half
    if ((cell < 0) | (cell >= 2 * half)).any():
        reach = half * cell_m
        raise DataError(
            f"a point lies {np.abs(xyz).max():.0f} m from where its sequence starts",
            expected=f"at most {reach[0]:.0f} m aside and {reach[2]:.0f} m up or down",
            remedy="check world_SE3_ego of the sequence's frames",
        )
    packed = (cell[:, 0] << (_BITS_XY + _BITS_Z)) | (cell[:, 1] << _BITS_Z) | cell[:, 2]
    return packed.astype(np.uint64)
