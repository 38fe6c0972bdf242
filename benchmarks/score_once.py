"""How long does it take to score a submission of all of ONCE's annotated validation frames, on one core?

    python benchmarks/score_once.py [--json] [--full]

Made-up truth in the layout of the release and made-up predictions are written; a process of its own, with one thread,
reads both and scores them. A first, small one fills the cache of compiled kernels, which an installation does once.
Times are those of the processor, which other programs on the machine change little, with the clock's beside them.

300 frames; `--full`: 3,321, as many as the validation split has annotated; about 27 true boxes and 100 found ones each.
The last line of the output is one JSON object.
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

import numpy as np

FRAMES, FULL_FRAMES = 300, 3321
FOUND = 100
START_MS = 1_616_343_527_200
NAMES = ("Car", "Bus", "Truck", "Pedestrian", "Cyclist")
SIZES_M = np.array([[4.4, 1.9, 1.6], [11.0, 2.9, 3.2], [7.5, 2.5, 2.9], [0.7, 0.7, 1.7], [1.9, 0.8, 1.6]])

SCORE = """
import json, sys, time
from spot_ray.evaluate.once_benchmark import OnceBenchmark
at = [(time.process_time(), time.perf_counter())]
benchmark = OnceBenchmark()
truth, predictions = benchmark.official_truth(sys.argv[1], split="val"), benchmark.read(sys.argv[2])
at.append((time.process_time(), time.perf_counter()))
scores = benchmark.score(truth, predictions)
at.append((time.process_time(), time.perf_counter()))
import resource
print(json.dumps({
    "frames": len(truth.frames), "labels": sum(len(boxes.boxes) for boxes in truth.frames.values()),
    "detections": sum(len(boxes.boxes) for boxes in predictions.frames.values()),
    "read_cpu_s": at[1][0] - at[0][0], "score_cpu_s": at[2][0] - at[1][0],
    "cpu_s": at[2][0] - at[0][0], "clock_s": at[2][1] - at[0][1],
    "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    "mAP": scores.figures["mAP"],
}))
"""


def write(folder: Path, frames: int) -> None:
    """Write a release of one sequence and a submission."""
    rng = np.random.default_rng(1)
    truth, submission = [], []
    for i in range(frames):
        kinds = rng.choice(5, FOUND, p=[0.4, 0.05, 0.1, 0.25, 0.2])
        boxes = np.column_stack(
            [
                rng.uniform(-75, 75, (FOUND, 2)),
                rng.normal(-0.9, 0.2, FOUND),
                SIZES_M[kinds] * np.exp(rng.normal(size=(FOUND, 3)) * 0.1),
                rng.uniform(-np.pi, np.pi, FOUND),
            ]
        )
        count = int(rng.integers(5, 50))
        names = [NAMES[kind] for kind in kinds]
        frame_id = str(START_MS + 500 * i)
        truth.append({"frame_id": frame_id, "annos": {"names": names[:count], "boxes_3d": boxes[:count].tolist()}})
        boxes[:, :3] += rng.normal(size=(FOUND, 3)) * 0.08
        score = np.where(np.arange(FOUND) < count, 0.3, 0.0) + rng.uniform(0.0, 0.7, FOUND)
        submission.append({"frame_id": frame_id, "name": names, "score": score.tolist(), "boxes_3d": boxes.tolist()})
    (folder / "data" / "000027").mkdir(parents=True)
    (folder / "ImageSets").mkdir()
    (folder / "ImageSets" / "val.txt").write_text("000027\n")
    (folder / "data" / "000027" / "000027.json").write_text(json.dumps({"frames": truth}))
    (folder / "result.json").write_text(json.dumps(submission))


def measured(folder: Path) -> dict[str, float]:
    """Return what a process of its own measured."""
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "ARROW_NUM_THREADS")
    done = subprocess.run(
        [sys.executable, "-c", SCORE, str(folder), str(folder / "result.json")],
        check=True,
        stdout=subprocess.PIPE,
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
    with tempfile.TemporaryDirectory() as name:
        for kind, frames in (("few", 5), ("all", FULL_FRAMES if arguments.full else FRAMES)):
            write(Path(name) / kind, frames)
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
                "command": " ".join(["python", "benchmarks/score_once.py", *sys.argv[1:]]),
                **found,
            }
        )
    )


if __name__ == "__main__":
    main()
