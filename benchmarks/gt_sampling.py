"""What does pasting objects cost a sample, and what does a large database of them cost a process?

Of a KITTI-like synthetic city (some 120 000 points a frame) the database of objects is built, then each frame goes
through the operators of detection: boxes are judged by their points, objects pasted up to 25 cars, 10 pedestrians and
10 cyclists. Times are those of the processor, median over frames and rounds, one thread, files in the page cache.

Then a database of many made-up objects of 500 points each is written and, in a fresh process, opened and read at
random: `anonymous_mb` is what the process needs of its own by then, beside what it shares with all others.

    python benchmarks/gt_sampling.py [--json] [--full]

One JSON object is the last line of the output. `--json` prints nothing else. `--full` is the size of the committed
figures.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from spot_ray.operators.chain import build_chain
from spot_ray.operators.config import BalanceConfig, BoxConfig, DataConfig, GtSamplingConfig
from spot_ray.operators.gt_database import build_gt_database
from spot_ray.operators.gt_objects import (
    OBJECTS,
    TIME_LAG,
    GtDatabase,
    GtObject,
    column_dtype,
    objects_schema,
    to_batch,
)
from spot_ray.operators.mixture import common_grid, open_mixture
from spot_ray.operators.plan import Planner
from spot_ray.operators.read import locate, slots
from spot_ray.storage.shards import ShardReader
from spot_ray.synthetic.run import synthesize

CONFIG = DataConfig(
    labels=None,
    balance=BalanceConfig(enabled=False),
    boxes=BoxConfig(classes="detection", min_points=5),
    gt_sampling=GtSamplingConfig(("Car", "Pedestrian", "Cyclist"), (25, 10, 10), (5, 5, 5)),
)
POINTS = 500
READS = 5_000


def milliseconds(work: Callable[[], Any]) -> float:
    """Return the processor time of a call."""
    start = time.process_time()
    work()
    return (time.process_time() - start) * 1e3


def measure_pasting(folder: str, *, sequences: int, frames: int, rounds: int) -> dict[str, Any]:
    """Return what building the database and each operator of detection takes a frame."""
    synthesize(f"{folder}/city", preset="kitti", num_sequences=sequences, num_frames=frames)
    mixture = open_mixture(f"{folder}/city", labels=None)
    build_gt_database(mixture, CONFIG, f"{folder}/compiled")  # what it compiles is not counted
    build_ms = milliseconds(lambda: build_gt_database(mixture, CONFIG, f"{folder}/objects"))
    mixture = replace(mixture, gt_database=f"{folder}/objects")
    chain = build_chain(mixture, CONFIG, common_grid(mixture), seed=0, epoch=0).datasets[0]
    share = Planner(mixture, CONFIG, seed=0, global_batch_size=1).plan(0).share()
    places, reader = list(slots(locate(share, mixture))), ShardReader(f"{folder}/city")
    for slot in places:
        chain(slot, reader)
    read = [milliseconds(lambda slot=slot: chain.frame(slot, reader)) for _ in range(rounds) for slot in places]
    recorded = [chain.frame(slot, reader) for slot in places]
    judged = [chain.min_points(sample) for sample in recorded]
    judge = [milliseconds(lambda one=one: chain.min_points(one)) for _ in range(rounds) for one in recorded]
    paste = [milliseconds(lambda one=one: chain.paste(one)) for _ in range(rounds) for one in judged]
    added = [len(chain.paste(one).sweep.boxes or ()) - len(one.sweep.boxes or ()) for one in judged]
    return {
        "points": statistics.median(len(one.sweep) for one in recorded),
        "boxes": statistics.median(len(one.sweep.boxes or ()) for one in recorded),
        "objects_pasted": statistics.mean(added),
        "build_ms": round(build_ms / len(places), 3),
        "read_ms": round(statistics.median(read), 3),
        "min_points_ms": round(statistics.median(judge), 3),
        "paste_ms": round(statistics.median(paste), 3),
    }


def write_objects(path: str, count: int) -> None:
    """Write a file of made-up objects."""
    import pyarrow as pa

    schema = objects_schema({name: column_dtype(name, {}) for name in ("xyz", "intensity", "ring", TIME_LAG)})
    rng = np.random.default_rng(0)
    points = {
        "xyz": rng.random((POINTS, 3), np.float32),
        "intensity": rng.random(POINTS, np.float32),
        "ring": np.zeros(POINTS, np.uint16),
        TIME_LAG: np.zeros(POINTS, np.float32),
    }
    box, velocity = np.ones(7, np.float32), np.ones(3, np.float32)
    with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for start in range(0, count, 1_000):
            several = [
                GtObject(0, i % 10, i % 10, f"scene-{i // 30_000:04d}/{i // 30:06d}", box, velocity, None, points)
                for i in range(start, min(start + 1_000, count))
            ]
            writer.write_batch(to_batch(several, schema))


def read_objects(path: str) -> dict[str, float]:
    """Return what opening a file and reading objects at random takes this process."""
    before = _anonymous_mb()
    start = time.process_time()
    database = GtDatabase(path)
    opened = time.process_time() - start
    numbers = (np.random.default_rng(1).random(READS) * len(database)).astype(int).tolist()
    start = time.process_time()
    for number in numbers:
        database.read(number).points["xyz"].sum()
    return {
        "open_s": round(opened, 3),
        "read_us": round((time.process_time() - start) / READS * 1e6, 1),
        "anonymous_mb": round(_anonymous_mb() - before, 1),
    }


def _anonymous_mb() -> float:
    with Path("/proc/self/status").open() as status:
        return next(int(line.split()[1]) / 1e3 for line in status if line.startswith("RssAnon"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print only one JSON object, as the last line")
    parser.add_argument("--full", action="store_true", help="the size of the committed figures")
    parser.add_argument("--read", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        print(json.dumps(read_objects(options.read)))
        return
    size = {"sequences": 4, "frames": 10, "rounds": 5} if options.full else {"sequences": 2, "frames": 2, "rounds": 2}
    count = 400_000 if options.full else 20_000
    with tempfile.TemporaryDirectory() as folder:
        pasting = measure_pasting(folder, **size)
        path = f"{folder}/{OBJECTS}"
        write_objects(path, count)
        found = subprocess.run(
            [sys.executable, __file__, "--read", path], check=True, capture_output=True, text=True
        ).stdout
        report = {
            "benchmark": "gt_sampling",
            "date": datetime.now(UTC).date().isoformat(),
            "load_average": round(os.getloadavg()[0], 1),
            "pasting": pasting,
            "database": {"objects": count, "gb": round(Path(path).stat().st_size / 1e9, 2), **json.loads(found)},
        }
    if not options.json:
        for name in ("pasting", "database"):
            print(name, ", ".join(f"{key} {value}" for key, value in report[name].items()))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
