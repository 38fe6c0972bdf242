"""Compiled loops over the voxels of a sample's labels; imported when they are needed, as numba takes its time."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt


# NumPy's division: no check for zero, so that the compiler may keep it short.
@numba.njit(cache=True, nogil=True, error_model="numpy")
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
    """Swap or mirror the x and y of voxels.

    The voxels of a column (one x and y, any z) stay together and in order, so that columns are moved, not voxels. New y
    follows the one of old x and y that the old order is sorted by, or its mirror: taken forwards or backwards, the
    columns come to each new x in their new order, and need no sort.

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
    first = np.empty(count + 1, np.int64)
    shift = np.empty(count, np.int32)
    new_x = np.empty(count, np.int32)
    columns, end = 0, 0
    for i in range(count):
        if index[i] >= end:
            column = np.uint32(index[i]) // np.uint32(layers)
            old_x = column // np.uint32(size)
            a, b = int(old_x), int(column - old_x * np.uint32(size))
            x, y = (b, a) if swap else (a, b)
            x = x if x_forward else size - 1 - x
            y = y if y_forward else size - 1 - y
            first[columns], new_x[columns] = i, x
            shift[columns] = (x * size + y - int(column)) * layers
            columns, end = columns + 1, (int(column) + 1) * layers
    first[columns] = count
    place = np.zeros(size + 1, np.int64)
    for n in range(columns):
        place[new_x[n] + 1] += first[n + 1] - first[n]
    for row in range(size):
        place[row + 1] += place[row]
    for step in range(columns):
        n = step if y_forward else columns - 1 - step
        to = int(place[new_x[n]])
        for i in range(first[n], first[n + 1]):
            moved_index[to] = index[i] + shift[n]
            moved_semantic[to] = semantic[i]
            to += 1
        place[new_x[n]] = to
