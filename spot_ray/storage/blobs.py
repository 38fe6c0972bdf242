"""Point columns as binary blobs and back: what one Parquet value of a frame holds.

Lists would pay Parquet's level decoding, 2 to 3 ms a frame of Waymo. A blob of schema version 2 is a head of four bytes
and then byte planes: the lowest byte of every number, then the next one. General-purpose codecs pack planes better and
unpack them faster than interleaved numbers, and a plane that is nearly all zeros costs next to nothing, so that a frame
that reaches 219 m, beyond what 16 bits hold, is not larger for it.

Coordinates: the head is (bytes a number, bytes a lane id, 0, 0); then come the lane ids' planes, then the coordinates'
planes, each of x, then y, then z. The numbers are steps of 1/256 m (error ≤ 1.96 mm; nothing is clipped), as
differences between neighbours along the lanes, zigzag-coded (0, −1, 1, −2 … become 0, 1, 2, 3 …). A lane is a beam:
many sources list points in the order of firing, where the beams take turns and neighbours are metres apart. Without
lane ids all points are one lane. The order of the points is kept: decoding undoes the sorting by lane. In lossless
datasets, and in frames that reach beyond 2²⁴ steps (65 km), the numbers are the bits of float32 instead.

Other columns: the head is (kind, bytes a number, numbers a unit as uint16). Kind `u`: unsigned numbers; `i`: signed;
`f`: the highest bytes of IEEE floats, whose other bytes are zero. Floats are stored exactly where all of a frame are
whole numbers (nuScenes), hundredths (KITTI, ONCE) or 255ths that 16 bits hold, and where they have 8 significant bits,
as have Waymo's intensities of 49 664 and 139 264 that its users report. Unless the dataset is lossless, other values
of float32 are rounded to 8 significant bits: a relative error ≤ 2⁻⁸, 0.4 %. NaN and infinities stay what they are.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from spot_ray.errors import DataError

Beam = Callable[[slice], npt.NDArray[np.uint16]]

STEP_M = 1 / 256
"""Coordinates are stored in steps of 3.9 mm. A power of two: float32 holds every multiple, so reading adds no error."""

_MOST_STEPS = 2**24
"""Whole numbers up to here are exact in float32."""
_MOST_WHOLE = 65535
_UNITS = (1, 100, 255)
"""Numbers a unit that sources count in: 0, 1 … 255; 0.00, 0.01 … 0.99; 0/255, 1/255 … 255/255."""
_LANE_BITS = 2.0
"""Bits a point that lanes must save: their ids cost up to one, and a sort to undo."""
_SAMPLE = 16384
"""Points in the middle of a frame that tell whether lanes pay."""
_XYZ_HEAD = struct.Struct("<BBxx")
_COLUMN_HEAD = struct.Struct("<cBH")

# glibc returns freed memory to the system, to fetch it back zeroed page by page for the next frame, which takes longer
# than decoding it. It stops once it has seen a larger block come and go; this one is never touched.
np.empty(1 << 24, dtype=np.uint8)


def encode_xyz(xyz: npt.NDArray[np.float32], beam: Beam | None, *, lossless: bool) -> tuple[float, bytes]:
    """Return the step in metres, 0 for float32, and the blob of coordinates.

    Args:
        xyz: (N, 3) float32, finite.
        beam: Returns the uint16 beams of a slice of the points, or None; they become lanes if that pays.
        lossless: Whether to keep every bit.
    """
    if not lossless and float(np.abs(xyz).max()) < _MOST_STEPS * STEP_M:
        steps = np.empty((3, len(xyz)), dtype=np.int32)
        for k in range(3):
            scaled = np.divide(xyz[:, k], STEP_M, dtype=np.float64)
            steps[k] = np.rint(scaled, out=scaled)
        return STEP_M, _encode_steps(steps, beam)
    bits = np.ascontiguousarray(xyz.T).view(np.uint32)
    return 0.0, _XYZ_HEAD.pack(4, 0) + _planes(bits, 4).tobytes()


def decode_xyz(buffer: pa.Buffer, scale: float, count: int, where: str) -> npt.NDArray[np.float32]:
    """Return the (N, 3) float32 coordinates of a blob, in the order in which they were written.

    Args:
        buffer: The blob.
        scale: The step in metres, 0 for float32.
        count: N.
        where: Name of the frame, for messages.

    Raises:
        DataError: If the blob's length does not fit `count`.
    """
    width, lane_width = _XYZ_HEAD.unpack_from(buffer) if buffer.size >= _XYZ_HEAD.size else (0, 0)
    if not 1 <= width <= 4 or lane_width > 2 or buffer.size != _XYZ_HEAD.size + (3 * width + lane_width) * count:
        raise _wrong_length("xyz", buffer, count, where)
    numbers = np.frombuffer(buffer, np.uint8, offset=_XYZ_HEAD.size)
    planes = numbers[lane_width * count :]
    if scale == 0:
        bits = _join(planes.reshape(width, 3 * count), 4)
        return np.ascontiguousarray(bits.view(np.float32).reshape(3, count).T)
    # Imported where numbers are decoded: a machine that only writes has no numba.
    from spot_ray.storage.blob_kernels import sum_steps, undo_lanes

    xyz = np.empty((count, 3), dtype=np.float32)
    sum_steps(planes.reshape(width, 3, count), np.float32(scale), xyz)
    if not lane_width:
        return xyz
    by_lane, xyz = xyz, np.empty_like(xyz)
    undo_lanes(by_lane, _join(numbers[: lane_width * count].reshape(lane_width, count), lane_width), xyz)
    return xyz


def encode_column(values: npt.NDArray[Any], *, lossless: bool) -> bytes:
    """Return the blob of a point column.

    Args:
        values: (N,) booleans, integers or floats.
        lossless: Whether to keep every bit of floats.
    """
    if values.dtype.kind == "f":
        for unit in _UNITS:
            whole = _whole(values, unit)
            if whole is not None:
                return _pack(b"u", _planes(whole, 1 + int(whole.max() > 255)), unit)
        size = values.itemsize
        bits = values.astype(f"f{size}", copy=False).view(f"u{size}")
        planes = _planes(bits if lossless or size != 4 else _round(bits), size)
        lowest = next((k for k in range(size) if planes[k].any()), size - 1)
        return _pack(b"f", planes[lowest:], 1)
    numbers = values.view(np.uint8) if values.dtype.kind == "b" else values
    kind = "u" if numbers.dtype.kind == "u" else "i"
    low, high = numbers.min(), numbers.max()
    width = next(w for w in (1, 2, 4, 8) if np.iinfo(f"{kind}{w}").min <= low and high <= np.iinfo(f"{kind}{w}").max)
    return _pack(kind.encode(), _planes(numbers.astype(f"{kind}{width}").view(f"u{width}"), width), 1)


def decode_column(buffer: pa.Buffer, dtype: npt.DTypeLike, count: int, where: str, column: str) -> npt.NDArray[Any]:
    """Return the (N,) values of a point column.

    Args:
        buffer: The blob.
        dtype: Their dtype in memory.
        count: N.
        where: Name of the frame, for messages.
        column: Name of the column, for messages.

    Raises:
        DataError: If the blob's length does not fit `count`, or it holds no `dtype`.
    """
    target = np.dtype(dtype)
    head = _COLUMN_HEAD.size
    kind, width, unit = _COLUMN_HEAD.unpack_from(buffer) if buffer.size >= head else (b"", 0, 0)
    if not 1 <= width <= 8 or buffer.size != head + width * count or not unit:
        raise _wrong_length(column, buffer, count, where)
    planes = np.frombuffer(buffer, np.uint8, offset=head).reshape(width, count)
    if kind == b"f" and target.kind == "f" and width <= target.itemsize:
        bits = _join(planes, target.itemsize, shift=8 * (target.itemsize - width))
        return bits.view(f"f{target.itemsize}").astype(target, copy=False)
    if width in (1, 2, 4, 8) and (kind == b"u" or (kind == b"i" and target.kind == "i")):
        numbers = _join(planes, width)
        values = numbers.view(f"{kind.decode()}{width}").astype(target, copy=False)
        return values if unit == 1 else np.divide(values, target.type(unit), out=values)
    raise DataError(
        f"{column} holds numbers of {width} bytes of kind {kind!r}",
        where=where,
        expected=f"{target}",
        remedy="write the shard again",
    )


def decode_xyz_of_version_1(buffer: pa.Buffer, scale: float, count: int, where: str) -> npt.NDArray[np.float32]:
    """Return the (N, 3) float32 coordinates of a blob of schema version 1: planes of int16, int32 or float32.

    Raises:
        DataError: If the blob's length does not fit `count`.
    """
    width = buffer.size // (3 * count)
    if buffer.size != 3 * count * width or width not in (2, 4):
        raise _wrong_length("xyz", buffer, count, where)
    if scale == 0:
        return np.ascontiguousarray(np.frombuffer(buffer, "<f4").reshape(3, count).T)
    steps = np.frombuffer(buffer, f"<i{width}").reshape(3, count)
    xyz = np.empty((count, 3), dtype=np.float32)
    np.multiply(steps.T, np.float32(scale), out=xyz, casting="unsafe")
    return xyz


def decode_column_of_version_1(
    buffer: pa.Buffer, dtype: npt.DTypeLike, count: int, where: str, column: str
) -> npt.NDArray[Any]:
    """Return the (N,) values of a blob of schema version 1: plain numbers whose width is the blob's length by N.

    Raises:
        DataError: If the blob's length does not fit `count`.
    """
    target = np.dtype(dtype)
    width = buffer.size // count
    if buffer.size != count * width or width not in (1, 2, 4):
        raise _wrong_length(column, buffer, count, where)
    kind = "u" if target.kind == "f" and width == 1 else target.kind
    return np.frombuffer(buffer, f"<{kind}{width}").astype(target, copy=False)


def _encode_steps(steps: npt.NDArray[np.int32], beam: Beam | None) -> bytes:
    lanes = np.empty((0, 0), np.uint8)
    middle = slice(max(0, (steps.shape[1] - _SAMPLE) // 2), (steps.shape[1] + _SAMPLE) // 2)
    if beam is not None and _saved_bits(steps[:, middle], beam(middle)) > _LANE_BITS:
        lane = beam(slice(None))
        steps = np.take(steps, np.argsort(lane, kind="stable"), axis=1)
        lanes = _planes(lane, 1 + int(lane.max() > 255))
    differences = np.diff(steps, axis=1, prepend=np.int32(0))
    zigzag = differences << 1
    differences >>= 31
    zigzag ^= differences
    planes = _planes(zigzag.view(np.uint32), max(1, (int(zigzag.view(np.uint32).max()).bit_length() + 7) // 8))
    return _XYZ_HEAD.pack(len(planes), len(lanes)) + lanes.tobytes() + planes.tobytes()


def _saved_bits(steps: npt.NDArray[np.int32], lane: npt.NDArray[np.uint16]) -> float:
    """Return by how many bits a point the differences are shorter along the lanes than in the points' own order."""
    along = np.take(steps, np.argsort(lane, kind="stable"), axis=1)
    own, sorted_ = (np.log2(1 + np.abs(np.diff(s, axis=1, prepend=s[:, :1]))).mean() for s in (steps, along))
    return 3 * float(own - sorted_)


def _whole(values: npt.NDArray[Any], unit: int) -> npt.NDArray[np.uint16] | None:
    """Return `values` times `unit` if that is whole and tells every bit of them, else None."""
    for part in (values[:256], values):  # most columns that are not whole show it at once
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = np.rint(part * values.dtype.type(unit))
            if not (scaled.min() >= 0 and scaled.max() <= _MOST_WHOLE):
                return None
            whole = scaled.astype(np.uint16)
            back = whole.astype(values.dtype) / values.dtype.type(unit)
        # Compared as bits: a negative zero is not a zero.
        if not np.array_equal(back.view(f"u{values.itemsize}"), part.view(f"u{values.itemsize}")):
            return None
    return whole


def _round(bits: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Round float32 to 8 significant bits, to even; what would become infinite, and what is not finite, stays."""
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) & np.uint32(0xFFFF0000)
    not_finite = np.uint32(0x7F800000)
    stays = ((bits & not_finite) == not_finite) | ((rounded & not_finite) == not_finite)
    return np.where(stays, bits, rounded)


def _planes(numbers: npt.NDArray[Any], width: int) -> npt.NDArray[np.uint8]:
    """Return the lowest `width` bytes of (…) unsigned integers as (width, …) planes, the lowest byte first."""
    planes = np.empty((width, *numbers.shape), dtype=np.uint8)
    for k in range(width):
        np.copyto(planes[k], numbers >> np.uint8(8 * k) if k else numbers, casting="unsafe")
    return planes


def _join(planes: npt.NDArray[np.uint8], size: int, *, shift: int = 0) -> npt.NDArray[Any]:
    """Return the (N,) unsigned integers of `size` bytes of (width, N) planes, moved up by `shift` bits; own memory."""
    from spot_ray.storage.blob_kernels import join_planes

    numbers = np.empty(planes.shape[1], dtype=f"u{size}")
    join_planes(planes, shift, numbers)
    return numbers


def _pack(kind: bytes, planes: npt.NDArray[np.uint8], unit: int) -> bytes:
    return _COLUMN_HEAD.pack(kind, len(planes), unit) + planes.tobytes()


def _wrong_length(column: str, buffer: pa.Buffer, count: int, where: str) -> DataError:
    return DataError(
        f"{column} has {buffer.size} bytes for {count} points", where=where, remedy="write the shard again"
    )
