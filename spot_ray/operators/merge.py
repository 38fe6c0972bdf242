"""Sweeps merged into one frame at read time (as the official nuScenes devkit does it, usually 10), never on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from spot_ray.errors import DataError
from spot_ray.geometry import se3
from spot_ray.operators.config import MergeConfig
from spot_ray.operators.sample import Sample
from spot_ray.schema.sensors import LidarSpec
from spot_ray.schema.sweep import POINT_DTYPES, Sweep
from spot_ray.schema.taxonomy import UNLABELLED_SOURCE


class Merge:
    """Merges the earlier sweeps of a sample into it; see :func:`merge_sweeps`.

    Args:
        rig: The LiDARs of the dataset.
        min_distance_m: How near to its LiDAR a point of an earlier sweep is left out, metres.
    """

    def __init__(self, *, rig: Sequence[LidarSpec], min_distance_m: float) -> None:
        self._rig = tuple(rig)
        self._min_distance_m = min_distance_m

    def __call__(self, sample: Sample) -> Sample:
        """Return the sample with all points in one sweep.

        Raises:
            DataError: If a sweep has no pose, or lacks a point column that another one has.
        """
        if not sample.older:
            return sample
        sweep, time_lag_s = merge_sweeps(sample.sweep, sample.older, rig=self._rig, min_distance_m=self._min_distance_m)
        return replace(sample, sweep=sweep, older=(), time_lag_s=time_lag_s)


def build_merge(config: MergeConfig, rig: Sequence[LidarSpec]) -> Merge:
    """Return the operator that a config asks for."""
    return Merge(rig=rig, min_distance_m=config.min_distance_m)


def merge_sweeps(
    sweep: Sweep, older: Sequence[Sweep], *, rig: Sequence[LidarSpec], min_distance_m: float
) -> tuple[Sweep, npt.NDArray[np.float32]]:
    """Merge earlier sweeps into a frame: its own points first, then theirs in its ego frame.

    All point columns are kept. Where some of the sweeps have no `point_source_class` or `instance_id`, as between the
    frames that a source annotates, their points are unlabelled there; without `lidar_id` they are of the first LiDAR.
    `time_offset_ns` stays counted from the sweep that a point comes from. All that is not a point column, such as boxes
    and ignore regions, stays the frame's own, but for the poses within the sweep, which are not those of all points.

    Args:
        sweep: The frame.
        older: Sweeps of its sequence, each in its own ego frame.
        rig: The LiDARs of the dataset.
        min_distance_m: A point of an earlier sweep this near to its LiDAR in x and in y, ego axes, is left out (the
            devkit's `remove_close`), metres.

    Returns:
        The merged sweep of N points, and (N,) float32 how much earlier than the frame each point's sweep is, seconds.

    Raises:
        DataError: If a sweep has no pose, or lacks another column that one of them has.
    """
    sweeps = (sweep, *older)
    kept = [np.ones(len(sweep), dtype=bool), *(~_beside_lidar(one, rig, min_distance_m) for one in older)]
    xyz, lag = [sweep.xyz], [np.zeros(len(sweep), np.float32)]
    ego_SE3_world = se3.invert(_pose(sweep))
    for one, keep in zip(older, kept[1:], strict=True):
        # In float64, since world coordinates may be of millions of metres.
        xyz.append(se3.transform_points(ego_SE3_world @ _pose(one), one.xyz[keep]))
        lag.append(np.full(len(xyz[-1]), (sweep.timestamp_ns - one.timestamp_ns) * 1e-9, np.float32))
    missing = {"point_source_class": UNLABELLED_SOURCE, "instance_id": -1, "lidar_id": rig[0].lidar_id}
    columns: dict[str, Any] = {
        name: _joined(name, [getattr(one, name) for one in sweeps], kept, sweeps, missing.get(name))
        for name in POINT_DTYPES
    }
    names = dict.fromkeys(name for one in sweeps for name in one.extra)
    extra = {name: _joined(name, [one.extra.get(name) for one in sweeps], kept, sweeps, None) for name in names}
    merged = replace(
        sweep,
        xyz=np.concatenate(xyz),
        extra={name: values for name, values in extra.items() if values is not None},
        sweep_pose_time_offset_ns=None,
        sweep_poses=None,
        **columns,
    )
    return merged, np.concatenate(lag)


def _pose(sweep: Sweep) -> npt.NDArray[np.float64]:
    if sweep.world_SE3_ego is None:
        raise DataError(
            "the sweep has no pose, so that it cannot be merged with others",
            where=sweep.name,
            expected="world_SE3_ego",
            remedy="set data.merge.num_sweeps=1",
        )
    return sweep.world_SE3_ego


def _beside_lidar(sweep: Sweep, rig: Sequence[LidarSpec], distance_m: float) -> npt.NDArray[np.bool_]:
    """Return the (N,) mask of the points near to the LiDAR that they come from."""
    near = np.zeros(len(sweep), dtype=bool)
    for spec in rig if sweep.lidar_id is not None else rig[:1]:
        x, y = spec.pose[:2, 3]
        beside = (np.abs(sweep.xyz[:, 0] - x) < distance_m) & (np.abs(sweep.xyz[:, 1] - y) < distance_m)
        near |= beside if sweep.lidar_id is None else beside & (sweep.lidar_id == spec.lidar_id)
    return near


def _joined(
    column: str,
    values: Sequence[npt.NDArray[Any] | None],
    kept: Sequence[npt.NDArray[np.bool_]],
    sweeps: Sequence[Sweep],
    missing: int | None,
) -> npt.NDArray[Any] | None:
    """Return one column of all sweeps' kept points, or None if none has it."""
    present = next((i for i, array in enumerate(values) if array is not None), None)
    absent = next((i for i, array in enumerate(values) if array is None), None)
    if present is None:
        return None
    if absent is not None and missing is None:
        raise DataError(
            f"{sweeps[absent].name} has no point column {column!r}, {sweeps[present].name} has it",
            where=sweeps[0].name,
            expected="the same columns in all sweeps that are merged",
            remedy=f"leave what needs {column!r} out of data, or set data.merge.num_sweeps=1",
        )
    dtype = next(array.dtype for array in values if array is not None)
    return np.concatenate(
        [
            np.full(int(keep.sum()), missing, dtype) if array is None else array[keep]
            for array, keep in zip(values, kept, strict=True)
        ]
    )
