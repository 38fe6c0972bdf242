"""A log of an hour at 10 Hz goes into part files, in memory that does not grow with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import spot_ray
from spot_ray.storage.sequence import FRAMES_A_PART

FRAMES = 36_000
EARLY = 6_000

WRITE = """
import json, resource, sys, time
import numpy as np
import spot_ray

uri, frames, early = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rig = [spot_ray.LidarSpec("roof", 0, "spinning", 32, (-25.0, 15.0))]
started = time.perf_counter()
with spot_ray.DatasetWriter(uri, name="hour", rig=rig, taxonomy=spot_ray.PAPER_TAXONOMY) as writer:
    for i in range(frames):
        if i == early:
            peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        xyz = np.full((50, 3), i / 1000, np.float32)
        writer.add(spot_ray.Sweep("hour", f"{i:06d}", (1 + i) * 100_000_000, xyz, np.eye(4)))
seconds = time.perf_counter() - started
growth_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_kb
print(json.dumps({"seconds": seconds, "peak_mb": peak_kb / 1024, "growth_mb": growth_kb / 1024}))
"""


@pytest.mark.slow
def test_an_hour_is_written_as_parts_in_bounded_memory(tmp_path: Path) -> None:
    uri = str(tmp_path / "hour")
    done = subprocess.run(
        [sys.executable, "-c", WRITE, uri, str(FRAMES), str(EARLY)],
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    # A frame's row of the manifest stays in memory until the log is whole; its points do not.
    assert measured["growth_mb"] < 60, measured

    parts = sorted((tmp_path / "hour" / "shards").iterdir())
    assert len(parts) == FRAMES // FRAMES_A_PART
    dataset = spot_ray.open_dataset(uri)
    assert len(dataset) == FRAMES
    assert dataset.frames_of("hour") == range(FRAMES)
    for i in np.random.default_rng(0).integers(0, FRAMES, 100).tolist():
        sweep = dataset[i]
        assert sweep.frame_id == f"{i:06d}"
        np.testing.assert_allclose(sweep.xyz, i / 1000, atol=0.0026)
    assert dataset.index_of("hour/035999") == FRAMES - 1
