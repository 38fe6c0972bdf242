"""Stages of reading a frame in plain NumPy passes: what `frame_cost.py` measures the compiled loops against.

The results are the same bit for bit, which `frame_cost.py` checks before it measures.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from spot_ray.geometry.grid import VoxelGrid
from spot_ray.schema.sweep import Sweep

_BLOCK = 16384
_POINT = np.dtype("V12")


def values(table: pa.Table) -> dict[str, pa.Scalar]:
    """Return the first row as Arrow's scalars, which copy the blobs."""
    return {name: table.column(name)[0] for name in table.column_names}


def decode_xyz(buffer: pa.Buffer, scale: float, count: int) -> npt.NDArray[np.float32]:
    """Return the (N, 3) coordinates of a blob with steps: a block of points at a time, a pass an operation."""
    data = np.frombuffer(buffer, np.uint8)
    width, lane_width, numbers = int(data[0]), int(data[1]), data[4:]
    planes = numbers[lane_width * count :].reshape(width, 3, count)
    xyz = np.empty((count, 3), dtype=np.float32)
    order = None
    if lane_width:
        lane = _join(numbers[: lane_width * count].reshape(lane_width, count), lane_width)
        order = np.argsort(lane, kind="stable")
    last = np.zeros(3, dtype=np.int32)
    for start in range(0, count, _BLOCK):
        zigzag = _join(planes[:, :, start : start + _BLOCK], 1 << (width - 1).bit_length())
        sign = (zigzag & 1).view(f"i{zigzag.itemsize}")
        np.negative(sign, out=sign)
        zigzag >>= 1
        sign ^= zigzag.view(sign.dtype)
        steps = np.cumsum(sign, axis=1, dtype=np.int32)
        steps += last[:, None]
        last = steps[:, -1]
        part = xyz[start : start + _BLOCK] if order is None else np.empty((steps.shape[1], 3), np.float32)
        part.T[...] = steps
        part *= np.float32(scale)
        if order is not None:
            np.put(xyz.view(_POINT), order[start : start + _BLOCK], part.view(_POINT))
    return xyz


def decode_column(buffer: pa.Buffer, dtype: npt.DTypeLike, count: int) -> npt.NDArray[Any]:
    """Return the (N,) values of a point column."""
    data, target = np.frombuffer(buffer, np.uint8), np.dtype(dtype)
    width, unit, planes = int(data[1]), int(data[2:4].view("<u2")[0]), data[4:].reshape(-1, count)
    if data[0] == ord("f"):
        bits = _join(planes, target.itemsize)
        bits <<= 8 * (target.itemsize - width)
        return bits.view(target)
    numbers = _join(planes, width).view(f"{chr(data[0])}{width}").astype(target, copy=False)
    return numbers if unit == 1 else np.divide(numbers, target.type(unit), out=numbers)


def move_points(xyz: npt.NDArray[np.float32], matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Return points whose x and y are multiplied by a (2, 2) matrix."""
    moved = xyz.copy()
    x, y = (xyz[:, axis].astype(np.float64) for axis in (0, 1))
    for axis in (0, 1):
        moved[:, axis] = matrix[axis, 0] * x + matrix[axis, 1] * y
    return moved


def move_voxels(
    index: npt.NDArray[np.int32], semantic: npt.NDArray[np.uint8], exact: npt.NDArray[np.float64], grid: VoxelGrid
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Return voxels moved by flips and quarter turns, sorted again."""
    size, _, layers = grid.shape
    column, z = np.divmod(index, np.int32(layers))
    cell = np.divmod(column, np.int32(size))
    x, y = (cell[1], cell[0]) if exact[0, 0] == 0 else cell
    x_sign, y_sign = exact.sum(axis=1)
    x, y = (x if x_sign > 0 else size - 1 - x), (y if y_sign > 0 else size - 1 - y)
    linear = (x * np.int32(size) + y) * np.int32(layers) + z
    order = np.argsort(linear, kind="stable")
    return linear[order], semantic[order]


def move_bits(bits: npt.NDArray[np.uint8], exact: npt.NDArray[np.float64], grid: VoxelGrid) -> npt.NDArray[np.uint8]:
    """Return a packed mask moved by flips and quarter turns, its bytes one by one."""
    cells = bits.reshape(*grid.shape[:2], -1)
    turned = cells.swapaxes(0, 1) if exact[0, 0] == 0 else cells
    x_sign, y_sign = exact.sum(axis=1).astype(int)
    return np.ascontiguousarray(turned[::x_sign, ::y_sign]).reshape(-1)


def features(sweep: Sweep) -> npt.NDArray[np.float32]:
    """Return (N, 5) x, y, z, tanh of intensity and of elongation, for a LiDAR whose intensity is unbounded."""
    points = np.empty((len(sweep), 5), dtype=np.float32)
    for axis in range(3):
        points[:, axis] = sweep.xyz[:, axis]
    assert sweep.intensity is not None
    assert sweep.elongation is not None
    scale = np.array([np.nan], np.float32)
    points[:, 3] = np.where(np.isnan(scale), np.tanh(sweep.intensity), sweep.intensity / scale)
    points[:, 4] = np.tanh(sweep.elongation)
    return points


def _join(planes: npt.NDArray[np.uint8], size: int) -> npt.NDArray[Any]:
    numbers = planes[-1].astype(f"u{size}")
    for plane in planes[-2::-1]:
        numbers <<= 8
        numbers |= plane
    return numbers
