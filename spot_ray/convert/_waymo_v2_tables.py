"""The small components of the Waymo Open Dataset v2, read whole: calibrations, vehicle poses and boxes of a segment."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from spot_ray.convert._waymo_boxes import BoxLabels, boxes_of
from spot_ray.convert._waymo_laser import Float64, Laser, LaserCalibration
from spot_ray.convert._waymo_parquet import LASER, OBJECT, TIME, Check, ComponentFile, is_floats, is_text, required
from spot_ray.errors import DataError
from spot_ray.geometry import se3
from spot_ray.schema.sweep import Boxes

_EXTRINSIC = "[LiDARCalibrationComponent].extrinsic.transform"
_BEAMS = "[LiDARCalibrationComponent].beam_inclination"
_VEHICLE = "[VehiclePoseComponent].world_from_vehicle.transform"
_BOX = "[LiDARBoxComponent]"

CALIBRATION_COLUMNS: dict[str, Check] = {
    LASER: pa.types.is_integer,
    _EXTRINSIC: is_floats,
    f"{_BEAMS}.min": pa.types.is_floating,
    f"{_BEAMS}.max": pa.types.is_floating,
    f"{_BEAMS}.values": is_floats,
}
"""The columns of `lidar_calibration` that are read, each with what its type must be."""
POSE_COLUMNS: dict[str, Check] = {TIME: pa.types.is_integer, _VEHICLE: is_floats}
"""Those of `vehicle_pose`."""
_BOX_NUMBERS = (
    *(f"{_BOX}.box.center.{axis}" for axis in "xyz"),
    *(f"{_BOX}.box.size.{axis}" for axis in "xyz"),
    f"{_BOX}.box.heading",
)
_BOX_SPEED = tuple(f"{_BOX}.speed.{axis}" for axis in "xyz")
BOX_COLUMNS: dict[str, Check] = {
    TIME: pa.types.is_integer,
    OBJECT: is_text,
    **dict.fromkeys(_BOX_NUMBERS, pa.types.is_floating),
    **dict.fromkeys(_BOX_SPEED, pa.types.is_floating),
    f"{_BOX}.type": pa.types.is_integer,
    f"{_BOX}.num_lidar_points_in_box": pa.types.is_integer,
    f"{_BOX}.difficulty_level.detection": pa.types.is_integer,
}
"""Those of `lidar_box`."""


def calibrations_of(file: ComponentFile) -> dict[Laser, LaserCalibration]:
    """Return the calibrations of a segment's lasers.

    Args:
        file: The component `lidar_calibration`.

    Raises:
        DataError: If a laser is unknown or occurs twice, or its calibration is impossible.
    """
    table = file.read(list(CALIBRATION_COLUMNS))
    low, high = (required(file, table, f"{_BEAMS}.{end}") for end in ("min", "max"))
    result: dict[Laser, LaserCalibration] = {}
    for row, number in enumerate(required(file, table, LASER).tolist()):
        laser = Laser.numbered(number, where=file.row(row))
        if laser in result:
            raise DataError(f"laser {laser.name} is calibrated twice", where=file.row(row), expected="every laser once")
        values = np.array(table[f"{_BEAMS}.values"][row].as_py() or [], dtype=np.float64)
        result[laser] = LaserCalibration(
            laser=laser,
            ego_SE3_lidar=_transform(table, _EXTRINSIC, row, file.row(row)),
            inclination_min=float(low[row]),
            inclination_max=float(high[row]),
            inclination_values=values if len(values) else None,
            where=file.row(row),
        )
    return result


class VehiclePoses:
    """The pose of the vehicle in every frame."""

    def __init__(self, file: ComponentFile) -> None:
        self._file = file
        self._table = file.read(list(POSE_COLUMNS))
        self._rows = _rows_by_time(required(file, self._table, TIME))

    @property
    def times(self) -> set[int]:
        return set(self._rows)

    def at(self, time: int) -> Float64:
        rows = self._rows.get(time, [])
        if len(rows) != 1:
            raise DataError(
                f"frame {time} has {len(rows) or 'no'} vehicle poses" + (f", in rows {rows}" if rows else ""),
                where=self._file.where,
                expected="one a frame",
            )
        where = self._file.row(rows[0])
        pose = _transform(self._table, _VEHICLE, rows[0], where)
        if not se3.is_rigid(pose):
            raise DataError(
                f"the vehicle pose of frame {time} is not a rigid transform: {pose.tolist()}",
                where=where,
                expected="4 × 4, orthonormal",
            )
        return pose


class SegmentBoxes:
    """The 3D labels of a segment; a frame without any is annotated, and nothing is there."""

    def __init__(self, file: ComponentFile) -> None:
        self._file = file
        table = file.read(list(BOX_COLUMNS))
        self._rows = _rows_by_time(required(file, table, TIME))
        self._ids = required(file, table, OBJECT)
        self._types = required(file, table, f"{_BOX}.type")
        self._num_points = required(file, table, f"{_BOX}.num_lidar_points_in_box")
        self._boxes = np.stack([required(file, table, column) for column in _BOX_NUMBERS], axis=1)
        self._velocity = np.stack([table[column].to_numpy() for column in _BOX_SPEED], axis=1).astype(np.float64)
        # Null and the official 0 both mean that it was not stated.
        self._difficulty = table[f"{_BOX}.difficulty_level.detection"].fill_null(0).to_numpy()

    @property
    def times(self) -> set[int]:
        return set(self._rows)

    def at(self, time: int, world_SE3_ego: Float64) -> Boxes:
        rows = np.array(self._rows.get(time, []), dtype=np.intp)
        labels = BoxLabels(
            boxes=self._boxes[rows],
            types=self._types[rows],
            ids=self._ids[rows].tolist(),
            velocity_world=self._velocity[rows],
            num_lidar_points=self._num_points[rows],
            difficulty=self._difficulty[rows],
            where=f"{self._file.where}, rows {rows[0]} to {rows[-1]}" if len(rows) else self._file.where,
        )
        return boxes_of(labels, world_SE3_ego)


def _rows_by_time(times: npt.NDArray[np.integer]) -> dict[int, list[int]]:
    rows: dict[int, list[int]] = {}
    for row, time in enumerate(times.tolist()):
        rows.setdefault(time, []).append(row)
    return rows


def _transform(table: pa.Table, column: str, row: int, where: str) -> Float64:
    values = table[column][row].as_py() or []
    if len(values) != 16 or None in values:
        raise DataError(f"{column} has {len(values)} numbers", where=where, expected="16: a 4 × 4 matrix by rows")
    return np.array(values, dtype=np.float64).reshape(4, 4)
