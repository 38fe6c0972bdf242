"""Checks of the poses: jumps, and whether static things stay in place under them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from spot_ray.diagnose.finding import Finding, Severity
from spot_ray.diagnose.listing import frame_name
from spot_ray.geometry import se3
from spot_ray.geometry.boxes import points_in_boxes
from spot_ray.schema.sweep import Sweep
from spot_ray.storage.dataset import Dataset

Pair = tuple[Sweep, Sweep]

_FASTEST_M_S = 70.0
_NEIGHBOUR_M = 0.2
_REACH_M = 40.0
_LOWEST_M = 0.5
_MOST_POINTS = 4000
_LEAST_MOTION_M = 0.7
"""Between the frames of a pair: below, every hypothesis aligns them alike."""
_CLEARLY = 0.1
"""By how much another hypothesis must align better before it is called the right one."""
_LITTLE = 0.03


def check_jumps(dataset: Dataset, poses: Mapping[str, Sequence[npt.NDArray[np.float64] | None]]) -> Iterator[Finding]:
    """Yield where the vehicle would have to fly.

    Args:
        dataset: The dataset.
        poses: (4, 4) pose of every frame of some sequences, or None, by sequence.
    """
    known = {(s, i): pose for s, each in poses.items() for i, pose in zip(dataset.frames_of(s), each, strict=True)}
    missing = [i for (_, i), pose in known.items() if pose is None]
    if missing:
        what = f"{len(missing)} of {len(known)} frames have no pose: their sequences cannot be aggregated"
        severity: Severity = "note" if len(missing) == len(known) else "warning"
        yield Finding(severity, "poses", what, frame_name(dataset, missing[0]))
    times = dataset.manifest.column("timestamp_ns").to_numpy()
    jumps: list[tuple[float, int]] = []
    still = moving = 0
    for sequence_id, each in poses.items():
        frames = zip(dataset.frames_of(sequence_id), each, strict=True)
        posed = [(i, pose[:3, 3]) for i, pose in frames if pose is not None]
        if len(posed) < 2:
            continue
        index = np.array([i for i, _ in posed])
        place = np.stack([position for _, position in posed])
        speed = np.linalg.norm(np.diff(place, axis=0), axis=1) / np.maximum(np.diff(times[index]) * 1e-9, 1e-9)
        jumps += [(float(v), int(index[k + 1])) for k, v in enumerate(speed) if v > _FASTEST_M_S]
        still += bool((place == place[0]).all())
        moving += 1
    if jumps:
        worst, i = max(jumps)
        yield Finding(
            "error",
            "poses",
            f"{len(jumps)} times the vehicle is faster than {_FASTEST_M_S:g} m/s between frames, once {worst:.3g} m/s",
            frame_name(dataset, i),
            "poses jump: join of two logs, a lost localisation, or wrong units",
        )
    if moving and still == moving:
        yield Finding(
            "warning",
            "poses",
            f"the pose never changes in any of the {moving} sequences",
            remedy="hand in `world_SE3_ego`, or leave it out where it is not known",
        )


def check_alignment(pairs: Sequence[Pair], ego_SE3_lidar: npt.NDArray[np.float64]) -> Iterator[Finding]:
    """Yield whether another reading of the poses keeps static things in place better than `world_SE3_ego` as it is.

    For each reading: how many of the points over the ground have a neighbour within 0.2 m in the frame before.

    Args:
        pairs: Consecutive sweeps with poses.
        ego_SE3_lidar: (4, 4) mount of the first LiDAR.
    """
    scores = [_scores(first, second, ego_SE3_lidar) for first, second in pairs]
    scores = [score for score in scores if score]
    if not scores:
        return
    mean = {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}
    as_given = mean.pop("as given")
    best = max(mean, key=lambda name: mean[name])
    figures = f"{as_given:.0%} of the points over the ground meet the frame before with the poses as given"
    if mean[best] > as_given + _CLEARLY:
        remedy = {
            "inverted": "poses look inverted: world_SE3_ego takes points of the vehicle to the world",
            "none": "poses do not fit the points: points may be in a world frame already, or the poses belong to other "
            "frames",
            "of the LiDAR": "poses look like the LiDAR's: world_SE3_ego = world_SE3_lidar · inverse(ego_SE3_lidar)",
        }[best]
        yield Finding("error", "alignment", f"{figures}, {mean[best]:.0%} with the poses {_told(best)}", remedy=remedy)
    elif as_given < mean["none"] + _LITTLE:
        yield Finding(
            "warning",
            "alignment",
            f"{figures}, {mean['none']:.0%} without",
            remedy="check the poses' and the points' time and frame",
        )
    else:
        yield Finding("note", "alignment", f"{figures} ({mean['none']:.0%} without)")


def _told(reading: str) -> str:
    return {"inverted": "inverted", "none": "left out", "of the LiDAR": "taken as the LiDAR's"}[reading]


def _scores(first: Sweep, second: Sweep, ego_SE3_lidar: npt.NDArray[np.float64]) -> dict[str, float]:
    """Return the share of points with a neighbour, by reading of the poses; empty where the pair tells nothing."""
    a, b = first.world_SE3_ego, second.world_SE3_ego
    if a is None or b is None or np.linalg.norm(a[:3, 3] - b[:3, 3]) < _LEAST_MOTION_M:
        return {}
    here, there = _standing(first), _standing(second)
    if len(here) < 100 or len(there) < 100:
        return {}
    lidar_SE3_ego = se3.invert(ego_SE3_lidar)
    readings = {
        "as given": se3.invert(a) @ b,
        "inverted": a @ se3.invert(b),
        "none": np.eye(4),
        "of the LiDAR": ego_SE3_lidar @ se3.invert(a) @ b @ lidar_SE3_ego,
    }
    tree = cKDTree(here)
    sample = there[:: max(1, len(there) // _MOST_POINTS)]
    result = {}
    for name, first_SE3_second in readings.items():
        distance, _ = tree.query(se3.transform_points(first_SE3_second, sample), distance_upper_bound=_NEIGHBOUR_M)
        result[name] = float(np.isfinite(distance).mean())
    return result


def _standing(sweep: Sweep) -> npt.NDArray[np.float64]:
    """Return the points that stand over the ground near the vehicle; boxed things may move and do not count."""
    xyz = sweep.xyz.astype(np.float64)
    if sweep.boxes is not None:
        xyz = xyz[points_in_boxes(sweep.xyz, sweep.boxes.boxes, margin_m=0.2) < 0]
    ground = np.percentile(xyz[:, 2], 10)
    distance = np.hypot(xyz[:, 0], xyz[:, 1])
    return xyz[(xyz[:, 2] > ground + _LOWEST_M) & (distance < _REACH_M) & (distance > 2.5)]
