"""How long does it take to voxelise a sweep of 180,000 points?

    python benchmarks/voxelize.py                                  # seconds
    python benchmarks/voxelize.py --full --spconv-python PYTHON    # more repeats, and against spconv's generator
    python benchmarks/voxelize.py --full --device cuda

The sweep is a made-up 64-beam one over a flat ground with walls; voxels and range are those of the Waymo recipe. Peers
are `torch.unique` with `index_add`, and spconv's generator on the CPU with five points a voxel, in a Python of its own;
without one it is named as absent. Turns alternate; medians; on the CPU in milliseconds of one core. `ms` is ours,
`ratio` the time of `torch.unique` over it. The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spot_ray.models.voxelise import Voxels, voxelise

LOWER_M = (-75.2, -75.2, -2.0)
VOXEL_SIZE_M = (0.1, 0.1, 0.15)
VOXEL_SHAPE = (40, 1504, 1504)
MAX_POINTS = 5
"""Points of a voxel in public configs."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    parser.add_argument("--full", action="store_true", help="200 repeats")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--device", default="cpu", help="device of torch")
    parser.add_argument("--spconv-python", metavar="PYTHON", help="a Python whose spconv runs")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, repeats = torch.device(arguments.device), 200 if arguments.full else 30
    clock = time.process_time if device.type == "cpu" and arguments.threads == 1 else time.perf_counter
    array = sweep()
    points = torch.from_numpy(array).to(device)
    offsets = torch.tensor([0, len(points)], device=device)

    def run(max_points: int | None) -> Voxels:
        return voxelise(
            points,
            offsets,
            lower_m=LOWER_M,
            voxel_size_m=VOXEL_SIZE_M,
            voxel_shape=VOXEL_SHAPE,
            max_points=max_points,
        )

    spent = in_turns(
        {
            "all": lambda: run(None),
            "first": lambda: run(MAX_POINTS),
            "unique": lambda: unique_and_index_add(points),
        },
        device,
        repeats,
        clock,
    )
    voxels = run(None)
    result: dict[str, object] = {
        "benchmark": "voxelize",
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": arguments.threads,
        "num_points": len(points),
        "num_voxels": len(voxels.indices),
        "ms": round(spent["all"], 2),
        "ratio": round(spent["unique"] / spent["all"], 2),
        "unique_and_index_add_ms": round(spent["unique"], 2),
        f"first_{MAX_POINTS}_points_ms": round(spent["first"], 2),
        "same_on_every_run": all(torch.equal(run(None).features, voxels.features) for _ in range(3)),
        "spconv": spconv_generator(arguments.spconv_python, array, repeats, spent["first"]),
    }
    if not arguments.json:
        for name, value in result.items():
            print(f"{name:26} {value}")
    print(json.dumps(result))


def spconv_generator(python: str | None, points: np.ndarray, repeats: int, ours_ms: float) -> dict[str, object]:
    """Return what spconv's generator takes in another Python, or why it was not run."""
    if python is None:
        return {"absent": "no --spconv-python; the wheel for Python 3.11 crashes with NumPy 2"}
    upper_m = [low + size * n for low, size, n in zip(LOWER_M, VOXEL_SIZE_M, reversed(VOXEL_SHAPE), strict=True)]
    grid = {
        "lower_m": LOWER_M,
        "upper_m": upper_m,
        "voxel_size_m": VOXEL_SIZE_M,
        "max_points": MAX_POINTS,
        "repeats": repeats,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "points.npy"
        np.save(path, points)
        script = Path(__file__).with_name("voxelize_spconv.py")
        command = [python, str(script), str(path), json.dumps(grid)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    with_mean_ms = statistics.median(found["with_mean_ms"])
    return {
        "version": found["spconv"],
        "max_points": MAX_POINTS,
        "num_voxels": found["num_voxels"],
        "generate_ms": round(statistics.median(found["generate_ms"]), 2),
        "with_mean_ms": round(with_mean_ms, 2),
        "ratio": round(with_mean_ms / ours_ms, 2),
    }


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


def in_turns(
    forms: dict[str, Callable[[], object]], device: torch.device, repeats: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Return each form's median milliseconds."""
    spent: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(repeats + 3):
        for name, form in forms.items():
            started = clock()
            form()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn >= 3:  # the first warm up
                spent[name].append((clock() - started) * 1e3)
    return {name: statistics.median(times) for name, times in spent.items()}


if __name__ == "__main__":
    main()
