"""What moved, told by rays: a place where something was hit in one sweep and that the rays of others passed.

For sequences whose objects nobody annotated. A thing that drives through is hit in the few sweeps in which it is there,
and passed in all others that look there; the trail that it would leave can be told from what stands by this alone. What
stands is passed too: a ray grazes a wall or a roof, passes a post or gets through foliage within the cell of 0.2 m that
holds them. But it is hit about as often in the cells around, and most cells of a thing that stands are never passed,
as most cells of a thing that moves are: neighbours vote.

The idea is that of Removert (Kim and Kim, IROS 2020) and ERASOR (Lim et al., RA-L 2021), with rays that are cast
through cells as in OctoMap (Hornung et al., Autonomous Robots 2013), not with range images or columns.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from spot_ray.geometry import se3
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.occupancy.cloud import Cloud

PERIODS = 32
"""A segment is split into at most so many periods, the bits of a cell's two masks. Within one of them a thing that is
both hit and passed counts as hit. All sweeps tell what is hit; the rays of the first sweep of each period tell what is
passed, so that a long segment costs no more than a short one."""

_BELOW_M, _ABOVE_M = 3.0, 4.5
"""Rays count so far below and above the ground under the vehicle: movers are there, the rest of the space is spared."""

_BEHIND_M = 0.5
"""A ray passed a cell if it ends so far behind it: range noise, and surfaces at grazing angles."""

_PASSED_SHARE = 0.5
"""A cell conflicts if it was passed in at least this many periods for each one in which something was hit in it or next
to it. On synthetic drives, at 1 twice as much of what moves stays, slow traffic first; at a third, a
third more of parked cars is lost."""

_NEIGHBOURS = (4, 3)
"""Cells vote on those that lie at most so many cells aside, and up or down: 0.8 m and 0.6 m."""

_CONFLICTING_SHARE = 0.5
_STANDING_SHARE = 0.2
"""Something moved where more than the first share of the votes says so; it stands where at most the second does."""

_FEWEST_VOTES = 3

_VOTING_M = (0.25, 4.0)
_LOWEST_M = 0.1
"""Cells vote whose height over the ground is within the first two; lower ones are grazed by rays to the ground, and
follow their neighbours down to the last, below which it is the ground itself."""

_STANDING_S = 1.0
"""What could move and stands must have been hit over so long a time."""

_FIRST_BLOCKS = 1 << 11
_SIDE = 8


class SeenSpace:
    """In which periods of a segment the cells of space were hit, and in which they were passed.

    Blocks of 8 × 8 × 8 cells are allocated when a ray first touches them: 40 m of a street take 50 to 85 MB.

    Args:
        grid: The frames' voxel grid.
        seq_SE3_ego: Poses of the segment's sweeps in the sequence frame.
        cell_m: Edge of a cell, metres; cell (0, 0, 0) starts at the sequence frame's origin.
        margin_z_m: Space above and below for poses whose height is corrected later, metres.
    """

    def __init__(
        self,
        grid: VoxelGrid,
        seq_SE3_ego: Sequence[npt.NDArray[np.float64]],
        cell_m: float,
        *,
        margin_z_m: float = 0.0,
    ) -> None:
        corners = np.array(list(itertools.product(*zip(grid.lower_m, grid.upper_m, strict=True))))
        covered = np.concatenate([se3.transform_points(pose, corners) for pose in seq_SE3_ego])
        heights = [float(pose[2, 3]) for pose in seq_SE3_ego]
        low = np.array([*covered.min(axis=0)[:2], min(heights) - _BELOW_M - margin_z_m])
        high = np.array([*covered.max(axis=0)[:2], max(heights) + _ABOVE_M + margin_z_m])
        self.cell_m = cell_m
        self.first = np.floor(low / cell_m).astype(np.int64)
        self.blocks = np.ceil((high / cell_m - self.first) / _SIDE).astype(np.int64)
        self.passed = _Pages(self.blocks)
        self.hit = _Pages(self.blocks)
        self.start_ns = np.zeros(PERIODS, np.int64)
        self._num_sweeps = len(seq_SE3_ego)
        self._added = 0
        self._period = -1

    def add(
        self,
        xyz: npt.NDArray[np.floating],
        origins: npt.NDArray[np.float64],
        seq_SE3_ego: npt.NDArray[np.float64],
        hits: npt.NDArray[np.bool_],
        timestamp_ns: int,
    ) -> None:
        """Add the next sweep of the segment.

        Args:
            xyz: (N, 3) ends of its rays, ego frame, metres.
            origins: (N, 3) their origins.
            seq_SE3_ego: (4, 4) its pose.
            hits: (N,) bool: which of them hit something that is not the ground.
            timestamp_ns: Its time.
        """
        period = self._added * min(PERIODS, self._num_sweeps) // self._num_sweeps
        begins, self._period = period != self._period, period
        self._added += 1
        bit = np.uint32(1 << period)
        to_cells = seq_SE3_ego[:3] / self.cell_m
        to_cells[:, 3] -= self.first
        middle = float(to_cells[2, 3])
        slab = middle - _BELOW_M / self.cell_m, middle + _ABOVE_M / self.cell_m
        done = len(xyz)
        if begins:
            self.start_ns[period] = timestamp_ns
            done = 0
        while done < len(xyz):
            self.passed.make_room()
            done, self.passed.used = _mark_passed(
                self.passed.directory, self.passed.bits, self.passed.used, self.blocks, origins, xyz, to_cells, *slab,
                _BEHIND_M / self.cell_m, bit, done,
            )  # fmt: skip
        done = 0
        while done < len(xyz):
            self.hit.make_room()
            done, self.hit.used = _mark_hit(
                self.hit.directory, self.hit.bits, self.hit.used, self.blocks, xyz, hits, to_cells, bit, done
            )


class _Pages:
    """A sparse lattice of bit masks: a directory of blocks, and those that are in use.

    Args:
        blocks: (3,) int64 blocks of the lattice.
    """

    def __init__(self, blocks: npt.NDArray[np.int64]) -> None:
        self.directory = np.full(math.prod(blocks.tolist()), -1, np.int32)
        self.bits = np.zeros((_FIRST_BLOCKS, _SIDE**3), np.uint32)
        self.used = 0

    def make_room(self) -> None:
        """Double the room if less than a quarter is left, so that at least one ray finds some."""
        if 4 * self.used > 3 * len(self.bits):
            self.bits = np.concatenate([self.bits, np.zeros_like(self.bits)])


@dataclass(frozen=True, eq=False)
class Verdict:
    """What rays tell of the cells of a cloud.

    Args:
        moved: (M,) bool: it was there for a part of the time only.
        stood: (M,) bool: it was seen for long, and was there all the time.
    """

    moved: npt.NDArray[np.bool_]
    stood: npt.NDArray[np.bool_]


def judge(spaces: Sequence[SeenSpace], cloud: Cloud, over_ground: npt.NDArray[np.floating]) -> Verdict:
    """Tell which points of a cloud moved.

    Args:
        spaces: What was seen in the segments that the cloud is made of; at least one.
        cloud: Points that do not belong to the ground, sequence frame.
        over_ground: (M,) their height over the ground, metres; what lies where it is NaN is neither called moved nor
            stood.
    """
    cell, row = np.unique(np.floor(cloud.xyz / spaces[0].cell_m).astype(np.int64), axis=0, return_inverse=True)
    height = np.full(len(cell), np.nan)
    np.fmax.at(height, row, over_ground)
    hits, passes = np.zeros(len(cell), np.int64), np.zeros(len(cell), np.int64)
    first_ns, last_ns = np.full(len(cell), np.iinfo(np.int64).max), np.zeros(len(cell), np.int64)
    for space in spaces:
        _look_up(
            cell - space.first, space.blocks, space.hit.directory, space.hit.bits, space.passed.directory,
            space.passed.bits, space.start_ns, hits, passes, first_ns, last_ns,
        )  # fmt: skip
    conflicts = (passes > 0) & (passes >= _PASSED_SHARE * hits)
    votes, against = _poll(cell, (height > _VOTING_M[0]) & (height < _VOTING_M[1]), conflicts, *_NEIGHBOURS)
    moved = (against > _CONFLICTING_SHARE * votes) & (votes >= _FEWEST_VOTES)
    stood = (against <= _STANDING_SHARE * votes) & (votes >= _FEWEST_VOTES) & ~conflicts
    stood &= last_ns - first_ns >= _STANDING_S * 1e9
    high = over_ground > _LOWEST_M
    return Verdict(moved[row] & high, stood[row] & high)


def _poll(
    cell: npt.NDArray[np.int64],
    votes: npt.NDArray[np.bool_],
    conflicts: npt.NDArray[np.bool_],
    aside: int,
    up: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return for each of (C, 3) cells, ascending by x, y, z, how many around vote, and how many of these conflict."""
    low = cell[:, :2].min(axis=0, initial=0) - aside
    shape = cell[:, :2].max(axis=0, initial=0) - low + aside + 1
    column = (cell[:, 0] - low[0]) * shape[1] + cell[:, 1] - low[1]
    voters = np.flatnonzero(votes)
    first = np.searchsorted(column[voters], np.arange(shape[0] * shape[1] + 1)).astype(np.int64)
    count = np.concatenate([[0], np.cumsum(conflicts[voters])])
    result: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] = _count_around(
        column, cell[:, 2], first, cell[voters, 2], count, shape[1], aside, up
    )
    return result


@numba.njit(cache=True, nogil=True)
def _count_around(
    column: npt.NDArray[np.int64],
    z: npt.NDArray[np.int64],
    first: npt.NDArray[np.int64],
    voter_z: npt.NDArray[np.int64],
    count: npt.NDArray[np.int64],
    row_length: int,
    aside: int,
    up: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Count column by column: both sides ascend in z, so two bounds move along each column around."""
    votes, against = np.zeros(len(z), np.int64), np.zeros(len(z), np.int64)
    start = 0
    while start < len(z):
        stop = start
        while stop < len(z) and column[stop] == column[start]:
            stop += 1
        for dx in range(-aside, aside + 1):
            for dy in range(-aside, aside + 1):
                other = column[start] + dx * row_length + dy
                low, end = first[other], first[other + 1]
                high = low
                for n in range(start, stop):
                    while low < end and voter_z[low] < z[n] - up:
                        low += 1
                    while high < end and voter_z[high] <= z[n] + up:
                        high += 1
                    votes[n] += high - low
                    against[n] += count[high] - count[low]
        start = stop
    return votes, against


@numba.njit(cache=True, nogil=True, inline="always")
def _block_of(blocks, x, y, z):  # type: ignore[no-untyped-def]
    """Return the place in the directory of the block that holds a cell."""
    return ((x >> 3) * blocks[1] + (y >> 3)) * blocks[2] + (z >> 3)


@numba.njit(cache=True, nogil=True, inline="always")
def _place_of(x, y, z):  # type: ignore[no-untyped-def]
    """Return the place of a cell within its block."""
    return ((x & 7) << 6) | ((y & 7) << 3) | (z & 7)


@numba.njit(cache=True, nogil=True)
def _look_up(
    cell: npt.NDArray[np.int64],
    blocks: npt.NDArray[np.int64],
    hit_directory: npt.NDArray[np.int32],
    hit_bits: npt.NDArray[np.uint32],
    passed_directory: npt.NDArray[np.int32],
    passed_bits: npt.NDArray[np.uint32],
    start_ns: npt.NDArray[np.int64],
    hits: npt.NDArray[np.int64],
    passes: npt.NDArray[np.int64],
    first_ns: npt.NDArray[np.int64],
    last_ns: npt.NDArray[np.int64],
) -> None:
    """Add the periods in which each cell or one next to it was hit, and those in which the cell was passed instead."""
    nx, ny, nz = blocks[0] * 8, blocks[1] * 8, blocks[2] * 8
    for n in range(len(cell)):
        x, y, z = cell[n, 0], cell[n, 1], cell[n, 2]
        hit = np.uint32(0)
        for i in range(max(x - 1, 0), min(x + 2, nx)):
            for j in range(max(y - 1, 0), min(y + 2, ny)):
                for k in range(max(z - 1, 0), min(z + 2, nz)):
                    block = hit_directory[_block_of(blocks, i, j, k)]
                    if block >= 0:
                        hit |= hit_bits[block, _place_of(i, j, k)]
        passed = np.uint32(0)
        if 0 <= x < nx and 0 <= y < ny and 0 <= z < nz:
            block = passed_directory[_block_of(blocks, x, y, z)]
            if block >= 0:
                passed = passed_bits[block, _place_of(x, y, z)] & ~hit
        for period in range(len(start_ns)):
            if (hit >> np.uint32(period)) & np.uint32(1):
                hits[n] += 1
                first_ns[n] = min(first_ns[n], start_ns[period])
                last_ns[n] = max(last_ns[n], start_ns[period])
            elif (passed >> np.uint32(period)) & np.uint32(1):
                passes[n] += 1


@numba.njit(cache=True, nogil=True)
def _mark_hit(
    directory: npt.NDArray[np.int32],
    bits: npt.NDArray[np.uint32],
    used: int,
    blocks: npt.NDArray[np.int64],
    xyz: npt.NDArray[np.floating],
    hits: npt.NDArray[np.bool_],
    to_cells: npt.NDArray[np.float64],
    bit: np.uint32,
    start: int,
) -> tuple[int, int]:
    """Mark the cells that hold ends from ray `start` on; returns the first one that found no room, and blocks used."""
    for n in range(start, len(xyz)):
        if not hits[n]:
            continue
        x, y, z = _cell_at(to_cells, xyz[n, 0], xyz[n, 1], xyz[n, 2])
        i, j, k = math.floor(x), math.floor(y), math.floor(z)
        if 0 <= i < blocks[0] * 8 and 0 <= j < blocks[1] * 8 and 0 <= k < blocks[2] * 8:
            place = _block_of(blocks, i, j, k)
            if directory[place] < 0:
                if used == len(bits):
                    return n, used
                directory[place] = used
                used += 1
            bits[directory[place], _place_of(i, j, k)] |= bit
    return len(xyz), used


@numba.njit(cache=True, nogil=True, inline="always")
def _cell_at(to_cells, x, y, z):  # type: ignore[no-untyped-def]
    """Return a point in units of cells."""
    return (
        to_cells[0, 0] * x + to_cells[0, 1] * y + to_cells[0, 2] * z + to_cells[0, 3],
        to_cells[1, 0] * x + to_cells[1, 1] * y + to_cells[1, 2] * z + to_cells[1, 3],
        to_cells[2, 0] * x + to_cells[2, 1] * y + to_cells[2, 2] * z + to_cells[2, 3],
    )


@numba.njit(cache=True, nogil=True)
def _mark_passed(
    directory: npt.NDArray[np.int32],
    bits: npt.NDArray[np.uint32],
    used: int,
    blocks: npt.NDArray[np.int64],
    origins: npt.NDArray[np.float64],
    xyz: npt.NDArray[np.floating],
    to_cells: npt.NDArray[np.float64],
    lowest: float,
    highest: float,
    behind: float,
    bit: np.uint32,
    start: int,
) -> tuple[int, int]:
    """Mark the cells that rays pass, from ray `start` on; returns the first one that found no room, and blocks used.

    The walk is that of :mod:`spot_ray.geometry.rays`, within a slab of height and up to `behind` before the end; all
    three are in units of cells.
    """
    cell, left, stride = np.empty(3, np.int64), np.empty(3, np.int64), np.empty(3, np.int64)
    t_next, t_step = np.empty(3, np.float64), np.empty(3, np.float64)
    lower, upper = np.zeros(3), np.empty(3)
    for axis in range(3):
        upper[axis] = blocks[axis] * 8
    lower[2], upper[2] = max(lowest, 0.0), min(highest, upper[2])
    for n in range(start, len(xyz)):
        a = _cell_at(to_cells, origins[n, 0], origins[n, 1], origins[n, 2])
        b = _cell_at(to_cells, xyz[n, 0], xyz[n, 1], xyz[n, 2])
        length = math.sqrt((b[0] - a[0]) ** 2 + (b[1] - a[1]) ** 2 + (b[2] - a[2]) ** 2)
        if length <= behind:
            continue
        t_in, t_out = 0.0, 1.0 - behind / length
        for axis in range(3):
            d = b[axis] - a[axis]
            if d == 0.0:
                if a[axis] < lower[axis] or a[axis] >= upper[axis]:
                    t_in = 2.0
            else:
                t_low, t_high = (lower[axis] - a[axis]) / d, (upper[axis] - a[axis]) / d
                t_in = max(t_in, min(t_low, t_high))
                t_out = min(t_out, max(t_low, t_high))
        if not t_in < t_out:
            continue
        steps = 0
        for axis in range(3):
            d = b[axis] - a[axis]
            most = blocks[axis] * 8 - 1
            first = min(max(math.floor(a[axis] + t_in * d), 0), most)
            last = min(max(math.floor(a[axis] + t_out * d), 0), most)
            cell[axis] = first
            left[axis] = abs(last - first)
            steps += left[axis]
            stride[axis] = 1 if last > first else -1
            if left[axis] > 0:
                t_step[axis] = 1.0 / abs(d)
                t_next[axis] = (first + (1 if last > first else 0) - a[axis]) / d
            else:
                t_step[axis], t_next[axis] = 0.0, math.inf
        x, y, z = cell[0], cell[1], cell[2]
        place, block = np.int64(-1), np.int32(-1)
        for step in range(steps + 1):
            here = _block_of(blocks, x, y, z)
            if here != place:
                place = here
                if directory[place] < 0:
                    if used == len(bits):
                        return n, used
                    directory[place] = used
                    used += 1
                block = directory[place]
            bits[block, _place_of(x, y, z)] |= bit
            if step == steps:
                break
            if t_next[0] <= t_next[1]:
                axis = 0 if t_next[0] <= t_next[2] else 2
            else:
                axis = 1 if t_next[1] <= t_next[2] else 2
            if axis == 0:
                x += stride[0]
            elif axis == 1:
                y += stride[1]
            else:
                z += stride[2]
            left[axis] -= 1
            t_next[axis] = t_next[axis] + t_step[axis] if left[axis] > 0 else math.inf
    return len(xyz), used
