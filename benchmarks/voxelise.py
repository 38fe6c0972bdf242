"""How long does it take to voxelise a sweep of 180,000 points?

    python benchmarks/voxelise.py            # seconds
    python benchmarks/voxelise.py --full     # more repeats

The sweep is a made-up 64-beam one over a flat ground with walls; voxels and range are those of the Waymo recipe.
The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from spot_ray.models.voxelise import Voxels, voxelise

LOWER_M = (-75.2, -75.2, -2.0)
VOXEL_SIZE_M = (0.1, 0.1, 0.15)
VOXEL_SHAPE = (40, 1504, 1504)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    parser.add_argument("--full", action="store_true", help="200 repeats")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--device", default="cpu", help="device of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    repeats = 200 if arguments.full else 30
    points = torch.from_numpy(sweep()).to(arguments.device)
    offsets = torch.tensor([0, len(points)])

    def run(max_points: int | None) -> Voxels:
        return voxelise(
            points,
            offsets,
            lower_m=LOWER_M,
            voxel_size_m=VOXEL_SIZE_M,
            voxel_shape=VOXEL_SHAPE,
            max_points=max_points,
        )

    result = {
        "benchmark": "voxelise",
        "torch": torch.__version__,
        "device": arguments.device,
        "threads": arguments.threads,
        "num_points": len(points),
        "num_voxels": len(run(None).indices),
        "sort_and_segment_ms": measure(lambda: run(None), repeats),
        "first_5_points_ms": measure(lambda: run(5), repeats),
        "unique_and_index_add_ms": measure(lambda: unique_and_index_add(points), repeats),
    }
    if not arguments.json:
        for name in ("sort_and_segment_ms", "first_5_points_ms", "unique_and_index_add_ms"):
            print(f"{name:26} {result[name]}")
    print(json.dumps(result))


def sweep() -> np.ndarray:
    """Return (180,000, 4) float32 points of 64 beams at 2.1 m above flat ground between wavy walls."""
    rng = np.random.default_rng(0)
    inclination = np.repeat(np.radians(np.linspace(-17.6, 2.4, 64)), 2813)[:180_000]
    azimuth = np.tile(np.linspace(-np.pi, np.pi, 2813), 64)[:180_000]
    wall_m = 8 + 15 * (1 + np.sin(7 * azimuth)) * (1 + np.cos(3 * azimuth))
    ground_m = 2.1 / np.maximum(np.sin(-inclination), 1e-3)
    range_m = np.minimum(ground_m, wall_m) + rng.normal(0, 0.03, len(azimuth))
    x = range_m * np.cos(inclination) * np.cos(azimuth)
    y = range_m * np.cos(inclination) * np.sin(azimuth)
    z = 2.1 + range_m * np.sin(inclination)
    return np.stack((x, y, z, rng.random(len(azimuth))), axis=1).astype(np.float32)


def unique_and_index_add(points: Tensor) -> Tensor:
    """Return the (V, C) means by `torch.unique` and `index_add`: the usual way, not repeatable on CUDA."""
    lower, size = torch.tensor(LOWER_M, device=points.device), torch.tensor(VOXEL_SIZE_M, device=points.device)
    nz, ny, nx = VOXEL_SHAPE
    cell = torch.floor((points[:, :3] - lower) / size)
    inside = ((cell >= 0) & (cell < torch.tensor([nx, ny, nz], device=points.device))).all(dim=1)
    points, cell = points[inside], cell[inside].long()
    key = (cell[:, 2] * ny + cell[:, 1]) * nx + cell[:, 0]
    voxel, inverse, counts = torch.unique(key, return_inverse=True, return_counts=True)
    sums = points.new_zeros(len(voxel), points.shape[1]).index_add_(0, inverse, points)
    return sums / counts[:, None]


def measure(run: Callable[[], object], repeats: int) -> float:
    """Return the quickest run in milliseconds."""
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return round(best * 1e3, 2)


if __name__ == "__main__":
    main()
