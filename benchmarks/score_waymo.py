"""How long does it take to score a detector by Waymo's metric, and where does the time go?

    python benchmarks/score_waymo.py           # 1,000 frames, some 5 s
    python benchmarks/score_waymo.py --full    # 5,000 frames: a million predictions, some 20 s

Made-up frames of about the benchmark's density: 45 labels (of all four classes, in a disc of 75 m) and 200 predictions
(most labels found twice, off by a tenth, and many inventions). Truth and predictions are written as `Objects` files and
read again, as `spot-ray score` does. Seconds are those of one core (CPU time of the process); `per_1000_frames_s` is
reading both files, matching at all 101 cut-offs by class and by range, and the figures. The validation set has 40,000
frames. The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from spot_ray.evaluate.waymo import measure
from spot_ray.evaluate.waymo_benchmark import WaymoBenchmark
from spot_ray.evaluate.waymo_boxes import CLASS_NAMES, WaymoPredictions, WaymoTruth
from spot_ray.evaluate.waymo_files import CLASSES

SIZES_M = np.array([[4.6, 2.0, 1.7], [0.9, 0.8, 1.75], [0.4, 0.9, 0.9], [1.8, 0.8, 1.7]])
SHARES = (0.5, 0.25, 0.2, 0.05)
LABELS, PREDICTIONS = 45, 200
REACH_M = 75.0
FRAMES_A_SEGMENT = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    parser.add_argument("--full", action="store_true", help="the size of the committed figures")
    parser.add_argument("--frames", type=int, help="how many frames")
    arguments = parser.parse_args()
    num_frames = arguments.frames or (5000 if arguments.full else 1000)
    truth, predictions = make_frames(np.random.default_rng(0), num_frames)
    small = make_frames(np.random.default_rng(1), 10)
    measure(*small)  # compiled, or loaded from the cache
    benchmark = WaymoBenchmark()
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        truth_file, predictions_file = Path(folder) / "truth.bin", Path(folder) / "predictions.bin"
        truth_file.write_bytes(encode(truth))
        benchmark.write(small[1], str(predictions_file))
        benchmark.read(str(predictions_file))
        started = time.process_time()
        benchmark.write(predictions, str(predictions_file))
        seconds["write_predictions_s"] = time.process_time() - started
        started = time.process_time()
        read_truth = benchmark.official_truth(str(truth_file))
        seconds["read_truth_s"] = time.process_time() - started
        started = time.process_time()
        read_predictions = benchmark.read(str(predictions_file))
        seconds["read_predictions_s"] = time.process_time() - started
        megabytes = predictions_file.stat().st_size / 1e6
    started = time.process_time()
    scores = benchmark.score(read_truth, read_predictions)
    seconds["score_s"] = time.process_time() - started
    whole = sum(seconds[name] for name in ("read_truth_s", "read_predictions_s", "score_s"))
    result: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} shared cores, one used, {platform.machine()} {platform.system()}; Python "
        f"{platform.python_version()}, numpy {np.__version__}, numba {numba.__version__}",
        "command": f"python benchmarks/score_waymo.py {' '.join(sys.argv[1:])}".strip(),
        "benchmark": "score_waymo",
        "load_average": round(os.getloadavg()[0], 1),
        "frames": num_frames,
        "labels": len(truth.frame),
        "predictions": len(predictions.frame),
        "predictions_mb": round(megabytes, 1),
        **{name: round(value, 2) for name, value in seconds.items()},
        "read_predictions_s_a_million": round(seconds["read_predictions_s"] * 1e6 / len(predictions.frame), 2),
        "per_1000_frames_s": round(whole * 1000 / num_frames, 3),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "L2/mAPH": round(scores.figures["L2/mAPH"], 4),
    }
    if not arguments.json:
        print(scores)
    print(json.dumps(result))


def make_frames(rng: np.random.Generator, num_frames: int) -> tuple[WaymoTruth, WaymoPredictions]:
    """Return labels and predictions of frames."""
    frames = tuple((f"segment-{i // FRAMES_A_SEGMENT:06}_0000_000", 100_000 * i) for i in range(num_frames))
    labels = num_frames * LABELS
    frame = np.repeat(np.arange(num_frames), LABELS)
    types = rng.choice(4, labels, p=SHARES)
    boxes = place(rng, types)
    invented = num_frames * PREDICTIONS - 2 * labels
    invented_types = rng.choice(4, invented, p=SHARES)
    found = np.repeat(boxes, 2, axis=0)
    found[:, :6] += rng.normal(0, 0.05, (2 * labels, 6)) * np.tile(found[:, 3:6], 2)
    found[:, 6] += rng.normal(0, 0.1, 2 * labels)
    scores = np.concatenate([rng.beta(3, 2, 2 * labels), rng.beta(1, 5, invented)])
    truth = WaymoTruth(
        frames, True, CLASS_NAMES, frame, boxes, as_types(types), rng.integers(1, 3, labels).astype(np.uint8)
    )
    predictions = WaymoPredictions(
        frames,
        True,
        np.concatenate([np.repeat(frame, 2), rng.integers(0, num_frames, invented)]),
        np.concatenate([found, place(rng, invented_types)]),
        as_types(np.concatenate([np.repeat(types, 2), invented_types])),
        scores.astype(np.float32),
        rng.random(len(scores)) < 0.02,
    )
    return truth, predictions


def place(rng: np.random.Generator, types: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return (N, 7) boxes of types counted from 0."""
    count = len(types)
    distance, azimuth = REACH_M * np.sqrt(rng.random(count)), rng.uniform(-np.pi, np.pi, count)
    height = rng.uniform(0.5, 1.5, count)
    sizes = SIZES_M[types] * rng.uniform(0.8, 1.2, (count, 3))
    return np.column_stack([distance * np.cos(azimuth), distance * np.sin(azimuth), height, sizes, azimuth])


def as_types(types: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Return `Label.Type`, which counts from 1."""
    return (types + 1).astype(np.uint8)


def encode(truth: WaymoTruth) -> bytes:
    """Return labels as an `Objects` message."""
    objects: Any = CLASSES["Objects"]()
    for frame, box, kind, level in zip(
        truth.frame.tolist(), truth.boxes.tolist(), truth.types.tolist(), truth.levels.tolist(), strict=True
    ):
        o = objects.objects.add(context_name=truth.frames[frame][0], frame_timestamp_micros=truth.frames[frame][1])
        o.object.type, o.object.num_lidar_points_in_box, o.object.detection_difficulty_level = kind, 10, level
        b = o.object.box
        b.center_x, b.center_y, b.center_z, b.length, b.width, b.height, b.heading = box
    return bytes(objects.SerializeToString())


if __name__ == "__main__":
    main()
