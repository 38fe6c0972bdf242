"""How do generated occupancy labels, and the ground found without labels, agree with real data?

    python benchmarks/label_real.py --data ../shared/data [--json]

`--data` holds the folders `nuscenes` (v1.0-mini) and `semantickitti` in their official layouts. Printed are:

- **SemanticKITTI**, each frame that has official volumes: the agreement of a scan's own voxels with `.bin` for two
  heights of the volumes' lower face; then that of the labels, stage by stage, with all three
  volumes (`spot_ray.evaluate.official_volumes`).
- **nuScenes**: voxels left behind in the paths of moving objects (`spot_ray.evaluate.trails`).
- **Both**: the spread of the ground's height over the sweeps, with the poses as they are and corrected, as labelling
  does it where they are flat (`spot_ray.evaluate.ground_spread`); and the ground found from geometry alone against the
  points' labels.

The last line is one JSON object; `--json` leaves out the summary before it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spot_ray.convert.run import convert
from spot_ray.evaluate.ground_spread import ground_spread
from spot_ray.evaluate.official_volumes import OfficialVolumes, agreement, official_grid
from spot_ray.evaluate.trails import count_trails
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.occupancy.config import LabelConfig
from spot_ray.occupancy.ground import ground_mask
from spot_ray.occupancy.heights import HeightAligner
from spot_ray.occupancy.label import label_sequence
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import IGNORE
from spot_ray.storage.dataset import open_dataset

LOWEST_M = (-2.0, -2.2)
"""The lower face of SemanticKITTI's volumes in the LiDAR's frame: by its configuration, and by the volumes."""

STAGES: dict[str, dict[str, bool | str]] = {
    "own_scan": {"aggregate": False, "fill_holes": False},
    "sequence": {"fill_holes": False},
    "holes_filled": {},
    "heights_aligned": {"fill_holes": False, "align_heights": "always"},
}
"""What SemanticKITTI is labelled with: one stage after the other, and a choice that is off there."""

GROUND_WITHIN_M = 50.0
STEEP = 0.25
"""Slope of the labelled ground from which it is reported apart: banks, which geometry alone takes for obstacles."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the real data")
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    arguments = parser.parse_args()
    started = time.perf_counter()
    result: dict[str, Any] = {
        "benchmark": "label_real",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()} {platform.system()}; Python "
        f"{platform.python_version()}, numpy {np.__version__}",
        "command": f"python benchmarks/label_real.py {' '.join(sys.argv[1:])}".strip(),
    }
    with tempfile.TemporaryDirectory() as folder:
        result["semantickitti"] = semantickitti(arguments.data / "semantickitti", Path(folder))
        result["nuscenes"] = nuscenes(arguments.data / "nuscenes", Path(folder))
    result["seconds"] = round(time.perf_counter() - started, 1)
    if not arguments.json:
        print_summary(result)
    print(json.dumps(rounded(result)))


def semantickitti(source: Path, folder: Path) -> dict[str, Any]:
    sweeps, info = converted("semantickitti", source, folder)
    ego_xyz_lidar = info.rig[0].pose[:3, 3]
    grid = official_grid(ego_xyz_lidar)
    sensor = tuple((ego_xyz_lidar - grid.lower_m) / grid.voxel_size_m)
    voxels = source / "sequences" / "00" / "voxels"
    labels = {
        name: label_sequence(sweeps, info=info, config=LabelConfig(grid=grid, **switches))[0]
        for name, switches in STAGES.items()
    }
    frames = {}
    for i, sweep in enumerate(sweeps):
        if not (voxels / f"{sweep.frame_id}.bin").exists():
            continue
        volumes = OfficialVolumes.read(voxels, sweep.frame_id)
        by_lowest = {
            str(lowest): scan_iou(sweep, official_grid(ego_xyz_lidar, lowest_m=lowest), volumes.scan)
            for lowest in LOWEST_M
        }
        frames[sweep.frame_id] = {"scan_iou_by_lowest_m": by_lowest} | {
            name: asdict(agreement(made[i], volumes, sensor_voxel=sensor)) for name, made in labels.items()
        }
    return {"frames": frames, "heights": heights(sweeps, info)[0], "ground": ground(sweeps, info)}


def nuscenes(source: Path, folder: Path) -> dict[str, Any]:
    sweeps, info = converted("nuscenes", source, folder, version="v1.0-mini")
    config = LabelConfig()
    labels, _ = label_sequence(sweeps, info=info, config=config)
    spread, poses = heights(sweeps, info)
    trails = count_trails(labels, sweeps, poses, info.taxonomy, config.grid)
    return {"trails": asdict(trails), "heights": spread, "ground": ground(sweeps, info)}


def converted(name: str, source: Path, folder: Path, **options: str) -> tuple[list[Sweep], DatasetInfo]:
    uri = str(folder / name)
    convert(name, source=str(source), uri=uri, num_workers=1, **options)
    dataset = open_dataset(uri)
    return list(dataset), dataset.info


def scan_iou(sweep: Sweep, grid: VoxelGrid, official: npt.NDArray[np.bool_]) -> float:
    voxel, inside = grid.voxel_of(sweep.xyz)
    own = np.zeros(grid.shape, dtype=bool)
    own[tuple(voxel[inside].T)] = True
    return float((own & official).sum() / (own | official).sum())


def classes(sweep: Sweep, info: DatasetInfo) -> npt.NDArray[np.uint8]:
    assert sweep.point_source_class is not None
    return info.taxonomy.lookup()[sweep.point_source_class]


def is_ground(sweep: Sweep, info: DatasetInfo) -> npt.NDArray[np.bool_]:
    return np.isin(classes(sweep, info), np.flatnonzero(info.taxonomy.mask("ground")))


def heights(sweeps: list[Sweep], info: DatasetInfo) -> tuple[dict[str, Any], list[npt.NDArray[np.float64]]]:
    """Return the spread of the ground's height before and after the correction, and the corrected poses."""
    aligner = HeightAligner()
    before, after, near = [], [], []
    for sweep in sweeps:
        assert sweep.world_SE3_ego is not None
        on_ground = is_ground(sweep, info)
        before.append(sweep.world_SE3_ego)
        after.append(aligner.correct(sweep.xyz, on_ground, sweep.world_SE3_ego))
        near.append(sweep.xyz[on_ground & (np.abs(sweep.xyz[:, :2]).max(axis=1) < 40.0)])
    correction = [float(b[2, 3] - a[2, 3]) for a, b in zip(before, after, strict=True)]
    found = {
        "poses_as_they_are": asdict(ground_spread(near, before)),
        "poses_corrected": asdict(ground_spread(near, after)),
        "correction_m": correction,
    }
    return found, after


def ground(sweeps: list[Sweep], info: DatasetInfo) -> dict[str, Any]:
    """Return precision, recall and IoU of the ground found from geometry, against the points' labels."""
    counts = {"all": np.zeros(3, np.int64), "without_steep_ground": np.zeros(3, np.int64)}
    for sweep in sweeps:
        truth = is_ground(sweep, info)
        found = ground_mask(sweep.xyz)
        counted = (np.hypot(sweep.xyz[:, 0], sweep.xyz[:, 1]) < GROUND_WITHIN_M) & (classes(sweep, info) != IGNORE)
        for name, where in (("all", counted), ("without_steep_ground", counted & ~steep(sweep.xyz, truth))):
            counts[name] += [(where & a & b).sum() for a, b in ((truth, found), (~truth, found), (truth, ~found))]
    return {
        name: {"precision": tp / (tp + fp), "recall": tp / (tp + fn), "iou": tp / (tp + fp + fn)}
        for name, (tp, fp, fn) in counts.items()
    }


def steep(xyz: npt.NDArray[np.float32], truth: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return the (N,) mask of the ground points in patches of 2 m whose plane is steeper than `STEEP`."""
    result = np.zeros(len(xyz), dtype=bool)
    patch = np.floor(xyz[:, :2] / 2.0).astype(np.int64)
    rows = np.flatnonzero(truth)
    order = rows[np.argsort((patch[rows, 0] << 32) + patch[rows, 1], kind="stable")]
    starts = np.flatnonzero((np.diff(patch[order], axis=0, prepend=patch[order[:1]] - 1) != 0).any(axis=1))
    for members in np.split(order, starts[1:]):
        centred = xyz[members].astype(np.float64) - xyz[members].mean(axis=0)
        # Patches with less than 0.15 m of spread across their length are single scan lines: no slope is to be had.
        spread = np.linalg.svd(centred[:, :2], compute_uv=False)
        if len(members) >= 6 and spread[1] > 0.15 * math.sqrt(len(members)):
            slope = np.linalg.lstsq(centred[:, :2], centred[:, 2], rcond=None)[0]
            result[members] = np.linalg.norm(slope) > STEEP
    return result


def print_summary(result: dict[str, Any]) -> None:
    kitti, nusc = result["semantickitti"], result["nuscenes"]
    for frame_id, frame in kitti["frames"].items():
        offsets = ", ".join(f"{k} m: {v:.3f}" for k, v in frame["scan_iou_by_lowest_m"].items())
        print(f"SemanticKITTI 00/{frame_id}: IoU of the scan's voxels and .bin with the lower face at {offsets}")
        print(f"  {'':<20}{'own scan':>10}{'sequence':>10}{'holes filled':>14}{'heights aligned':>17}")
        for name in frame["sequence"]:
            own, sequence, filled, aligned = (frame[stage][name] for stage in STAGES)
            print(f"  {name:<20}{own:>10.4f}{sequence:>10.4f}{filled:>14.4f}{aligned:>17.4f}")
    trails = nusc["trails"]
    print(
        f"nuScenes: {trails['tracks']} moving tracks; of {trails['path']} voxels in their paths {trails['own_class']} "
        f"have the object's class, {trails['foreground']} any foreground class, {trails['other']} another that is not "
        "ground"
    )
    for name, part in (("SemanticKITTI", kitti), ("nuScenes", nusc)):
        for kind in ("poses_as_they_are", "poses_corrected"):
            spread = part["heights"][kind]
            print(
                f"{name}: ground of {spread['cells']} cells, {kind.replace('_', ' ')}: spread {spread['median_m']:.3f} "
                f"m (median), {spread['p95_m']:.3f} m (95 %), {spread['end_to_end_m']:+.3f} m from first to last sweep"
            )
        for kind, found in part["ground"].items():
            figures = ", ".join(f"{key} {value:.3f}" for key, value in found.items())
            print(f"{name}: ground from geometry, {kind.replace('_', ' ')}: {figures}")


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
