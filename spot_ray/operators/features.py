"""Input features of a point, by name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from spot_ray.config.load import suggestion
from spot_ray.errors import ConfigError, DataError
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.sensors import LidarSpec
from spot_ray.schema.sweep import Sweep

COORDINATES = ("x", "y", "z")
TIME_LAG = "time_lag"
EXTRA = "extra."
COLUMN_OF = {"intensity": "intensity", "elongation": "elongation", "ring": "ring", "time_offset": "time_offset_ns"}
"""The point column that holds a feature, beside the coordinates and the source's own columns."""

_NEEDS_LIDAR = ("intensity", "ring")


def check_features(names: Sequence[str], info: DatasetInfo) -> None:
    """Check that a dataset may have the features.

    Raises:
        ConfigError: If a name is no feature, occurs twice, or the first three are not x, y, z.
    """
    known = [*COORDINATES, *COLUMN_OF, TIME_LAG, *(EXTRA + name for name in info.extra)]
    where = "data.features"
    for name in names:
        if name not in known:
            raise ConfigError(
                f"{name!r} is no feature of the dataset {info.name!r}", where=where, remedy=suggestion(name, known)
            )
    if tuple(names[:3]) != COORDINATES or len(set(names)) != len(names):
        raise ConfigError(f"the features are {list(names)}", where=where, expected="x, y, z, then others, each once")


def features_lacking(sweep: Sweep, names: Sequence[str]) -> tuple[str, ...]:
    """Return those of some features whose column a sweep, read with all that they need, does not have."""
    return tuple(
        name
        for name in names
        if (name in COLUMN_OF and getattr(sweep, COLUMN_OF[name]) is None)
        or (name.startswith(EXTRA) and name.removeprefix(EXTRA) not in sweep.extra)
    )


def columns_of(names: Sequence[str], info: DatasetInfo) -> tuple[str, ...]:
    """Return the point columns beside `xyz` that the features need."""
    columns = [COLUMN_OF.get(name, name) for name in names if name not in (*COORDINATES, TIME_LAG)]
    several = len(info.rig) > 1 and any(name in _NEEDS_LIDAR for name in names)
    return (*columns, "lidar_id") if several else tuple(columns)


def point_features(
    sweep: Sweep,
    names: Sequence[str],
    rig: Sequence[LidarSpec],
    *,
    time_lag_s: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.float32]:
    """Return the input features of a sweep's points.

    `x`, `y`, `z` are metres. `intensity` is divided by its LiDAR's `intensity_max`; where that is unbounded it goes
    through tanh. `elongation`, which no source bounds, goes through tanh. `ring` is divided by its LiDAR's number of
    beams. `time_offset` is seconds, counted from the sweep that the point comes from, and `time_lag` how much earlier
    that sweep is than the frame, seconds. `extra.NAME` is as the source gives it.

    Args:
        sweep: The sweep.
        names: C feature names.
        rig: The LiDARs of the dataset; without `lidar_id` in the sweep, all points are of the first.
        time_lag_s: (N,) seconds, of a frame that earlier sweeps are merged into; None: all points are its own.

    Returns:
        (N, C) float32.

    Raises:
        DataError: If the sweep lacks a feature.
    """
    from spot_ray.operators.point_kernels import interleave

    if tuple(names[:3]) != COORDINATES:
        first = (*COORDINATES, *(name for name in names if name not in COORDINATES))
        points = point_features(sweep, first, rig, time_lag_s=time_lag_s)
        return points[:, [first.index(name) for name in names]]
    others = np.empty((len(names) - 3, len(sweep)), dtype=np.float32)
    for column, name in zip(others, names[3:], strict=True):
        if name == TIME_LAG:
            column[:] = 0 if time_lag_s is None else time_lag_s
        else:
            _write_feature(sweep, name, rig, column)
    points = np.empty((len(sweep), len(names)), dtype=np.float32)
    interleave(sweep.xyz, others, points)
    return points


def _write_feature(sweep: Sweep, name: str, rig: Sequence[LidarSpec], column: npt.NDArray[np.float32]) -> None:
    """Fill a (N,) float32 column, in few passes: a frame has as many points as fit in the cache but once."""
    if name.startswith(EXTRA) and name.removeprefix(EXTRA) in sweep.extra:
        column[:] = sweep.extra[name.removeprefix(EXTRA)]
    elif name == "intensity" and sweep.intensity is not None:
        _scale_intensity(sweep, sweep.intensity, rig, column)
    elif name == "elongation" and sweep.elongation is not None:
        np.tanh(sweep.elongation, out=column)
    elif name == "ring" and sweep.ring is not None:
        np.divide(sweep.ring, _by_lidar(sweep, {s.lidar_id: s.num_beams for s in rig}), out=column)
    elif name == "time_offset" and sweep.time_offset_ns is not None:
        column[:] = sweep.time_offset_ns * 1e-9
    else:
        raise _lacking(sweep, name)


def _scale_intensity(
    sweep: Sweep, intensity: npt.NDArray[np.float32], rig: Sequence[LidarSpec], column: npt.NDArray[np.float32]
) -> None:
    used = rig[:1] if sweep.lidar_id is None else rig
    if all(spec.intensity_max is None for spec in used):
        np.tanh(intensity, out=column)
        return
    scale = _by_lidar(sweep, {s.lidar_id: np.nan if s.intensity_max is None else s.intensity_max for s in rig})
    np.divide(intensity, scale, out=column)
    unbounded = np.isnan(scale)
    if unbounded.any():
        np.tanh(intensity, out=column, where=unbounded)


def _lacking(sweep: Sweep, name: str) -> DataError:
    has = [feature for feature, column in COLUMN_OF.items() if getattr(sweep, column) is not None]
    return DataError(
        f"the sweep has no {name!r}",
        where=sweep.name,
        expected=f"of {', '.join([*COORDINATES, *has, *(EXTRA + extra for extra in sweep.extra)])}",
        remedy="leave it out of data.features",
    )


def _by_lidar(sweep: Sweep, value: dict[int, float]) -> npt.NDArray[np.float32]:
    """Return each point's LiDAR's value, (N,), or (1,) where all points are of the first LiDAR."""
    if sweep.lidar_id is None:
        return np.array([next(iter(value.values()))], dtype=np.float32)
    table = np.full(256, np.nan, dtype=np.float32)
    table[list(value)] = list(value.values())
    return table[sweep.lidar_id]
