"""How long does it take to score results on all of KITTI's validation frames, on one core?

    python benchmarks/score_kitti.py [--json] [--full]

Made-up labels and results of `tests/kitti_scenes.py` are written as the benchmark's own files; a process of its own,
with one thread, reads both and scores them: every metric, class, level and average. A first, small one fills the cache
of compiled kernels, which an installation does once. Times are those of the processor, which other programs on the
machine change little, with the clock's beside them; interpreter and imports are told apart.

300 frames; `--full`: 3,769, as many as the validation split has. The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

TESTS = Path(__file__).parent.parent / "tests"
FRAMES, FULL_FRAMES = 300, 3769
OBJECTS, CLUTTER = 6.0, 90.0
"""Means a frame, before those outside of the image are left out."""

SCORE = """
import json, sys, time
started = time.process_time()
from spot_ray.evaluate.kitti_benchmark import KittiBenchmark
at = [(time.process_time(), time.perf_counter())]
benchmark = KittiBenchmark()
truth, predictions = benchmark.official_truth(sys.argv[1]), benchmark.read(sys.argv[2])
at.append((time.process_time(), time.perf_counter()))
scores = benchmark.score(truth, predictions)
at.append((time.process_time(), time.perf_counter()))
import resource
print(json.dumps({
    "frames": len(truth.rows.frames), "labels": len(truth.rows), "detections": len(predictions.rows),
    "import_cpu_s": at[0][0], "read_cpu_s": at[1][0] - at[0][0], "score_cpu_s": at[2][0] - at[1][0],
    "cpu_s": at[2][0] - at[0][0], "clock_s": at[2][1] - at[0][1],
    "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    "mAP_R40/3d/moderate": scores.figures["mAP_R40/3d/moderate"],
}))
"""


def measured(folder: Path) -> dict[str, float]:
    """Return what a process of its own measured."""
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "ARROW_NUM_THREADS")
    done = subprocess.run(
        [sys.executable, "-c", SCORE, str(folder), str(folder / "results")],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | dict.fromkeys(threads, "1"),
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the JSON object alone")
    parser.add_argument("--full", action="store_true", help=f"{FULL_FRAMES} frames instead of {FRAMES}")
    arguments = parser.parse_args()
    sys.path.insert(0, str(TESTS))
    from kitti_scenes import write_scenes

    with tempfile.TemporaryDirectory() as name:
        for kind, count in (("few", 10), ("all", FULL_FRAMES if arguments.full else FRAMES)):
            write_scenes(Path(name) / kind, seed=1, count=count, objects=OBJECTS, clutter=CLUTTER)
        measured(Path(name) / "few")
        found = measured(Path(name) / "all")
    if not arguments.json:
        for key, value in found.items():
            print(f"{key:22} {value:.4g}")
    print(
        json.dumps(
            {
                "date": datetime.now(UTC).date().isoformat(),
                "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
                "command": " ".join(["python", "benchmarks/score_kitti.py", *sys.argv[1:]]),
                **found,
            }
        )
    )


if __name__ == "__main__":
    main()
