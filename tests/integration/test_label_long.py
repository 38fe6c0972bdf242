"""A log of 10,000 frames is labelled in memory that does not grow with it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

FRAMES = 10_000
EARLY = 2_000

LABEL = """
import json, resource, sys, time
import numpy as np
import spot_ray
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.occupancy.config import LabelConfig
from spot_ray.occupancy.label import LabelReport, label_frames
from spot_ray.occupancy.reader import FrameInfo

frames, early = int(sys.argv[1]), int(sys.argv[2])
rig = (spot_ray.LidarSpec("roof", 0, "spinning", 32, (-25.0, 15.0)),)
info = spot_ray.DatasetInfo("long", rig, spot_ray.PAPER_TAXONOMY)
road, vehicle = (spot_ray.PAPER_TAXONOMY.id_of(name) for name in ("road", "vehicle"))


class Log:
    # A road with a wall and a car ahead, at 10 m/s and 10 Hz: nothing is kept, every sweep is made when it is read.
    def __len__(self):
        return frames

    def frame(self, i):
        pose = np.eye(4)
        pose[0, 3] = 1.0 * i
        box = np.array([[8.0, 0.0, 0.75, 4.0, 1.8, 1.5, 0.0]], np.float32)
        boxes = spot_ray.Boxes(box, np.array([vehicle], np.uint16), [f"car {i // 300}"])
        return FrameInfo("long", f"{i:06d}", (1 + i) * 100_000_000, pose, boxes, True, True)

    def read(self, i):
        rng = np.random.default_rng(i)
        xyz = rng.uniform((-9, -9, -0.02), (9, 9, 0.02), (400, 3)).astype(np.float32)
        xyz[200:300, 1], xyz[200:300, 2] = 6.0, rng.uniform(0, 2, 100)
        xyz[300:] = rng.uniform((6.1, -0.8, 0.3), (9.9, 0.8, 1.4), (100, 3))
        source = np.repeat(np.array([road, 0, vehicle], np.uint16), (200, 100, 100))
        frame = self.frame(i)
        return spot_ray.Sweep(
            frame.sequence_id, frame.frame_id, frame.timestamp_ns, xyz, frame.world_SE3_ego, boxes=frame.boxes,
            point_source_class=source,
        )


grid = VoxelGrid((-9.6, -9.6, -2.2), (0.4, 0.4, 0.4), (48, 48, 16))
peaks, total, started = [], LabelReport(), time.perf_counter()
for n, (occupancy, report) in enumerate(label_frames(Log(), info=info, config=LabelConfig(grid=grid))):
    assert occupancy.frame_id == f"{n:06d}", occupancy.frame_id
    total += report
    if n + 1 in (early, frames):
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(json.dumps({
    "seconds": time.perf_counter() - started, "frames": total.frames, "aggregated": total.frames_aggregated,
    "occupied": total.voxels_occupied, "early_mb": peaks[0], "peak_mb": peaks[1],
}))
"""


@pytest.mark.slow
def test_a_log_of_ten_thousand_frames_is_labelled_in_bounded_memory() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LABEL, str(FRAMES), str(EARLY)],
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert measured["frames"] == measured["aggregated"] == FRAMES
    # The road is dense and walled from end to end.
    assert measured["occupied"] > 1_500 * FRAMES, measured
    # Three segments of 100 m are held. If the 2.4 million cells of 8 km of road stayed, they would take 58 MB or more.
    assert measured["peak_mb"] - measured["early_mb"] < 25, measured
    assert measured["peak_mb"] < 1_000, measured
