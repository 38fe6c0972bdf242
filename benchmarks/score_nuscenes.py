"""How long does it take to score a full nuScenes validation submission, reading included?

A submission of 6,019 samples with 500 boxes each (3 million boxes, 1.35 GB of JSON) and the tables of a release of 850
scenes with as many rows as v1.0-trainval has (2.6 million `sample_data`, 1.2 million boxes, 2.7 GB of JSON) are made
up; `official_truth`, `read` and `score` of the benchmark are then timed in a process of their own, bound to one core.
Times are those of the processor, which other programs on the machine change little; the clock's are beside them. The
files are in the page cache. Kernels are compiled beforehand (they are kept on disk).

    python benchmarks/score_nuscenes.py [--json] [--full] [--keep DIR]

One JSON object is the last line of the output. `--json` prints nothing else. Without `--full` everything is a tenth.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pyarrow as pa

from spot_ray.evaluate.nuscenes import MAX_BOXES_PER_SAMPLE
from spot_ray.evaluate.nuscenes_benchmark import NuscenesBenchmark
from spot_ray.schema.nuscenes import CATEGORIES, DETECTION_CLASSES
from spot_ray.schema.nuscenes_splits import split_of

LIMIT_S = 60
"""What the full size may take on one core."""
BOXES_PER_SAMPLE = 34
DATA_PER_SAMPLE = 77
"""Rows of `sample_data` and `ego_pose`: five radars, six cameras and a LiDAR, with the sweeps between keyframes."""
SHARES = np.array([0.43, 0.08, 0.015, 0.02, 0.012, 0.2, 0.011, 0.011, 0.09, 0.131])
"""About how often annotators found each detection class."""
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ARROW_DEFAULT_THREADS"), "1")


def write_files(folder: Path, *, full: bool) -> None:
    """Write the tables to `folder/v1.0-trainval` and the submission to `folder/results.json`."""
    rng = np.random.default_rng(0)
    names = [f"scene-{n:04d}" for n in range(1, 1111)]
    chosen = [name for name in names if split_of(name, "v1.0-trainval") in ("train", "val")]
    scenes = chosen if full else chosen[::10]
    # The release has 6,019 samples in val and 34,149 in all: some scenes have 41, the others 40.
    longer = [s for s in scenes if split_of(s, "v1.0-trainval") == "val"][:19] + [
        s for s in scenes if split_of(s, "v1.0-trainval") == "train"
    ][:130]
    samples = [(s, f"{int(s[6:]):016x}{i:016x}") for s in scenes for i in range(41 if s in longer else 40)]
    tables = folder / "v1.0-trainval"
    tables.mkdir(parents=True)
    categories = {c.detection: c.name for c in reversed(CATEGORIES) if c.detection is not None}
    for name, rows in {
        "scene": [{"token": f"token-{scene}", "name": scene} for scene in scenes],
        "category": [{"token": f"category-{name}", "name": name} for name in categories.values()],
        "attribute": [{"token": "moving", "name": "vehicle.moving"}, {"token": "with", "name": "cycle.with_rider"}],
        "sensor": [{"token": c, "channel": c} for c in ("LIDAR_TOP", "CAM_FRONT")],
        "calibrated_sensor": [{"token": f"{c}-mount", "sensor_token": c} for c in ("LIDAR_TOP", "CAM_FRONT")],
        "instance": [{"token": f"i-{d}", "category_token": f"category-{name}"} for d, name in categories.items()],
    }.items():
        (tables / f"{name}.json").write_text(json.dumps(rows, indent=0))
    _write_list(
        tables / "sample.json",
        (
            {"token": token, "timestamp": 1_531_883_530_000_000 + 500_000 * i, "scene_token": f"token-{scene}"}
            for i, (scene, token) in enumerate(samples)
        ),
    )
    _write_list(tables / "sample_data.json", (row for _, token in samples for row in _sample_data(token)))
    _write_list(tables / "ego_pose.json", (row for _, token in samples for row in _ego_poses(token)))
    num_boxes = len(samples) * BOXES_PER_SAMPLE
    labels = rng.choice(len(DETECTION_CLASSES), num_boxes, p=SHARES)
    centre = np.concatenate([120 * (rng.random((num_boxes, 2)) - 0.5) + 700, rng.random((num_boxes, 1))], axis=1)
    _write_list(tables / "sample_annotation.json", _annotations(samples, labels, centre))

    with (folder / "results.json").open("w") as file:
        file.write('{"meta": {"use_lidar": true}, "results": {')
        scored = [i for i, (scene, _) in enumerate(samples) if split_of(scene, "v1.0-trainval") == "val"]
        for n, i in enumerate(scored):
            mine = slice(i * BOXES_PER_SAMPLE, (i + 1) * BOXES_PER_SAMPLE)
            rows = _found(samples[i][1], labels[mine], centre[mine], rng)
            file.write(f'{", " if n else ""}"{samples[i][1]}": {json.dumps(rows)}')
        file.write("}}")


def _write_list(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as the release does: each value on a line of its own."""
    with file.open("w") as out:
        out.write("[\n")
        out.writelines(f"{',' * (n > 0)}{json.dumps(row, indent=0)}\n" for n, row in enumerate(rows))
        out.write("]")


def _sample_data(token: str) -> Iterable[dict[str, Any]]:
    for n in range(DATA_PER_SAMPLE):
        channel = "LIDAR_TOP" if n == 5 else "CAM_FRONT"
        yield {
            "token": f"{token}{n:03d}",
            "sample_token": token,
            "ego_pose_token": f"{token}{n:03d}",
            "calibrated_sensor_token": f"{channel}-mount",
            "timestamp": 1_531_883_530_000_000,
            "fileformat": "jpg",
            "is_key_frame": n < 12,
            "height": 900,
            "width": 1600,
            "filename": f"samples/{channel}/n015-2018-07-18-11-07-57+0800__{channel}__1531883530412470.jpg",
            "prev": token,
            "next": token,
        }


def _ego_poses(token: str) -> Iterable[dict[str, Any]]:
    for n in range(DATA_PER_SAMPLE):
        yield {
            "token": f"{token}{n:03d}",
            "timestamp": 1_531_883_530_000_000,
            "rotation": [0.9972339694265480, -0.011351786797827217, 0.025416997156525928, -0.06891678615411698],
            "translation": [700.0 + n / 1000, 700.0, 0.0],
        }


def _annotations(samples: list[tuple[str, str]], labels: Any, centre: Any) -> Iterable[dict[str, Any]]:
    for i, (scene, token) in enumerate(samples):
        for k in range(BOXES_PER_SAMPLE):
            m = i * BOXES_PER_SAMPLE + k
            name = DETECTION_CLASSES[labels[m]]
            yield {
                "token": f"{token}-{k}",
                "sample_token": token,
                "instance_token": f"i-{name}",
                "visibility_token": "4",
                "attribute_tokens": ["moving"] if name in ("car", "truck", "bus") else [],
                "translation": centre[m].round(3).tolist(),
                "size": [1.961, 4.603, 1.598],
                "rotation": [0.08760550275337026, 0.0, 0.0, 0.9961552468803893],
                "prev": f"{samples[i - 1][1]}-{k}" if i and samples[i - 1][0] == scene else "",
                "next": f"{samples[i + 1][1]}-{k}" if samples[i + 1 : i + 2] and samples[i + 1][0] == scene else "",
                "num_lidar_pts": m % 12,
                "num_radar_pts": 0,
            }


def _found(token: str, labels: Any, centre: Any, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Return 500 boxes: two at every box of the truth, the rest anywhere."""
    label = np.concatenate([labels, labels, rng.choice(10, MAX_BOXES_PER_SAMPLE - 2 * len(labels), p=SHARES)])
    offset = rng.normal(size=(MAX_BOXES_PER_SAMPLE, 3))
    place = 120 * (rng.random((MAX_BOXES_PER_SAMPLE, 3)) - 0.5) + (700, 700, 0)
    place[: 2 * len(labels)] = np.tile(centre, (2, 1)) + offset[: 2 * len(labels)]
    numbers = zip(
        place.tolist(),
        (np.array([1.961, 4.603, 1.598]) * np.exp(0.1 * offset)).tolist(),
        rng.normal(size=(MAX_BOXES_PER_SAMPLE, 4)).tolist(),
        rng.normal(size=(MAX_BOXES_PER_SAMPLE, 2)).tolist(),
        # What is found where something is, is more often sure.
        (rng.random(MAX_BOXES_PER_SAMPLE) * np.where(np.arange(MAX_BOXES_PER_SAMPLE) < len(labels), 1, 0.3)).tolist(),
        label.tolist(),
        strict=True,
    )
    return [
        {
            "sample_token": token,
            "translation": centre,
            "size": size,
            "rotation": rotation,
            "velocity": velocity,
            "detection_name": DETECTION_CLASSES[c],
            "detection_score": score,
            "attribute_name": "vehicle.moving",
        }
        for centre, size, rotation, velocity, score, c in numbers
    ]


def measure(folder: Path) -> dict[str, Any]:
    """Time the three steps in this process, on one core."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    benchmark = NuscenesBenchmark()
    times: dict[str, float] = {}

    def timed(name: str, step: Callable[[], Any]) -> Any:
        cpu, clock = time.process_time(), time.perf_counter()
        result = step()
        times[f"{name}_cpu_s"] = round(time.process_time() - cpu, 2)
        times[f"{name}_s"] = round(time.perf_counter() - clock, 2)
        return result

    truth = timed("read_truth", lambda: benchmark.official_truth(str(folder), split="val"))
    predictions = timed("read_predictions", lambda: benchmark.read(str(folder / "results.json")))
    scores = timed("score", lambda: benchmark.score(truth, predictions))
    return {
        "samples": len(predictions.samples),
        "boxes": len(predictions.boxes),
        "truth_boxes": len(truth.boxes),
        **times,
        "total_cpu_s": round(sum(value for name, value in times.items() if name.endswith("cpu_s")), 2),
        "total_s": round(sum(value for name, value in times.items() if not name.endswith("cpu_s")), 2),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "NDS": scores.figures["NDS"],
        "mAP": scores.figures["mAP"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    parser.add_argument("--full", action="store_true", help="6,019 samples and tables of v1.0-trainval's size")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--keep", type=Path, help="folder that keeps the files, or has them")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.keep or Path(scratch)) / ("full" if options.full else "tenth")
        if not folder.exists():
            write_files(folder, full=options.full)
        runs = [
            json.loads(
                subprocess.run(
                    [sys.executable, __file__, "--measure", str(folder)],
                    env={**os.environ, **ONE_THREAD},
                    stdout=subprocess.PIPE,
                    check=True,
                    text=True,
                ).stdout
            )
            for _ in range(2)
        ]
        sizes = {
            "results_gb": round((folder / "results.json").stat().st_size / 1e9, 3),
            "tables_gb": round(sum(f.stat().st_size for f in (folder / "v1.0-trainval").iterdir()) / 1e9, 3),
        }
    # The first run may compile.
    found = runs[-1]
    if not options.json:
        print(
            f"{found['samples']} samples, {found['boxes']} boxes: {found['total_cpu_s']} s of processor time "
            f"(truth {found['read_truth_cpu_s']}, predictions {found['read_predictions_cpu_s']}, "
            f"score {found['score_cpu_s']}), {found['peak_gb']} GB"
        )
    report = {
        "benchmark": "score_nuscenes",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} shared cores, one used, {platform.machine()} {platform.system()}; Python "
        f"{platform.python_version()}, numpy {np.__version__}, numba {numba.__version__}, pyarrow {pa.__version__}",
        "command": f"python benchmarks/score_nuscenes.py {' '.join(sys.argv[1:])}".strip(),
        "load_average": round(os.getloadavg()[0], 1),
        "limit_s": LIMIT_S,
        **found,
        **sizes,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
