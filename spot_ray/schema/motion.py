"""De-skewing: a sweep takes a turn of its LiDAR, and the vehicle drives on meanwhile (1 m at 10 m/s and 10 Hz)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from spot_ray.errors import DataError
from spot_ray.geometry import se3
from spot_ray.geometry.motion import move_along, pose_at
from spot_ray.schema.sweep import Sweep

MOST_GAP_NS = 500_000_000
"""Frames further apart say little about the motion within a sweep."""

_MOST_BEYOND = 1.0
"""How far points may have been fired before the first pose or after the last, as a part of the time between those."""


def is_skewed(sweep: Sweep) -> bool:
    """Tell whether a sweep's points lie in the ego frames of their own firing times, and these times are known.

    A sweep of which nobody knows (`motion_compensated` None) counts as corrected: to correct it twice would skew it.
    """
    return sweep.motion_compensated is False and sweep.time_offset_ns is not None


def with_frame_poses(sweep: Sweep, frames: Sequence[tuple[int, npt.NDArray[np.float64]]]) -> Sweep:
    """Give a skewed sweep without poses of its own those of its sequence's frames around it.

    Args:
        sweep: The sweep.
        frames: Time in nanoseconds and `world_SE3_ego` of frames of its sequence, in any order. What lies beyond a gap
            of more than `MOST_GAP_NS`, seen from the sweep, is not used.

    Returns:
        The sweep with `sweep_poses`; itself if it has such or needs none, or no other frame is near.
    """
    if not is_skewed(sweep) or sweep.sweep_poses is not None or sweep.world_SE3_ego is None:
        return sweep
    path = dict(sorted([*frames, (sweep.timestamp_ns, sweep.world_SE3_ego)], key=lambda frame: frame[0]))
    times = np.array(list(path), dtype=np.int64)
    own = int(np.searchsorted(times, sweep.timestamp_ns))
    broken = np.flatnonzero(np.diff(times) > MOST_GAP_NS)
    first, last = broken[broken < own].max(initial=-1) + 1, broken[broken >= own].min(initial=len(times) - 1)
    if first == last:
        return sweep
    return replace(
        sweep,
        sweep_pose_time_offset_ns=times[first : last + 1] - sweep.timestamp_ns,
        sweep_poses=np.stack(list(path.values()))[first : last + 1],
    )


def deskew(sweep: Sweep) -> Sweep:
    """Move each point of a sweep from the ego frame of its firing time into the ego frame at `timestamp_ns`.

    The vehicle's pose at a point's time is interpolated between the poses within the sweep: rotation by slerp,
    translation linearly.

    Args:
        sweep: The sweep. Where `world_SE3_ego` is None, the poses within the sweep tell the pose at `timestamp_ns`.

    Returns:
        The sweep with `motion_compensated` True. The sweep itself if it is corrected already, nobody knows whether it
        is, or it lacks the points' times or the poses within the sweep.

    Raises:
        DataError: If the poses within the sweep are not in order, or do not cover the time in which it was taken.
    """
    times, poses = sweep.sweep_pose_time_offset_ns, sweep.sweep_poses
    if not is_skewed(sweep) or sweep.time_offset_ns is None or times is None or poses is None or len(times) < 2:
        return sweep
    reach_ns = _MOST_BEYOND * float(times[-1] - times[0])
    first, last = int(sweep.time_offset_ns.min()), int(sweep.time_offset_ns.max())
    if first < times[0] - reach_ns or last > times[-1] + reach_ns:
        raise DataError(
            f"the points were fired {first} to {last} ns from the sweep's time, the poses within the sweep are of "
            f"{int(times[0])} to {int(times[-1])} ns",
            where=sweep.name,
            expected="poses that cover the sweep",
            remedy="check the units of time_offset_ns and sweep_pose_time_offset_ns: both are nanoseconds",
        )
    try:
        world_SE3_ego = sweep.world_SE3_ego if sweep.world_SE3_ego is not None else pose_at(0.0, times, poses)
        xyz = move_along(sweep.xyz, sweep.time_offset_ns, times, se3.invert(world_SE3_ego) @ poses)
    except ValueError as error:
        raise DataError(f"cannot follow the poses within the sweep: {error}", where=sweep.name) from None
    return replace(sweep, xyz=xyz.astype(np.float32, copy=False), motion_compensated=True)
