"""What an exported file holds and what it needs: for people, and as JSON beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spot_ray.geometry import se3
from spot_ray.models.config import ModelConfig
from spot_ray.schema.sensors import LidarSpec, Matrix
from spot_ray.train.checkpoint import OccupancyWeights, WeightsKind
from spot_ray.train.provenance import Provenance
from spot_ray.train.provenance import render as render_provenance

FRAME = "ego: x forward, y left, z up, metres; z = 0 is the ground under the vehicle"
GROUND_HEIGHT_M = 0.0

_LEVEL_DEG = 1.0
"""A LiDAR that is turned by less is as good as aligned with the ego frame."""
_EXAMPLE_HEIGHT_M = 1.73
"""Of KITTI's LiDAR."""

_SCALES = {
    "x": "metres",
    "y": "metres",
    "z": "metres",
    "elongation": "tanh of the source's",
    "ring": "divided by the LiDAR's number of beams",
    "time_offset": "seconds since the point's sweep began",
    "time_lag": "seconds by which the point's sweep is earlier than the frame",
}

Range = tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class LidarFrame:
    """One LiDAR that the weights were trained on, for codebases that keep points in its own frame.

    Args:
        dataset: The dataset that it is of.
        name: Its name.
        ego_SE3_lidar: 4 × 4 pose in the ego frame.
        turned_deg: Angle between its axes and those of the ego frame, degrees.
        shift_m: What to add to x, y, z of its own frame to come to the ego frame, if it is not turned: its place.
        point_cloud_range_m: The range here in its own frame, or None if it is turned.
    """

    dataset: str
    name: str
    ego_SE3_lidar: Matrix
    turned_deg: float
    shift_m: tuple[float, float, float]
    point_cloud_range_m: Range | None


@dataclass(frozen=True)
class ExportReport:
    """What an exported file holds, and what it needs to be of use.

    Args:
        out: The file.
        to: Whose names its tensors have.
        detector: Which detector there; None: names of our own.
        like: A config of that codebase that the file fits, but for the values in `their_config`.
        num_keys: Tensors of each part of that detector: so many keys must load.
        checkpoint: Where the weights come from.
        weights: Whether they are the trained weights or their moving average.
        weights_sha256: SHA-256 of the checkpoint's file of these weights, in hex.
        step: Global steps they were trained for.
        features: Input features of a point, in the order of the first convolution's channels.
        feature_scales: What each feature is.
        frame: Axes and origin of the points.
        ground_height_m: Height of the ground in that frame, metres.
        point_cloud_range_m: x, y, z lower, then x, y, z upper corner of the voxels, metres.
        voxel_size_m: Edge lengths of a voxel along x, y, z, metres.
        max_points: Points that counted in a voxel's mean, or None: all.
        num_sweeps: Sweeps that a sample was merged of.
        model: Sizes of the network.
        lidars: The LiDARs that it was trained on; none if the checkpoint does not tell.
        provenance: What it was trained on; None: the checkpoint does not tell.
        their_config: What the config of the other codebase must say; empty for names of our own.
        version: Release of spot_ray that wrote the file.
    """

    out: str
    to: str
    detector: str | None
    like: str | None
    num_keys: dict[str, int]
    checkpoint: str
    weights: WeightsKind
    weights_sha256: str
    step: int
    features: tuple[str, ...]
    feature_scales: dict[str, str]
    frame: str
    ground_height_m: float
    point_cloud_range_m: Range
    voxel_size_m: tuple[float, float, float]
    max_points: int | None
    num_sweeps: int
    model: ModelConfig
    lidars: tuple[LidarFrame, ...]
    provenance: Provenance | None
    their_config: str
    version: str


def feature_scales(stored: OccupancyWeights) -> dict[str, str]:
    """Return what each input feature is, as :func:`~spot_ray.operators.features.point_features` makes it."""
    rig = [lidar for _, lidar in _rig(stored.provenance)]
    return {
        name: _intensity_scale(rig) if name == "intensity" else _SCALES.get(name, "as the source gives it")
        for name in stored.description.features
    }


def lidar_frames(stored: OccupancyWeights) -> tuple[LidarFrame, ...]:
    """Return the LiDARs of the datasets that a checkpoint was trained on."""
    range_m = stored.config.model.voxel.point_cloud_range_m
    return tuple(lidar_frame(dataset, lidar, range_m) for dataset, lidar in _rig(stored.provenance))


def lidar_frame(dataset: str, lidar: LidarSpec, range_m: Range) -> LidarFrame:
    """Return where a LiDAR is, and a range of the ego frame in its own."""
    pose = lidar.pose
    turned_deg = math.degrees(math.acos(float(np.clip((np.trace(pose[:3, :3]) - 1) / 2, -1, 1))))
    x, y, z = (round(float(value), 4) for value in pose[:3, 3])
    return LidarFrame(
        dataset=dataset,
        name=lidar.name,
        ego_SE3_lidar=lidar.ego_SE3_lidar,
        turned_deg=round(turned_deg, 3),
        shift_m=(x, y, z),
        point_cloud_range_m=shifted_range(range_m, (x, y, z)) if turned_deg < _LEVEL_DEG else None,
    )


def shifted_range(range_m: Range, shift_m: tuple[float, float, float]) -> Range:
    """Return a range of the ego frame in a frame whose points must be shifted to come to the ego frame."""
    x0, y0, z0, x1, y1, z1 = (
        round(value - shift, 4) for value, shift in zip(range_m, (*shift_m, *shift_m), strict=True)
    )
    return x0, y0, z0, x1, y1, z1


def render(report: ExportReport) -> str:
    """Return the report for people."""
    facts = [
        ("from", f"{report.checkpoint}, step {report.step}, the {report.weights} weights"),
        ("for", _told_target(report)),
        ("must load", _told_keys(report)),
        ("features", ", ".join(f"{name} ({report.feature_scales[name]})" for name in report.features)),
        ("frame", report.frame),
        ("range", f"{_numbers(report.point_cloud_range_m)} m (x, y, z lower, then upper)"),
        ("voxels", f"{_numbers(report.voxel_size_m)} m, the mean of {_told_points(report)}"),
    ]
    lines = [f"wrote {report.out} and {report.out}.json"]
    lines += [f"  {name + ':':<11}{text}" for name, text in facts]
    lines += [
        *_told_shift(report),
        "trained on:",
        render_provenance(report.provenance) if report.provenance else "  not known: the checkpoint does not note it",
    ]
    if report.their_config:
        lines += ["in its config:", report.their_config]
    return "\n".join(lines)


def _told_target(report: ExportReport) -> str:
    if report.detector is None:
        return "whatever reads safetensors, by the names of spot_ray's own modules"
    name = {"openpcdet": "OpenPCDet", "mmdet3d": "mmdetection3d"}[report.to]
    how = {"openpcdet": "with --pretrained_model", "mmdet3d": "with load_from"}[report.to]
    return f"{name}, a detector set up as {report.like}, {how}"


def _told_keys(report: ExportReport) -> str:
    total = sum(report.num_keys.values())
    counts = " + ".join(f"{count} in {part}" for part, count in report.num_keys.items())
    check = {
        "openpcdet": f"; what does not fit it leaves out without an error: its log must say `loaded {total}/…`",
        "mmdet3d": "; its log must name no unexpected key and no size mismatch; missing are keys of other parts alone",
        "safetensors": "",
    }[report.to]
    return f"{total} keys, {counts}{check}"


def _told_points(report: ExportReport) -> str:
    points = "all its points" if report.max_points is None else f"its first {report.max_points} points"
    return points if report.num_sweeps == 1 else f"{points} of {report.num_sweeps} sweeps"


def _told_shift(report: ExportReport) -> list[str]:
    """Return what a codebase must do that keeps points in the frame of a LiDAR."""
    example = shifted_range(report.point_cloud_range_m, (0.0, 0.0, _EXAMPLE_HEIGHT_M))
    lines = [
        "points in a LiDAR's own frame, at a height h over the ground:",
        "  add h to the z of points and boxes while loading them, and all is as above; or",
        f"  take h off the range in z: with h = {_EXAMPLE_HEIGHT_M} m it is {_numbers(example)}. Voxels then lie where "
        "they did, but the feature z is h too low",
    ]
    for lidar in report.lidars:
        line = f"  {lidar.name} of {lidar.dataset} is at {_numbers(lidar.shift_m)} m"
        if lidar.point_cloud_range_m is None:
            yaw = math.degrees(se3.yaw_of(np.array(lidar.ego_SE3_lidar)))
            line += f" and turned by {lidar.turned_deg:.1f}° (yaw {yaw:.1f}°): move its points by `ego_SE3_lidar`"
        else:
            line += f": in its frame the range is {_numbers(lidar.point_cloud_range_m)}"
        lines.append(line)
    return lines


def _intensity_scale(rig: Sequence[LidarSpec]) -> str:
    scales: dict[str, list[str]] = {}
    for lidar in rig:
        full = lidar.intensity_max
        scales.setdefault("tanh of the source's" if full is None else f"divided by {full:g}", []).append(lidar.name)
    if not scales:
        return "divided by its full scale, or tanh where it has none"
    if len(scales) == 1:
        return next(iter(scales))
    return "; ".join(f"{', '.join(dict.fromkeys(names))}: {scale}" for scale, names in scales.items())


def _rig(provenance: Provenance | None) -> list[tuple[str, LidarSpec]]:
    datasets = provenance.datasets if provenance is not None else ()
    return list(dict.fromkeys((dataset.name, lidar) for dataset in datasets for lidar in dataset.rig))


def _numbers(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:g}' for value in values)}]"
