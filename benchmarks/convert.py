"""How fast does one core convert a log, in how much memory, to how many bytes?

    python benchmarks/convert.py                              # a made-up Waymo segment of full size, 20 frames
    python benchmarks/convert.py --full --data ../shared/data # 40 frames; and the real logs that are in the folder

Each source is converted in a process of its own, without Ray; frames a second are counted from opening the source to
the last file, the peak of memory is that of the process. The folder of `--data` holds `nuscenes`, `kitti`,
`semantickitti`, `once` in their official layouts; one that is absent is left out. The made-up segment has the sizes of
Waymo's range images: 64 × 2650 and four times 200 × 600, two returns each.

Time and storage of all of Waymo (1,150 segments of 198 frames) on 64 cores are extrapolated from one core's figures.
The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa

from spot_ray.convert.run import convert

WAYMO_FRAMES = 1150 * 198
CORES = 64
REAL = ("nuscenes", "semantickitti", "kitti", "once")
TESTS = Path(__file__).parent.parent / "tests"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    parser.add_argument("--full", action="store_true", help="40 Waymo frames, 5 repeats of the real logs")
    parser.add_argument("--data", type=Path, help="folder of real logs")
    arguments = parser.parse_args()
    repeats = 5 if arguments.full else 2
    with tempfile.TemporaryDirectory() as folder:
        made_up = make_waymo(Path(folder), num_frames=40 if arguments.full else 20)
        logs = {} if arguments.data is None else real_logs(arguments.data, Path(folder))
        figures = {name: measure(name, uri, 2 if arguments.full else 1) for name, uri in made_up.items()}
        figures |= {name: measure(name, uri, repeats) for name, uri in logs.items() if uri.is_dir()}
    result = {
        "benchmark": "convert",
        "python": platform.python_version(),
        "pyarrow": pa.__version__,
        "sources": figures,
        "full_waymo_on_64_cores": {name: extrapolate(figures[name]) for name in made_up},
    }
    if not arguments.json:
        print(f"{'source':14} {'frames/s':>9} {'peak GB':>8} {'bytes/frame':>12} {'points/frame':>13}")
        for name, f in figures.items():
            print(
                f"{name:14} {f['frames_per_s_core']:9.1f} {f['peak_gb']:8.2f} {f['bytes_per_frame']:12,} "
                f"{f['points_per_frame']:13,}"
            )
    print(json.dumps(result))


def make_waymo(folder: Path, *, num_frames: int) -> dict[str, Path]:
    """Write one made-up segment in both of Waymo's formats; return the folders."""
    files, files_v1 = load("waymo_files"), load("waymo_v1_files")
    segment = files.make_segment(num_frames=num_frames, top=(64, 2650), side=(200, 600))
    files.write_v2(folder / "v2", segment)
    files_v1.write_v1(folder / "v1", segment)
    return {"waymo-v2": folder / "v2", "waymo-v1": folder / "v1"}


def real_logs(data: Path, folder: Path) -> dict[str, Path]:
    """Return the folders of the real logs; ONCE's samples without JSON get one, as it is for unlabelled frames."""
    once = folder / "once"
    for sequence in sorted((data / "once" / "data").glob("*")):
        target = once / "data" / sequence.name
        shutil.copytree(sequence, target)
        frames = [
            {"frame_id": path.stem, "sequence_id": sequence.name, "pose": [0, 0, 0, 1, 0, 0, 0]}
            for path in sorted(target.glob("lidar_roof/*.bin"))
        ]
        text = json.dumps({"meta_info": {}, "calib": {}, "frames": frames})
        if not (target / f"{sequence.name}.json").exists():
            (target / f"{sequence.name}.json").write_text(text)
    return {name: data / name for name in REAL} | {"once": once}


def load(name: str) -> ModuleType:
    """Return a module of the tests, which can write what the converters read."""
    sys.path.insert(0, str(TESTS))
    spec = importlib.util.find_spec(name)
    assert spec is not None
    return importlib.import_module(name)


def measure(name: str, source: Path, repeats: int) -> dict[str, Any]:
    """Convert a log several times, each in a new process; return the medians."""
    runs = []
    for _ in range(repeats):
        with multiprocessing.get_context("spawn").Pool(1) as pool, tempfile.TemporaryDirectory() as out:
            runs.append(pool.apply(convert_once, (name, str(source), out)))
    return {key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]} | {
        key: int(runs[0][key]) for key in ("num_frames", "bytes_per_frame", "points_per_frame")
    }


def convert_once(name: str, source: str, folder: str) -> dict[str, float]:
    out = Path(folder) / "out"
    began = time.perf_counter()
    report = convert(name, source=source, uri=str(out), num_workers=1)
    seconds = time.perf_counter() - began
    num_bytes = sum(path.stat().st_size for path in out.rglob("*.parquet"))
    return {
        "num_frames": report.num_frames,
        "frames_per_s_core": report.num_frames / seconds,
        "peak_gb": peak_kb() / 2**20,
        "bytes_per_frame": num_bytes / report.num_frames,
        "points_per_frame": report.num_points / report.num_frames,
    }


def peak_kb() -> int:
    """Return the most memory that this process held; getrusage would count what its parent held when it began, too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def extrapolate(figures: dict[str, Any]) -> dict[str, float]:
    return {
        "hours": round(WAYMO_FRAMES / figures["frames_per_s_core"] / CORES / 3600, 2),
        "terabytes": round(WAYMO_FRAMES * figures["bytes_per_frame"] / 1e12, 3),
    }


if __name__ == "__main__":
    main()
