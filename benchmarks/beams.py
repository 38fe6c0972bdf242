"""What does beam re-sampling cost, are rings found that a source hides, and does the result look like the target?

    python benchmarks/beams.py [--json] [--full] [--data ../shared/data] [--picture beams.png]

- **cost**: CPU milliseconds of a sweep of 180,000 points (one of 32 beams where beams are added), the variants by
  turns, median and best of each: finding rings, thinning with and without stored rings, the same thinning by NumPy's
  boolean masks as it was before, and adding beams. `predicted` was written down before the kernels were.
- **nuscenes** (`--data`): the share of points that get the ring which the file states, when it is hidden: of all, of
  those at least 1.5 m from the sensor, and of these in shuffled order; and by the nearest beam of the manual's table.
- **semantickitti** (`--data`): the same, against the rings that the order of the file tells: it lists laser after
  laser, each from straight ahead. Then the spread of each beam's inclination over the frames, and the share of points
  that keep their ring when the frame's beams are replaced by another frame's.
- **kitti**, **once** (`--data`): the former against the order of the file too, the latter's beams over its sweeps.
- **distribution**: synthetic cities, in each a Waymo-like sensor and an HDL-32E at one pose. Sweeps of the first before
  and after re-sampling, against those of the second, where both see (inclinations of -17.6 to 2.4 degrees). Points and
  beams a degree of inclination, in five bins: the sum of the absolute differences in parts of the target's sum. The
  distance to the nearest neighbour, and to the nearest point of another ring: the first Wasserstein distance of the
  distributions of log10 metres. The same for the HDL-32E up-sampled towards the Waymo-like sensor, and how near its new
  points lie to that sensor's own, beside how near its measured points do.

`--full` is the size of the committed figures. `--picture` writes the picture of one sweep at four densities. The last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree
from scipy.stats import wasserstein_distance

from spot_ray.geometry import se3
from spot_ray.operators.beams import even_beams, inclinations_deg, resample
from spot_ray.operators.rings import estimate_rings, find_beams, rings_of
from spot_ray.schema.lidars import HDL_32E, HDL_64E, ONCE_40, WAYMO_TOP
from spot_ray.schema.sensors import IDENTITY, LidarSpec
from spot_ray.schema.sweep import POINT_DTYPES, Sweep
from spot_ray.schema.taxonomy import PAPER_TAXONOMY
from spot_ray.synthetic.presets import PRESETS
from spot_ray.synthetic.sensor import Beams, Objects, scan
from spot_ray.synthetic.world import World
from spot_ray.view.beams import Density, draw_densities

POINTS = 180_000
NEAREST_M = 1.5
COMMON_DEG = (-17.6, 2.4)
BINS = 5
"""Over the common field of view: 4 degrees each, some beams of the sparser sensor."""
PREDICTED = {"thin_ring_stored_ms": 0.2, "speed_up_of_thinning": 5.0, "find_rings_ms": 4.0}
NOT_TAKEN = (
    "the sharpest histogram by coordinate search over six parameters: 300 to 500 histograms a sweep, 6 to 10 ms",
    "beams by the nearest entry of the manual's table: see nominal_table",
    "gathering all columns in one compiled loop: a kernel a combination of dtypes to compile, and take() costs 0.02 ms",
    "the rings of the file's order alone: right for KITTI, silently wrong for a source that sorts its points",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    parser.add_argument("--full", action="store_true", help="the size of the committed figures")
    parser.add_argument("--data", type=Path, help="folder of the real data")
    parser.add_argument("--picture", type=Path, help="write the picture of one sweep at four densities")
    arguments = parser.parse_args()
    report: dict[str, Any] = {
        "benchmark": "beams",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()} {platform.system()}; Python "
        f"{platform.python_version()}, numpy {np.__version__}, numba {numba.__version__}",
        "load_average": round(os.getloadavg()[0], 1),
        "cost": cost(60 if arguments.full else 10),
        "distribution": distribution(8 if arguments.full else 1),
        "not_taken": NOT_TAKEN,
    }
    if arguments.data:
        report["nuscenes"] = nuscenes(arguments.data / "nuscenes" / "samples" / "LIDAR_TOP")
        report["semantickitti"] = semantickitti(arguments.data / "semantickitti" / "sequences" / "00" / "velodyne")
        report["kitti"] = kitti(arguments.data / "kitti" / "training" / "velodyne")
        report["once"] = once(arguments.data / "once" / "data")
    if arguments.picture:
        picture(arguments.picture)
    if not arguments.json:
        for name, value in report.items():
            print(f"{name:16} {value}")
    print(json.dumps(report))


def cost(rounds: int) -> dict[str, Any]:
    """Return the CPU milliseconds of the variants."""
    sweep = of_size(World("waymo", seed=0, sequence=0, num_frames=1).sweep(0), POINTS)
    two_blocks = of_size(World("kitti", seed=0, sequence=0, num_frames=1).sweep(0), POINTS)
    sparse = World("nuscenes", seed=0, sequence=0, num_frames=1).sweep(0)
    # What training with the default features reads.
    sweep, two_blocks, sparse = (
        Sweep("s", "f", 0, one.xyz, intensity=one.intensity, ring=one.ring, lidar_id=one.lidar_id)
        for one in (sweep, two_blocks, sparse)
    )
    target = {"density": HDL_32E.beam_density, "phase": 0.3}
    hidden = replace(sweep, ring=None)
    work: dict[str, Callable[[], object]] = {
        "find_rings_64_beams": lambda: estimate_rings(sweep.xyz, WAYMO_TOP),
        "find_rings_64_beams_of_two_blocks": lambda: estimate_rings(two_blocks.xyz, HDL_64E),
        "thin_ring_stored": lambda: resample(sweep, (WAYMO_TOP,), **target),
        "thin_ring_found": lambda: resample(hidden, (WAYMO_TOP,), **target),
        "thin_ring_stored_by_masks": lambda: thinned_by_masks(sweep, WAYMO_TOP, **target),
        "add_from_32_beams_to_hdl_64e": lambda: resample(sparse, (HDL_32E,), density=HDL_64E.beam_density, phase=0.3),
    }
    for one in work.values():
        one()
    spent: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, one in work.items():
            start = time.process_time()
            one()
            spent[name].append(time.process_time() - start)
    result: dict[str, Any] = {
        name: {"median_cpu_ms": round(float(np.median(times)) * 1e3, 3), "best_cpu_ms": round(min(times) * 1e3, 3)}
        for name, times in spent.items()
    }
    ratios = np.array(spent["thin_ring_stored_by_masks"]) / np.array(spent["thin_ring_stored"])
    return {
        "points": len(sweep),
        "points_of_32_beams": len(sparse),
        **result,
        "speed_up_of_thinning": round(float(np.median(ratios)), 1),
        "predicted": PREDICTED,
    }


def thinned_by_masks(sweep: Sweep, spec: LidarSpec, *, density: float, phase: float) -> Sweep:
    """Thin a sweep as it was done before: a mask a LiDAR, and every column by the mask."""
    keep = np.ones(len(sweep), dtype=bool)
    own = sweep.lidar_id == spec.lidar_id
    ring = sweep.ring[own]
    assert ring.max() < spec.num_beams
    keep[own] = even_beams(np.array(spec.inclinations_deg), density=density, phase=phase)[ring]
    columns = {name: getattr(sweep, name) for name in POINT_DTYPES}
    return replace(
        sweep, xyz=sweep.xyz[keep], **{name: values[keep] for name, values in columns.items() if values is not None}
    )


def of_size(sweep: Sweep, size: int) -> Sweep:
    """Return a sweep of a number of points, the first ones twice if need be, in the order of a turn."""
    index = np.sort(np.arange(size) % len(sweep))
    columns = {name: getattr(sweep, name) for name in POINT_DTYPES if getattr(sweep, name) is not None}
    return replace(sweep, xyz=sweep.xyz[index], **{name: values[index] for name, values in columns.items()})


def nuscenes(folder: Path) -> dict[str, Any]:
    """Return the shares of points that get the ring that the file states."""
    spec = replace(HDL_32E, ego_SE3_lidar=IDENTITY)
    frames = []
    for path in sorted(folder.glob("*.bin")):
        points = np.fromfile(path, "<f4").reshape(-1, 5)
        frames.append((np.ascontiguousarray(points[:, :3]), points[:, 4].astype(np.uint16)))
    return {"frames": len(frames), **accuracy(frames, spec)}


def semantickitti(folder: Path) -> dict[str, Any]:
    """Return the shares of points that get the ring of the file's order, and how stable the beams are."""
    spec, frames = replace(HDL_64E, ego_SE3_lidar=IDENTITY), kitti_frames(folder)
    found = [find_beams(xyz, spec) for xyz, _ in frames]
    inclination = np.degrees(np.arctan([beams.tangent for beams in found]))
    own = [rings_of(xyz, spec, beams) for (xyz, _), beams in zip(frames, found, strict=True)]
    swapped = np.array(
        [
            [(rings_of(xyz, spec, other) == ring).mean() for other in found]
            for (xyz, _), ring in zip(frames, own, strict=True)
        ]
    )
    apart = ~np.eye(len(frames), dtype=bool)
    return {
        "frames": len(frames),
        "rings_in_file_order": sorted({int(ring.max()) + 1 for _, ring in frames}),
        **accuracy(frames, spec),
        "inclination_std_over_frames_deg": spread(inclination.std(axis=0)),
        "inclination_range_over_frames_deg": spread(np.ptp(inclination, axis=0)),
        "least_space_between_beams_deg": round(float(np.diff(inclination.mean(axis=0)).min()), 3),
        "same_ring_with_beams_of_another_frame": {
            "mean": round(float(swapped[apart].mean()), 5),
            "worst": round(float(swapped[apart].min()), 5),
            "of_the_next": round(float(np.diag(swapped, 1).mean()), 5),
        },
        "height_of_upper_block_m": spread(np.array([beams.parameters[-1] for beams in found])),
        "height_of_lower_block_m": spread(np.array([beams.parameters[-2] for beams in found])),
    }


def kitti(folder: Path) -> dict[str, Any]:
    """Return the shares of points of the object benchmark that get the ring of the file's order."""
    frames = kitti_frames(folder)
    return {"frames": len(frames), **accuracy(frames, replace(HDL_64E, ego_SE3_lidar=IDENTITY))}


def once(folder: Path) -> dict[str, Any]:
    """Return how stable the beams are, of which nothing else is known."""
    spec = replace(ONCE_40, ego_SE3_lidar=IDENTITY)
    found = []
    for path in sorted(folder.glob("*/lidar_roof/*.bin")):
        xyz = np.fromfile(path, "<f4").reshape(-1, 4)[:, :3]
        found.append(find_beams(np.ascontiguousarray(xyz[np.isfinite(xyz).all(axis=1)]), spec).tangent)
    inclination = np.degrees(np.arctan(found))
    off = np.abs(inclination.mean(axis=0) - np.sort(spec.inclinations_deg))
    return {
        "frames": len(found),
        "inclination_range_over_frames_deg": spread(np.ptp(inclination, axis=0)),
        "off_the_manual_deg": spread(off),
    }


def kitti_frames(folder: Path) -> list[tuple[npt.NDArray[np.float32], npt.NDArray[np.uint16]]]:
    """Return the points of files in KITTI's order, and the rings that the order tells."""
    frames = []
    for path in sorted(folder.glob("*.bin")):
        xyz = np.ascontiguousarray(np.fromfile(path, "<f4").reshape(-1, 4)[:, :3])
        frames.append((xyz, rings_of_file_order(xyz)))
    return frames


def rings_of_file_order(xyz: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Return the rings of a KITTI file: a laser's points begin where y turns positive ahead of the vehicle."""
    x, y = xyz[:, 0], xyz[:, 1]
    begins = np.zeros(len(xyz), dtype=np.uint16)
    begins[1:] = (y[:-1] < 0) & (y[1:] >= 0) & (x[1:] > 0) & (x[:-1] > 0)
    return np.cumsum(begins, dtype=np.uint16)


def accuracy(frames: list[tuple[npt.NDArray[np.float32], npt.NDArray[np.uint16]]], spec: LidarSpec) -> dict[str, Any]:
    """Return the shares of points with the right ring: mean and worst over frames."""
    table = np.array(spec.inclinations_deg)
    rng = np.random.default_rng(0)
    shares: dict[str, list[float]] = {name: [] for name in ("all", "from_1.5_m", "shuffled_from_1.5_m", "nominal")}
    off = []
    for xyz, ring in frames:
        far = np.hypot(xyz[:, 0], xyz[:, 1]) >= NEAREST_M
        found, _ = estimate_rings(xyz, spec)
        order = rng.permutation(len(xyz))
        shuffled, _ = estimate_rings(xyz[order], spec)
        nearest = np.abs(inclinations_deg(xyz, spec)[:, None] - table).argmin(axis=1)
        shares["all"].append((found == ring).mean())
        shares["from_1.5_m"].append((found == ring)[far].mean())
        shares["shuffled_from_1.5_m"].append((shuffled == ring[order])[far[order]].mean())
        shares["nominal"].append((nearest == ring)[far].mean())
        off.append(far.mean())
    result: dict[str, Any] = {
        name: {"mean": round(float(np.mean(values)), 5), "worst": round(float(np.min(values)), 5)}
        for name, values in shares.items()
    }
    return {
        "share_from_1.5_m": round(float(np.mean(off)), 3),
        "right_ring": result["all"],
        "right_ring_from_1.5_m": result["from_1.5_m"],
        "right_ring_from_1.5_m_in_shuffled_order": result["shuffled_from_1.5_m"],
        "nominal_table_from_1.5_m": result["nominal"],
    }


def spread(values: npt.NDArray[np.floating]) -> dict[str, float]:
    """Return least, median and largest."""
    return {name: round(float(f(values)), 4) for name, f in (("min", np.min), ("median", np.median), ("max", np.max))}


def distribution(num_scenes: int) -> dict[str, Any]:
    """Return the distances between the distributions of sweeps, the mean over scenes."""
    rows = []
    for scene in range(num_scenes):
        world = World("waymo", seed=scene // 3, sequence=scene % 3, num_frames=6)
        dense, sparse = (
            seen_by(world, 5, spec, preset) for spec, preset in ((WAYMO_TOP, "waymo"), (AT_WAYMO, "nuscenes"))
        )
        thin = resample(dense, (WAYMO_TOP,), density=HDL_32E.beam_density, phase=0.5)
        more = resample(sparse, (AT_WAYMO,), density=WAYMO_TOP.beam_density, phase=0.5)
        off = cKDTree(dense.xyz).query(more.xyz[len(sparse) :])[0]
        angle = inclinations_deg(more.xyz[len(sparse) :], AT_WAYMO)
        off = off[(angle > COMMON_DEG[0]) & (angle < COMMON_DEG[1])]
        view = {
            "dense": View(dense, WAYMO_TOP),
            "thin": View(thin, WAYMO_TOP),
            "sparse": View(sparse, AT_WAYMO),
        }
        filled = View(more, AT_WAYMO, rings=False)
        rows.append(
            {
                "down": {
                    "before": view["dense"].distance_to(view["sparse"]),
                    "after": view["thin"].distance_to(view["sparse"]),
                },
                "up": {
                    "before": View(sparse, AT_WAYMO, rings=False).distance_to(view["dense"]),
                    "after": filled.distance_to(view["dense"]),
                    "new_points_within_m": {f"{limit:g}": float((off < limit).mean()) for limit in (0.2, 0.5, 1.0)},
                    "sparse_points_within_m": {
                        f"{limit:g}": float((cKDTree(dense.xyz).query(common(sparse))[0] < limit).mean())
                        for limit in (0.2, 0.5, 1.0)
                    },
                },
                "per_degree": {
                    name: {"points": float(one.points.mean()), "beams": float(one.beams.mean())}
                    for name, one in view.items()
                },
                "median_m": {
                    name: {
                        "nearest": 10 ** float(np.median(one.nearest)),
                        "other_ring": 10 ** float(np.median(one.other)),
                    }
                    for name, one in view.items()
                },
            }
        )
    return {"scenes": num_scenes, **mean_of(rows)}


AT_WAYMO = replace(HDL_32E, ego_SE3_lidar=WAYMO_TOP.ego_SE3_lidar)
"""The HDL-32E where the Waymo-like sensor is mounted."""


def common(sweep: Sweep) -> npt.NDArray[np.float32]:
    """Return the points that both sensors could see."""
    angle = inclinations_deg(sweep.xyz, AT_WAYMO)
    return sweep.xyz[(angle > COMMON_DEG[0]) & (angle < COMMON_DEG[1])]


def seen_by(world: World, frame: int, spec: LidarSpec, preset: str) -> Sweep:
    """Return the sweep of any sensor in a synthetic world, mounted as its spec says."""
    world_SE3_sensor = world.world_SE3_ego(frame) @ spec.pose
    objects = Objects(
        np.array([PAPER_TAXONOMY.id_of(thing.class_name) for thing in world.things], np.uint16),
        np.array([thing.albedo for thing in world.things], np.float64),
    )
    returns = scan(
        np.random.default_rng(frame), Beams.of(spec), PRESETS[preset].noise, world.ground,
        world.solids(frame, se3.invert(world_SE3_sensor)), objects, spec.pose, world_SE3_sensor,
    )  # fmt: skip
    return Sweep("s", "f", 0, returns.xyz, ring=returns.ring)


class View:
    """What is compared of a sweep, within the common field of view.

    Args:
        sweep: The sweep.
        spec: Its sensor.
        rings: Whether points of different rings can be told apart by their rings; of added ones they cannot.
    """

    def __init__(self, sweep: Sweep, spec: LidarSpec, *, rings: bool = True) -> None:
        angle = inclinations_deg(sweep.xyz, spec)
        inside = (angle > COMMON_DEG[0]) & (angle < COMMON_DEG[1])
        xyz, ring, angle = sweep.xyz[inside].astype(np.float64), sweep.ring[inside], angle[inside]
        edges = np.linspace(*COMMON_DEG, BINS + 1)
        self.points = np.histogram(angle, edges)[0] / (edges[1] - edges[0])
        present = np.unique(ring)
        middle = np.array([np.median(angle[ring == r]) for r in present])
        self.beams = np.histogram(middle, edges)[0] / (edges[1] - edges[0])
        some = np.random.default_rng(0).permutation(len(xyz))[:4000]
        self.nearest = np.log10(np.maximum(cKDTree(xyz).query(xyz[some], k=2)[0][:, 1], 1e-3))
        if rings:
            best = np.full(len(some), np.inf)
            for r in present:
                distance = cKDTree(xyz[ring == r]).query(xyz[some])[0]
                best = np.where(ring[some] == r, best, np.minimum(best, distance))
            self.other = np.log10(best)
        self.rings = rings

    def distance_to(self, target: View) -> dict[str, float]:
        """Return the distances of the distributions."""
        result = {"points_per_degree": float(np.abs(self.points - target.points).sum() / target.points.sum())}
        result["nearest_neighbour"] = float(wasserstein_distance(self.nearest, target.nearest))
        if self.rings:
            result["beams_per_degree"] = float(np.abs(self.beams - target.beams).sum() / target.beams.sum())
            result["nearest_of_another_ring"] = float(wasserstein_distance(self.other, target.other))
        return result


def mean_of(rows: list[Any]) -> Any:
    """Return the mean of numbers in equal nested dictionaries."""
    if isinstance(rows[0], dict):
        return {name: mean_of([row[name] for row in rows]) for name in rows[0]}
    return round(float(np.mean(rows)), 4)


def picture(path: Path) -> None:
    """Write the picture of one synthetic sweep at the densities of the paper's datasets."""
    sweep = World("waymo", seed=3, sequence=0, num_frames=20).sweep(10)
    densities = []
    for target in (None, HDL_64E, ONCE_40, HDL_32E):
        name, factor = "as it is", 1.0
        one = sweep
        if target is not None:
            name, factor = f"as {target.name}", target.beam_density / WAYMO_TOP.beam_density
            one = resample(sweep, (WAYMO_TOP,), density=target.beam_density, phase=0.5)
        x, y, z = se3.transform_points(se3.invert(WAYMO_TOP.pose), one.xyz.astype(np.float64)).T
        title = f"R = {factor:.2g}, {name}\n{len(np.unique(one.ring))} beams, {len(one):,} points"
        densities.append(
            Density(
                title,
                one.xyz,
                np.degrees(np.arctan2(y, x)),
                np.degrees(np.arctan2(z, np.hypot(x, y))),
                np.sqrt(x * x + y * y + z * z),
            )
        )
    draw_densities(path, densities=densities, title="One synthetic sweep of 64 beams, at four beam densities")


if __name__ == "__main__":
    main()
