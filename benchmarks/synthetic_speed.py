"""How many sweeps and exact occupancies a second does one core make, and how long does the first one take?

    python benchmarks/synthetic_speed.py [--json] [--full]

One JSON object is the last line of the output. `--json` prints nothing else. `--full` measures every preset.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime

import numpy as np

from spot_ray.geometry.grid import VoxelGrid
from spot_ray.synthetic.presets import PRESETS
from spot_ray.synthetic.world import World

_FIRST_SWEEP = """
import time
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.synthetic.world import World
start, own = time.perf_counter(), time.process_time()
world = World("waymo", seed=0, sequence=0, num_frames=1)
world.sweep(0)
print(time.perf_counter() - start, time.process_time() - own)
start, own = time.perf_counter(), time.process_time()
world.exact_occupancy(0, VoxelGrid())
print(time.perf_counter() - start, time.process_time() - own)
"""


def first_seconds() -> dict[str, float]:
    """Return the seconds to the first sweep and then to the first exact occupancy, with nothing compiled before."""
    with tempfile.TemporaryDirectory() as cache:
        result = subprocess.run(
            [sys.executable, "-c", _FIRST_SWEEP],
            env={**os.environ, "NUMBA_CACHE_DIR": cache},
            check=True,
            capture_output=True,
            text=True,
        )
    names = ("first_sweep_seconds", "first_sweep_cpu_seconds", "first_exact_seconds", "first_exact_cpu_seconds")
    return {name: round(float(value), 1) for name, value in zip(names, result.stdout.split(), strict=True)}


def measure(preset: str, num_frames: int) -> dict[str, float | int]:
    """Return the rates of one preset, in seconds of this process's own CPU time and of the clock."""
    start = time.perf_counter()
    world = World(preset, seed=0, sequence=0, num_frames=num_frames)
    build = time.perf_counter() - start
    grid = VoxelGrid()
    world.sweep(0)
    world.exact_occupancy(0, grid)
    clock, cpu, exact, points, occupied = [], [], [], [], []
    for frame in range(num_frames):
        wall, own = time.perf_counter(), time.process_time()
        points.append(len(world.sweep(frame)))
        clock.append(time.perf_counter() - wall)
        cpu.append(time.process_time() - own)
    for frame in range(0, num_frames, 4):
        own = time.process_time()
        occupied.append(len(world.exact_occupancy(frame, grid).index))
        exact.append(time.process_time() - own)
    lidar = PRESETS[preset].lidar
    return {
        "rays": lidar.num_beams * (lidar.columns or 0),
        "objects": world.num_objects,
        "points_per_sweep": round(float(np.mean(points))),
        "sweeps_per_cpu_second": round(1 / float(np.median(cpu)), 1),
        "sweeps_per_second": round(1 / float(np.median(clock)), 1),
        "best_sweeps_per_second": round(1 / min(clock), 1),
        "exact_occupancy_cpu_seconds": round(float(np.median(exact)), 3),
        "occupied_voxels": round(float(np.mean(occupied))),
        "build_seconds": round(build, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    parser.add_argument("--full", action="store_true", help="all presets, more frames")
    args = parser.parse_args()
    report = {
        "benchmark": "synthetic_speed",
        "date": datetime.now(UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        **first_seconds(),
        "presets": {
            preset: measure(preset, 100 if args.full else 20) for preset in (PRESETS if args.full else ["waymo"])
        },
    }
    if not args.json:
        for preset, figures in report["presets"].items():
            print(f"{preset}: " + ", ".join(f"{name} {value}" for name, value in figures.items()))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
