"""Sweeps and occupancies to Parquet rows and back.

A row is a frame. Its point columns are one binary value each, see :mod:`spot_ray.storage.blobs`: coordinates in steps
of `xyz_scale_m` (error ≤ 1.96 mm, nothing clipped) or as float32 where that is 0, intensity and elongation with a
relative error ≤ 0.4 % unless a frame's are whole numbers, hundredths or 255ths, everything else exactly. Lossless
datasets keep every bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from spot_ray.errors import DataError
from spot_ray.geometry import se3
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.occupancy import Occupancy
from spot_ray.schema.sweep import BOX_COLUMNS, POINT_DTYPES, Boxes, Sweep
from spot_ray.schema.taxonomy import UNLABELLED_SOURCE
from spot_ray.storage.blobs import (
    Beam,
    decode_column,
    decode_column_of_version_1,
    decode_xyz,
    decode_xyz_of_version_1,
    encode_column,
    encode_xyz,
)

EXTRA = "extra."

_SCALARS = (
    pa.field("sequence_id", pa.string(), nullable=False),
    pa.field("frame_id", pa.string(), nullable=False),
    pa.field("timestamp_ns", pa.int64(), nullable=False),
    pa.field("world_SE3_ego", pa.list_(pa.float64(), 16)),
    pa.field("num_points", pa.int32(), nullable=False),
    pa.field("class_point_counts", pa.list_(pa.int64())),
    pa.field("class_box_counts", pa.list_(pa.int64())),
    pa.field("motion_compensated", pa.bool_()),
    pa.field("sweep_pose_time_offset_ns", pa.list_(pa.int64())),
    pa.field("sweep_poses", pa.list_(pa.float64())),
    pa.field("calibration", pa.string()),
    pa.field("xyz_scale_m", pa.float64(), nullable=False),
    pa.field("keyframe", pa.bool_(), nullable=False),
    pa.field("split", pa.string()),
)
_BOXES = (
    pa.field("boxes", pa.list_(pa.float32())),
    pa.field("box_source_class", pa.list_(pa.uint16())),
    pa.field("box_track_id", pa.list_(pa.string())),
    pa.field("box_attribute", pa.list_(pa.string())),
    *(pa.field(f"box_{name}", pa.list_(pa.from_numpy_dtype(dtype))) for name, (dtype, _) in BOX_COLUMNS.items()),
    pa.field("ignore_regions", pa.list_(pa.float32())),
    pa.field("ignore_boxes_2d", pa.list_(pa.float32())),
)
_SINCE_VERSION_2 = frozenset({"keyframe", "split", "ignore_boxes_2d"})
_IDS_POSE_AND_CLASSES = frozenset(
    {"sequence_id", "frame_id", "timestamp_ns", "world_SE3_ego"}
    | {"num_points", "xyz_scale_m", "boxes", "box_source_class"}
)
_MOTION = frozenset({"motion_compensated", "sweep_pose_time_offset_ns", "sweep_poses"})

OCCUPANCY_SCHEMA = pa.schema(
    [
        pa.field("sequence_id", pa.string(), nullable=False),
        pa.field("frame_id", pa.string(), nullable=False),
        pa.field("num_occupied", pa.int32(), nullable=False),
        pa.field("index", pa.binary(), nullable=False),
        pa.field("semantic", pa.binary(), nullable=False),
        pa.field("observed", pa.binary(), nullable=False),
        pa.field("observed_by_frame", pa.binary()),
    ]
)


def sweep_schema(info: DatasetInfo) -> pa.Schema:
    """Return the Arrow schema of a dataset's shards: scalars first, boxes, then the blobs."""
    blobs = ["xyz", *POINT_DTYPES, *(EXTRA + name for name in info.extra)]
    return pa.schema([*_SCALARS, *_BOXES, *(pa.field(name, pa.binary()) for name in blobs)])


LABEL_COLUMNS = ("sequence_id", "frame_id", "index", "semantic", "observed")
"""The Parquet columns of the labels that training reads."""


def columns_for(names: Sequence[str], info: DatasetInfo, *, bare: bool = False) -> list[str]:
    """Return the Parquet columns that hold the given names in memory.

    Args:
        names: Of `xyz`, the point columns, `extra.NAME`, and `boxes` (with the ignore regions).
        info: The dataset; one of an earlier schema version lacks what was added since.
        bare: Beside those only what training needs: the ids, the time, the pose, the boxes and their classes, and, with
            `time_offset_ns`, the motion within the sweep. A column costs 12 to 25 µs of a frame's 3 ms, however
            little is in it.
    """
    fields = (*_SCALARS, *(_BOXES if "boxes" in names else ()))
    absent = _SINCE_VERSION_2 if info.schema_version < 2 else frozenset()
    if bare:
        wanted = _IDS_POSE_AND_CLASSES | (_MOTION if "time_offset_ns" in names else frozenset())
        fields = tuple(f for f in fields if f.name in wanted)
    return [*(f.name for f in fields if f.name not in absent), *(name for name in names if name != "boxes")]


def encode_sweep(sweep: Sweep, info: DatasetInfo) -> dict[str, Any]:
    """Return the Parquet row of a sweep, whose contents have been checked against `info`."""
    columns = {
        name: exactly(getattr(sweep, name), dtype, name, sweep.name)
        for name, dtype in POINT_DTYPES.items()
        if getattr(sweep, name) is not None
    }
    scale, xyz = encode_xyz(sweep.xyz, _beam(sweep, columns, info), lossless=info.lossless)
    row: dict[str, Any] = {
        "sequence_id": sweep.sequence_id,
        "frame_id": sweep.frame_id,
        "timestamp_ns": sweep.timestamp_ns,
        "world_SE3_ego": None if sweep.world_SE3_ego is None else sweep.world_SE3_ego.astype(np.float64).reshape(-1),
        "num_points": len(sweep),
        "class_point_counts": None
        if "point_source_class" not in columns
        else _count(columns["point_source_class"], info, f"points of {sweep.name}"),
        "class_box_counts": None
        if sweep.boxes is None
        else _count(
            exactly(sweep.boxes.source_class, np.uint16, "source_class of the boxes", sweep.name),
            info,
            f"boxes of {sweep.name}",
        ),
        "motion_compensated": sweep.motion_compensated,
        "sweep_pose_time_offset_ns": sweep.sweep_pose_time_offset_ns,
        "sweep_poses": None if sweep.sweep_poses is None else sweep.sweep_poses.astype(np.float64).reshape(-1),
        "calibration": sweep.calibration,
        "xyz_scale_m": scale,
        "xyz": xyz,
        "keyframe": sweep.keyframe,
        "split": sweep.split,
        "ignore_regions": None if sweep.ignore_regions is None else sweep.ignore_regions.astype(np.float32).reshape(-1),
        "ignore_boxes_2d": None
        if sweep.ignore_boxes_2d is None
        else sweep.ignore_boxes_2d.astype(np.float32).reshape(-1),
        **_encode_boxes(sweep.boxes, sweep.name),
    }
    for name in POINT_DTYPES:
        row[name] = encode_column(columns[name], lossless=info.lossless) if name in columns else None
    for name, column in info.extra.items():
        values = exactly(sweep.extra[name], column.dtype, EXTRA + name, sweep.name)
        row[EXTRA + name] = encode_column(values, lossless=True)
    return row


def decode_sweep(table: pa.Table, row: int, info: DatasetInfo) -> Sweep:
    """Return the sweep of one row; what the table lacks is None, and `keyframe` True.

    Args:
        table: Columns of :func:`columns_for`.
        row: The row.
        info: The dataset.

    Raises:
        DataError: If a blob's length does not fit `num_points`, or the content breaks the schema.
    """
    value = row_values(table, row)
    name = f"{value['sequence_id']}/{value['frame_id']}"
    count = int(value["num_points"].as_py())

    first = info.schema_version == 1

    def blob(column: str, dtype: npt.DTypeLike) -> npt.NDArray[Any] | None:
        buffer = value.get(column)
        if buffer is None:
            return None
        return (decode_column_of_version_1 if first else decode_column)(buffer, dtype, count, name, column)

    pose, poses = _numbers(value, "world_SE3_ego"), _numbers(value, "sweep_poses")
    ignore, ignore_2d = _numbers(value, "ignore_regions"), _numbers(value, "ignore_boxes_2d")
    return Sweep(
        sequence_id=value["sequence_id"].as_py(),
        frame_id=value["frame_id"].as_py(),
        timestamp_ns=value["timestamp_ns"].as_py(),
        xyz=(decode_xyz_of_version_1 if first else decode_xyz)(value["xyz"], value["xyz_scale_m"].as_py(), count, name),
        world_SE3_ego=None if pose is None else pose.reshape(4, 4),
        boxes=_decode_boxes(value),
        ignore_regions=None if ignore is None else ignore.reshape(-1, 7),
        motion_compensated=_plain(value, "motion_compensated"),
        sweep_pose_time_offset_ns=_numbers(value, "sweep_pose_time_offset_ns"),
        sweep_poses=None if poses is None else poses.reshape(-1, 4, 4),
        calibration=_plain(value, "calibration"),
        ignore_boxes_2d=None if ignore_2d is None else ignore_2d.reshape(-1, 4),
        keyframe=value["keyframe"].as_py() if "keyframe" in value else True,
        split=_plain(value, "split"),
        extra={
            extra: np.frombuffer(value[EXTRA + extra], dtype=column.dtype)
            if first
            else decode_column(value[EXTRA + extra], column.dtype, count, name, EXTRA + extra)
            for extra, column in info.extra.items()
            if EXTRA + extra in value
        },
        **{column: blob(column, dtype) for column, dtype in POINT_DTYPES.items()},
    )


POSE_AND_BOXES = ("world_SE3_ego", *(f.name for f in _BOXES if f.name.startswith("box")))
"""The Parquet columns of :func:`decode_pose_and_boxes`."""


def decode_pose_and_boxes(table: pa.Table, row: int) -> tuple[npt.NDArray[np.float64] | None, Boxes | None]:
    """Return the (4, 4) `world_SE3_ego` and the boxes of one row, each None where there is none.

    Raises:
        DataError: If the content breaks the schema.
    """
    value = row_values(table, row)
    pose = value["world_SE3_ego"].as_py()
    return None if pose is None else np.array(pose).reshape(4, 4), _decode_boxes(value)


def encode_occupancy(occupancy: Occupancy) -> dict[str, Any]:
    """Return the Parquet row of a frame's occupancy; indices are stored as differences, which compress well."""
    index = occupancy.index.astype("<i4")
    return {
        "sequence_id": occupancy.sequence_id,
        "frame_id": occupancy.frame_id,
        "num_occupied": len(index),
        "index": np.diff(index, prepend=np.int32(0)).astype("<i4").tobytes(),
        "semantic": occupancy.semantic.astype(np.uint8).tobytes(),
        "observed": occupancy.observed.tobytes(),
        "observed_by_frame": None if occupancy.observed_by_frame is None else occupancy.observed_by_frame.tobytes(),
    }


def decode_occupancy(table: pa.Table, row: int) -> Occupancy:
    """Return the occupancy of one row; `observed_by_frame` is None if the table lacks it."""
    value = row_values(table, row)
    own = value.get("observed_by_frame")
    return Occupancy(
        sequence_id=value["sequence_id"].as_py(),
        frame_id=value["frame_id"].as_py(),
        index=np.cumsum(np.frombuffer(value["index"], dtype="<i4"), dtype=np.int32),
        semantic=np.frombuffer(value["semantic"], dtype=np.uint8),
        observed=np.frombuffer(value["observed"], dtype=np.uint8),
        observed_by_frame=None if own is None else np.frombuffer(own, dtype=np.uint8),
    )


def exactly(values: npt.NDArray[Any], dtype: npt.DTypeLike, column: str, where: str) -> npt.NDArray[Any]:
    """Return values in another dtype, which must hold them: whole numbers exactly, others without overflow.

    Raises:
        DataError: If it does not; a plain cast would wrap or cut them in silence.
    """
    target = np.dtype(dtype)
    if values.dtype == target:
        return values
    with np.errstate(invalid="ignore", over="ignore"):
        cast = values.astype(target)
    wrong = np.isfinite(cast) != np.isfinite(values) if target.kind == "f" else cast != values
    if wrong.any():
        raise DataError(
            f"{column} holds {values[wrong].reshape(-1)[0]}, which {target} cannot hold",
            where=where,
            expected=f"{target} values",
            remedy="map the values into that range before writing"
            + (f"; {UNLABELLED_SOURCE} is unlabelled" if "source_class" in column else ""),
        )
    return cast


def _beam(sweep: Sweep, columns: dict[str, npt.NDArray[Any]], info: DatasetInfo) -> Beam | None:
    """Return how to tell the beams of points: by the source's rings, or by inclination; None if by neither."""
    lidar = info.rig[0]
    if "ring" in columns:
        ring, lidar_id = columns["ring"], columns.get("lidar_id")
        if lidar_id is None:
            return lambda part: ring[part]
        rings = int(ring.max()) + 1
        return (lambda part: ring[part] + np.uint16(rings) * lidar_id[part]) if rings <= 256 else None
    if len(info.rig) > 1 or lidar.inclinations_deg is None:
        return None
    angles = np.sort(np.radians(lidar.inclinations_deg))
    borders = np.tan((angles[1:] + angles[:-1]) / 2)
    lidar_SE3_ego = se3.invert(lidar.pose)

    def nearest(part: slice) -> npt.NDArray[np.uint16]:
        x, y, z = se3.transform_points(lidar_SE3_ego, sweep.xyz[part]).T
        return np.searchsorted(borders, z / np.maximum(np.hypot(x, y), 1e-3)).astype(np.uint16)

    return nearest


def _count(source_class: npt.NDArray[np.uint16], info: DatasetInfo, where: str) -> list[int]:
    counts = np.bincount(source_class, minlength=65536)
    ids = [source.id for source in info.taxonomy.sources]
    known = counts[ids].sum() + counts[UNLABELLED_SOURCE]
    if known != len(source_class):
        counts[ids] = 0
        counts[UNLABELLED_SOURCE] = 0
        raise DataError(
            f"source class ids {np.flatnonzero(counts)[:5].tolist()} are not in the taxonomy",
            where=where,
            expected=f"one of the {len(ids)} source ids of {info.taxonomy.name!r}, or {UNLABELLED_SOURCE}: unlabelled",
            remedy="add them to the taxonomy's sources (target None leaves them unlabelled)",
        )
    return [int(counts[i]) for i in ids]


def _encode_boxes(boxes: Boxes | None, where: str) -> dict[str, Any]:
    if boxes is None:
        return dict.fromkeys(f.name for f in _BOXES if f.name.startswith("box"))
    row: dict[str, Any] = {
        "boxes": boxes.boxes.astype(np.float32).reshape(-1),
        "box_source_class": boxes.source_class.astype(np.uint16),
        "box_track_id": boxes.track_id,
        "box_attribute": boxes.attribute,
    }
    for name, (dtype, _) in BOX_COLUMNS.items():
        values = getattr(boxes, name)
        row[f"box_{name}"] = None if values is None else exactly(values, dtype, f"box_{name}", where).reshape(-1)
    return row


def row_values(table: pa.Table, row: int) -> dict[str, Any]:
    """Return the scalars of one row of a table by column; of binary columns their buffers, or None."""
    return {
        name: _buffer(column, row) if pa.types.is_binary(column.type) else column[row]
        for name, column in zip(table.column_names, table.columns, strict=True)
    }


def _buffer(column: pa.ChunkedArray, row: int) -> pa.Buffer | None:
    """Return the bytes of a value where they lie: a scalar would copy them."""
    (value,) = column.slice(row, 1).chunks
    if value.null_count:
        return None
    _, offsets, data = value.buffers()
    start, stop = np.frombuffer(offsets, np.int32, count=2, offset=4 * value.offset).tolist()
    return data.slice(start, stop - start)


def _plain(value: dict[str, Any], column: str) -> Any:
    return value[column].as_py() if column in value else None


def _numbers(value: dict[str, Any], column: str) -> npt.NDArray[Any] | None:
    scalar = value.get(column)
    return None if scalar is None or not scalar.is_valid else scalar.values.to_numpy(zero_copy_only=False)


def _decode_boxes(value: dict[str, Any]) -> Boxes | None:
    flat = _numbers(value, "boxes")
    if flat is None:
        return None
    columns: dict[str, Any] = {}
    for f in fields(Boxes)[2:]:
        scalar = value.get(f"box_{f.name}")
        if scalar is None or not scalar.is_valid:
            continue
        if f.name in BOX_COLUMNS:
            width = BOX_COLUMNS[f.name][1]
            array = scalar.values.to_numpy(zero_copy_only=False)
            columns[f.name] = array.reshape(-1, width) if width > 1 else array
        else:
            columns[f.name] = scalar.as_py()
    source_class = value["box_source_class"].values.to_numpy(zero_copy_only=False)
    return Boxes(flat.reshape(-1, 7), source_class, **columns)
