"""Aggregated points: what many sweeps saw, merged on a fine lattice of cells so that it fits in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from spot_ray.errors import DataError
from spot_ray.schema.taxonomy import IGNORE

# A cell's key is x, y (21 bits each), z (14 bits), then 8 bits of class: one sortable integer. Classes are never 0, so
# that no key is.
_BITS_XY, _BITS_Z, _BITS_CLASS = 21, 14, 8
_HALF_XY, _HALF_Z = 1 << (_BITS_XY - 1), 1 << (_BITS_Z - 1)

_STEPS = 256
"""Places along a cell's edge that a point's coordinates are rounded to before they are summed: sums of integers do not
depend on the order in which the sweeps come, and 0.1 m / 256 is far below any LiDAR's noise."""

_FIRST_CAPACITY = 1 << 10
"""Small, since each of hundreds of objects has a table of its own."""
_MOST_FULL = 0.6


@dataclass(frozen=True, eq=False)
class Cloud:
    """Merged points; at most one a cell.

    Args:
        cell_m: Edge of a cell, metres.
        key: (M,) uint64 cells, ascending: by x, then y, then z.
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

    def joined(self, other: Cloud) -> Cloud:
        """Return this cloud and another one of the same cells together; a cell of both stays twice."""
        key = np.concatenate([self.key, other.key])
        order = np.argsort(key, kind="stable")
        xyz, label = np.concatenate([self.xyz, other.xyz]), np.concatenate([self.label, other.label])
        return Cloud(self.cell_m, key[order], xyz[order], label[order])

    def slab(self, low_m: float, high_m: float) -> slice:
        """Return the rows of the cells that reach into `low_m` <= x < `high_m`; no other row is touched."""
        bounds = np.floor(np.array([low_m, high_m + self.cell_m]) / self.cell_m).astype(np.int64) + _HALF_XY
        first, last = np.searchsorted(
            self.key, (bounds.clip(0, 2 * _HALF_XY) << (_BITS_XY + _BITS_Z)).astype(np.uint64)
        ).tolist()
        return slice(first, last)

    def label_at(self, xyz: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
        """Return the (N,) uint8 class of the cells that hold (N, 3) points; 255 where there is none."""
        row = self.row_of(xyz)
        result = np.full(len(xyz), IGNORE, dtype=np.uint8)
        result[row >= 0] = self.label[row[row >= 0]]
        return result

    def row_of(self, xyz: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
        """Return the (N,) int64 row of the cells that hold (N, 3) points; -1 where there is none."""
        if not len(self):
            return np.full(len(xyz), -1, dtype=np.int64)
        wanted = _cell_keys(np.ascontiguousarray(xyz, np.float64), self.cell_m)
        position = np.minimum(np.searchsorted(self.key, wanted), len(self) - 1)
        return np.where(self.key[position] == wanted, position, -1)


class CloudBuilder:
    """Collects points of many sweeps, in a hash table of cells and classes.

    Args:
        cell_m: Edge of a cell, metres.
    """

    def __init__(self, cell_m: float) -> None:
        self._cell_m = cell_m
        self._key = np.zeros(_FIRST_CAPACITY, np.uint64)
        self._sums = np.zeros((_FIRST_CAPACITY, 4), np.uint32)
        self._used = 0

    def add(self, xyz: npt.NDArray[np.floating], label: npt.NDArray[np.uint8]) -> None:
        """Add (N, 3) points in metres with (N,) classes 1 to N, 255 where unlabelled.

        Raises:
            DataError: If a point lies too far from the frame's origin to be of the same sequence.
        """
        if not len(xyz):
            return
        xyz = np.ascontiguousarray(xyz, np.float64)
        reach = np.array([_HALF_XY, _HALF_XY, _HALF_Z]) * self._cell_m
        if not _within(xyz, reach):
            raise DataError(
                f"a point lies {np.abs(xyz).max():.0f} m from where its sequence starts",
                expected=f"at most {reach[0]:.0f} m aside and {reach[2]:.0f} m up or down",
                remedy="check world_SE3_ego of the sequence's frames",
            )
        self._make_room(len(xyz))
        self._used += _insert_points(self._key, self._sums, xyz, label, self._cell_m)

    def add_all_of(self, other: CloudBuilder) -> None:
        """Add what another builder of the same cells has."""
        used = other._key != 0
        key, sums = other._key[used], other._sums[used]
        self._make_room(len(key))
        self._used += _insert_cells(self._key, self._sums, key, sums)

    def build(self) -> Cloud:
        """Return the merged cloud."""
        used = np.flatnonzero(self._key)
        key = self._key[used]
        order = np.argsort(key)
        used, key = used[order], key[order]
        sums = self._sums[used].astype(np.int64)
        cell = key >> np.uint64(_BITS_CLASS)
        starts = _run_starts(cell)
        total = np.add.reduceat(sums, starts, axis=0) if len(starts) else np.zeros((0, 4), np.int64)
        corner = _unpack(cell[starts])
        # Half a step: rounding took each point to the lower side.
        mean = corner + (total[:, :3] / total[:, 3:] + 0.5) / _STEPS
        return Cloud(
            self._cell_m,
            cell[starts],
            (mean * self._cell_m).astype(np.float32),
            _winners((key & np.uint64(IGNORE)).astype(np.uint8), sums[:, 3], starts),
        )

    def _make_room(self, more: int) -> None:
        capacity = len(self._key)
        while (self._used + more) > _MOST_FULL * capacity:
            capacity *= 2
        if capacity > len(self._key):
            used = self._key != 0
            key, sums = self._key[used], self._sums[used]
            self._key, self._sums = np.zeros(capacity, np.uint64), np.zeros((capacity, 4), np.uint32)
            _insert_cells(self._key, self._sums, key, sums)


def _winners(
    label: npt.NDArray[np.uint8], count: npt.NDArray[np.int64], starts: npt.NDArray[np.intp]
) -> npt.NDArray[np.uint8]:
    """Return for each run of entries the labelled class with the highest count, of equal ones the lowest id."""
    if not len(starts):
        return np.zeros(0, np.uint8)
    # An entry's rank, all in one integer: labelled before unlabelled, then the count, then the lower id.
    rank = (count << 8) + (IGNORE - label.astype(np.int64))
    rank[label == IGNORE] = 0
    best = np.maximum.reduceat(rank, starts)
    return np.where(best > 0, IGNORE - (best & IGNORE), IGNORE).astype(np.uint8)


def _run_starts(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.intp]:
    """Return where each run of equal values starts."""
    if not len(values):
        return np.zeros(0, np.intp)
    return np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))


def _unpack(cell: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Return (M, 3) int64 x, y, z of cells from their keys without class."""
    packed = cell.astype(np.int64)
    x = (packed >> (_BITS_XY + _BITS_Z)) - _HALF_XY
    y = ((packed >> _BITS_Z) & (2 * _HALF_XY - 1)) - _HALF_XY
    z = (packed & (2 * _HALF_Z - 1)) - _HALF_Z
    return np.stack([x, y, z], axis=1)


@numba.njit(cache=True, nogil=True, inline="always")
def _key_of(x, y, z):  # type: ignore[no-untyped-def]
    """Return the key, without class, of integer cell coordinates."""
    return (
        (np.uint64(x + _HALF_XY) << np.uint64(_BITS_XY + _BITS_Z))
        | (np.uint64(y + _HALF_XY) << np.uint64(_BITS_Z))
        | np.uint64(z + _HALF_Z)
    )


@numba.njit(cache=True, nogil=True)
def _cell_keys(xyz: npt.NDArray[np.float64], cell_m: float) -> npt.NDArray[np.uint64]:
    """Return the (N,) uint64 key of the cell of each (N, 3) point."""
    key = np.empty(len(xyz), np.uint64)
    for n in range(len(xyz)):
        key[n] = _key_of(
            int(np.floor(xyz[n, 0] / cell_m)), int(np.floor(xyz[n, 1] / cell_m)), int(np.floor(xyz[n, 2] / cell_m))
        )
    return key


@numba.njit(cache=True, nogil=True, inline="always")
def _slot(table, key):  # type: ignore[no-untyped-def]
    """Return where a key is in the table, or the empty place where it belongs."""
    mask = np.uint64(len(table) - 1)
    # Fibonacci hashing. Only the highest bits of the product depend on all of the key's, so they are what is scaled to
    # the table's length.
    slot = (((key * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)) * np.uint64(len(table))) >> np.uint64(32)
    while table[slot] != 0 and table[slot] != key:
        slot = (slot + np.uint64(1)) & mask
    return slot


@numba.njit(cache=True, nogil=True)
def _within(xyz: npt.NDArray[np.float64], reach: npt.NDArray[np.float64]) -> bool:
    """Tell whether all (N, 3) points lie closer to the origin than `reach` along each axis."""
    for n in range(len(xyz)):
        for axis in range(3):
            if abs(xyz[n, axis]) >= reach[axis]:
                return False
    return True


@numba.njit(cache=True, nogil=True)
def _insert_points(
    table: npt.NDArray[np.uint64],
    sums: npt.NDArray[np.uint32],
    xyz: npt.NDArray[np.float64],
    label: npt.NDArray[np.uint8],
    cell_m: float,
) -> int:
    """Count points in; returns how many entries are new."""
    new = 0
    for n in range(len(xyz)):
        x, y, z = xyz[n, 0] / cell_m, xyz[n, 1] / cell_m, xyz[n, 2] / cell_m
        i, j, k = np.floor(x), np.floor(y), np.floor(z)
        key = (_key_of(int(i), int(j), int(k)) << np.uint64(_BITS_CLASS)) | np.uint64(label[n])
        slot = _slot(table, key)
        if table[slot] == 0:
            table[slot] = key
            new += 1
        sums[slot, 0] += np.uint32((x - i) * _STEPS)
        sums[slot, 1] += np.uint32((y - j) * _STEPS)
        sums[slot, 2] += np.uint32((z - k) * _STEPS)
        sums[slot, 3] += np.uint32(1)
    return new


@numba.njit(cache=True, nogil=True)
def _insert_cells(
    table: npt.NDArray[np.uint64],
    sums: npt.NDArray[np.uint32],
    key: npt.NDArray[np.uint64],
    cell_sums: npt.NDArray[np.uint32],
) -> int:
    """Count the points of cells in; returns how many entries are new."""
    new = 0
    for n in range(len(key)):
        slot = _slot(table, key[n])
        if table[slot] == 0:
            table[slot] = key[n]
            new += 1
        for column in range(4):
            sums[slot, column] += cell_sums[n, column]
    return new
