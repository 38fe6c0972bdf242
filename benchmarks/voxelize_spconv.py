"""Times spconv's voxel generator on the CPU for `voxelize.py`, in whatever Python holds a spconv that runs.

    PYTHON benchmarks/voxelize_spconv.py points.npy '{"lower_m": […], "voxel_size_m": […], "upper_m": […], …}'

It imports NumPy and spconv alone, of which older wheels break with NumPy 2. The last line is a JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import distributions

import numpy as np
from cumm import tensorview
from spconv.utils import Point2VoxelCPU3d


def main() -> None:
    points = np.load(sys.argv[1])
    grid = json.loads(sys.argv[2])
    generator = Point2VoxelCPU3d(
        vsize_xyz=grid["voxel_size_m"],
        coors_range_xyz=[*grid["lower_m"], *grid["upper_m"]],
        num_point_features=points.shape[1],
        max_num_voxels=len(points),
        max_num_points_per_voxel=grid["max_points"],
    )
    generate_ms, with_mean_ms = [], []
    num_voxels = 0
    for _ in range(grid["repeats"]):
        started = time.process_time()
        voxels, indices, counts = generator.point_to_voxel(tensorview.from_numpy(points))
        generated = time.process_time()
        means = voxels.numpy().sum(axis=1) / counts.numpy()[:, None]
        with_mean_ms.append((time.process_time() - started) * 1e3)
        generate_ms.append((generated - started) * 1e3)
        num_voxels = len(indices.numpy())
        assert len(means) == num_voxels
    version = next(d.version for d in distributions() if d.metadata["Name"].startswith("spconv"))
    result = {"generate_ms": generate_ms, "with_mean_ms": with_mean_ms, "num_voxels": num_voxels, "spconv": version}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
