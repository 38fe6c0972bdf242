"""Compiled loops over the voxels of a sample's labels; imported when they are needed, as numba takes its time."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt


@numba.njit(cache=True, nogil=True)
def move_columns(
    index: npt.NDArray[np.int32],
    semantic: npt.NDArray[np.uint8],
    shape: tuple[int, int],
    swap: bool,
    x_forward: bool,
    y_forward: bool,
    moved_index: npt.NDArray[np.int32],
    moved_semantic: npt.NDArray[np.uint8],
) -> None:
    """Swap or mirror the x and y of voxels, and sort them again.

    The voxels of a column (one x and y, any z) stay in order, so that the columns alone are sorted: by counting, as
    there are few.

    Args:
        index: (M,) int32 linear indices, ascending.
        semantic: (M,) uint8 their classes.
        shape: Cells along x, as many as along y, and layers along z.
        swap: Whether x becomes y and y becomes x, which is done first.
        x_forward: Whether x then stays, and is not mirrored.
        y_forward: Whether y then stays, and is not mirrored.
        moved_index: (M,) int32, filled, ascending.
        moved_semantic: (M,) uint8, filled.
    """
    count, (size, layers) = len(index), shape
    # Products, as divisions take five times as long. Half a voxel more, and none falls short of its whole number.
    a_layer, a_row = 1.0 / layers, 1.0 / size
    new_column = np.empty(count, np.int32)
    place = np.zeros(size * size + 1, np.int32)
    for i in range(count):
        column = int((index[i] + 0.5) * a_layer)
        old_x = int((column + 0.5) * a_row)
        old_y = column - old_x * size
        x, y = (old_y, old_x) if swap else (old_x, old_y)
        x = x if x_forward else size - 1 - x
        y = y if y_forward else size - 1 - y
        new_column[i] = x * size + y
    for i in range(count):
        place[new_column[i] + 1] += 1
    for n in range(size * size):
        place[n + 1] += place[n]
    for i in range(count):
        z = index[i] - int((index[i] + 0.5) * a_layer) * layers
        to = place[new_column[i]]
        place[new_column[i]] = to + 1
        moved_index[to] = new_column[i] * layers + z
        moved_semantic[to] = semantic[i]


@numba.njit(cache=True, nogil=True)
def map_ids(
    ids: npt.NDArray[np.unsignedinteger[Any]], table: npt.NDArray[np.uint8], mapped: npt.NDArray[np.uint8]
) -> None:
    """Look ids up in a table: NumPy would make eight bytes of each before it does.

    Args:
        ids: (M,) uint8 or uint16.
        table: (256,) or (65536,) uint8.
        mapped: (M,) uint8, filled.
    """
    for i in range(len(ids)):
        mapped[i] = table[ids[i]]
