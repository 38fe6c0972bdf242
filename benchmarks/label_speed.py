"""How long does labelling take a frame, on one core, and how much memory?

    python benchmarks/label_speed.py [--json] [--full] [--sensor NAME]

Synthetic drives are written as datasets; then a process of its own, with one thread, reads and labels each. Compilation
is not counted: each process labels the first sweeps of its drive before. The LiDARs have more columns than the real
ones so that sweeps have as many points as real sweeps:

- `waymo`: 180 000 points, 10 Hz, all sweeps with classes and boxes, all labelled.
- `nuscenes`: 34 700 points, 20 Hz; every tenth is a key frame, with classes and boxes, and is labelled. Heights
  are aligned, as the flat poses of nuScenes need it.

The vehicle drives at city speed, up to 12 and 11 m/s: a part of the costs goes by the way, not by the frame.

Times are those of the processor, which other programs on the machine change little; the clock's are beside them.
Stages are timed by wrapping functions from outside; nested ones are taken out of the outer one's time.

40 and 120 sweeps; `--full`: 200 and 400. The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import scipy

from spot_ray.geometry import boxes as boxes_ops
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.geometry.rays import mark_passed
from spot_ray.occupancy import aggregate, frame, ground_map, heights, label, split, visibility
from spot_ray.occupancy.cloud import CloudBuilder
from spot_ray.occupancy.config import LabelConfig
from spot_ray.occupancy.dataset_reader import DatasetSequence
from spot_ray.occupancy.reader import FrameInfo, SequenceReader
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import PAPER_TAXONOMY
from spot_ray.storage.dataset import DatasetWriter, open_dataset
from spot_ray.synthetic import agents
from spot_ray.synthetic import world as synthetic_world
from spot_ray.synthetic.presets import PRESETS

ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("NUMBA", "OMP", "OPENBLAS", "MKL", "ARROW_IO")}
GOALS = {"nuscenes_s_per_frame": 0.5, "waymo_s_per_frame": 1.5, "peak_gb": 6.0}
WARM_UP = 12


@dataclasses.dataclass(frozen=True)
class Drive:
    """A drive to label.

    Args:
        points: Points that a sweep shall have.
        share: Share of a sweep's rays that return, measured; so many more columns the LiDAR gets.
        step_s: Time from sweep to sweep.
        key_every: Every so manyeth sweep is a key frame; the others carry neither classes nor boxes.
        sweeps: Sweeps, by default.
        full: Sweeps with `--full`.
    """

    points: int
    share: float
    step_s: float
    key_every: int
    sweeps: int
    full: int


DRIVES = {
    "waymo": Drive(180_000, 0.8825, 0.1, 1, 40, 200),
    "nuscenes": Drive(34_700, 0.9015, 0.05, 10, 120, 400),
}


def write(uri: str, sensor: str, num_sweeps: int) -> None:
    """Write a drive as a dataset."""
    drive, preset = DRIVES[sensor], PRESETS[sensor]
    columns = round(drive.points / drive.share / preset.lidar.num_beams)
    lidar = dataclasses.replace(preset.lidar, columns=columns)
    nothing = {"point_source_class": None, "instance_id": None, "boxes": None}
    with (
        mock.patch.dict(PRESETS, speed=dataclasses.replace(preset, name="speed", lidar=lidar)),
        mock.patch.object(agents, "FRAME_S", drive.step_s),
        mock.patch.object(synthetic_world, "FRAME_S", drive.step_s),
        DatasetWriter(uri, name=f"speed-{sensor}", rig=[lidar], taxonomy=PAPER_TAXONOMY) as writer,
    ):
        world = synthetic_world.World("speed", seed=0, sequence=0, num_frames=num_sweeps)
        for i in range(num_sweeps):
            sweep = world.sweep(i)
            if i % drive.key_every:
                sweep = dataclasses.replace(sweep, keyframe=False, **nothing)
            writer.add(sweep)


class Stages:
    """Processor time by stage, of functions that are wrapped."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self._inner = [0.0]

    def wrap(self, owner: Any, name: str, stage: str) -> None:
        """Time a function, wherever `owner` looks it up by `name`."""
        work = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            start = time.process_time()
            try:
                return work(*args, **kwargs)
            finally:
                passed = time.process_time() - start
                self.seconds[stage] += passed - self._inner.pop()
                self.calls[stage] += 1
                self._inner[-1] += passed

        setattr(owner, name, timed)

    def reset(self) -> None:
        """Forget what was timed."""
        self.seconds.clear()
        self.calls.clear()


def watch() -> tuple[Stages, Counter[str]]:
    """Wrap the stages of labelling; return their times, and counts of rays and of cells stepped through."""
    stages, steps = Stages(), Counter[str]()
    count_steps(steps)
    for owner, name, stage in (
        (DatasetSequence, "read", "sweep: read"),
        (label, "deskew", "sweep: deskew"),
        (label, "split_points", "sweep: tell objects from the rest"),
        (split, "ground_mask", "sweep: ground mask"),
        (boxes_ops, "points_in_boxes", "sweep: points in boxes"),
        (heights.HeightAligner, "correct", "sweep: align heights"),
        (label, "ray_origins", "sweep: ray origins"),
        (aggregate.Segment, "add", "sweep: move and sort points"),
        (CloudBuilder, "add", "sweep: merge points"),
        (visibility.PassedSpace, "add", "sweep: cast rays"),
        (label, "join", "window: join, the rest"),
        (aggregate, "_build", "window: merge clouds"),
        (aggregate, "propagate_labels", "window: propagate classes"),
        (aggregate, "build_ground_map", "window: ground map"),
        (ground_map.GroundMap, "over_ground", "window: ground off the map"),
        (aggregate, "fill_surfaces", "window: fill surfaces"),
        (label, "label_frame", "frame: the rest"),
        (frame, "passed_by_sweep", "frame: cast own rays"),
        (frame, "passed_by_sequence", "frame: look up what rays passed"),
        (frame, "voxels_in_boxes", "frame: voxels in boxes"),
        (frame, "_own_labels", "frame: classes of own points"),
        (frame, "_surfaces", "frame: gather surfaces"),
        (frame, "ground_area", "frame: sample the ground"),
        (frame, "decide", "frame: voxelise and decide"),
        (frame, "pack_bits", "frame: pack masks"),
    ):
        stages.wrap(owner, name, stage)
    return stages, steps


def count_steps(steps: Counter[str]) -> None:
    """Count the rays that are cast and the cells that they visit."""

    def counted(bits: npt.NDArray[np.uint8], origins: Any, ends: Any, grid: VoxelGrid, **options: Any) -> int:
        visited = mark_passed(bits, origins, ends, grid, **options)
        kind = "own grid" if grid.voxel_size_m[0] > 0.3 else "sequence's grid"
        steps[f"rays, {kind}"] += len(ends)
        steps[f"cells, {kind}"] += visited
        return visited

    visibility.mark_passed = counted


class Beginning:
    """The first sweeps of a sequence.

    Args:
        sequence: The sequence.
        length: How many.
    """

    def __init__(self, sequence: SequenceReader, length: int) -> None:
        self._sequence, self._length = sequence, length

    def __len__(self) -> int:
        """Return the number of sweeps."""
        return self._length

    def frame(self, i: int) -> FrameInfo:
        """Return sweep i without its points."""
        return self._sequence.frame(i)

    def read(self, i: int) -> Sweep:
        """Return sweep i."""
        return self._sequence.read(i)


def peak_gb() -> float:
    """Return the most memory that this process ever had, in 10⁹ bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def measure(uri: str) -> dict[str, Any]:
    """Label the drive in a dataset in this process."""
    pa.set_cpu_count(1)
    dataset = open_dataset(uri)
    (sequence_id,) = dataset.sequences
    sequence = DatasetSequence(dataset, sequence_id)
    flat = dataset.info.name == "speed-nuscenes"
    config = LabelConfig(align_heights="always" if flat else "flat")
    for _ in label.label_frames(Beginning(sequence, WARM_UP), info=dataset.info, config=config):
        pass
    stages, steps = watch()
    before_gb = peak_gb()
    wall, own = time.perf_counter(), time.process_time()
    frames = []
    report = label.LabelReport()
    for _, found in label.label_frames(sequence, info=dataset.info, config=config):
        frames.append(time.process_time())
        report += found
    seconds, clock = time.process_time() - own, time.perf_counter() - wall
    by_stage = {stage: round(value / len(frames), 4) for stage, value in sorted(stages.seconds.items())}
    by_stage["other"] = round((seconds - sum(stages.seconds.values())) / len(frames), 4)
    cast_s = stages.seconds["sweep: cast rays"] + stages.seconds["frame: cast own rays"]
    return {
        "sweeps": report.sweeps,
        "frames": len(frames),
        "points_a_sweep": round(
            sum(len(sequence.read(i)) for i in range(0, len(sequence), 10)) / -(-len(sequence) // 10)
        ),
        "windows": stages.calls["window: join, the rest"],
        "s_per_frame": round(seconds / len(frames), 4),
        "clock_s_per_frame": round(clock / len(frames), 4),
        "median_s_between_frames": round(statistics.median(np.diff([own, *frames]).tolist()), 4),
        "s_by_stage_and_frame": by_stage,
        "peak_gb": round(peak_gb(), 3),
        "peak_gb_before": round(before_gb, 3),
        "report": dataclasses.asdict(report),
        "steps": dict(steps),
        "cells_per_s": round(sum(v for k, v in steps.items() if k.startswith("cells")) / cast_s / 1e6) * 1_000_000,
        "cast_bytes_a_frame": cast_bytes(steps) // len(frames),
    }


def cast_bytes(steps: Counter[str]) -> int:
    """Return the bytes that casting touches: of a ray its two ends, and of a cell its byte, read and written."""
    return sum(count * (48 if name.startswith("rays") else 2) for name, count in steps.items())


def limits() -> dict[str, float]:
    """Return what this processor can do: cells stepped a second, and bytes moved a second."""
    results = {}
    rng = np.random.default_rng(0)
    ends = rng.normal(size=(20_000, 3)) * (30, 30, 1)
    for name, num_x in (("cells_per_s_in_cache", 300), ("cells_per_s_from_memory", 12_000)):
        grid = VoxelGrid((-num_x * 0.1, -30.0, -6.0), (0.2, 0.2, 0.2), (num_x, 300, 60))
        bits = np.zeros((grid.num_voxels + 7) // 8, np.uint8)
        along = rng.uniform(-num_x * 0.1 + 30, num_x * 0.1 - 30, len(ends)) if num_x > 300 else np.zeros(len(ends))
        shift = np.stack([along, np.zeros_like(along), np.zeros_like(along)], axis=1)
        mark_passed(bits, shift, ends + shift, grid)
        rates = []
        for _ in range(5):
            start = time.process_time()
            visited = mark_passed(bits, shift, ends + shift, grid)
            rates.append(visited / (time.process_time() - start))
        results[name] = round(statistics.median(rates) / 1e6) * 1e6
    _walk(np.zeros(1 << 10, np.uint8), 10, 3)
    start = time.process_time()
    _walk(np.zeros(1 << 15, np.uint8), 100_000_000, 3)
    results["plain_steps_per_s"] = round(1e8 / (time.process_time() - start) / 1e6) * 1e6
    source = np.ones(1 << 25, np.float64)
    target = np.zeros_like(source)
    rates = []
    for _ in range(5):
        start = time.process_time()
        np.copyto(target, source)
        rates.append(2 * source.nbytes / (time.process_time() - start))
    results["copied_gb_per_s"] = round(statistics.median(rates) / 1e9, 1)
    return results


@numba.njit(cache=False)
def _walk(bits: npt.NDArray[np.uint8], steps: int, stride: int) -> None:
    """Set bits along a line, as a ray does that needs no choice of its next cell: the least that a step can cost."""
    at, most = 0, 8 * len(bits) - 1
    for _ in range(steps):
        bits[at >> 3] |= np.uint8(1 << (at & 7))
        at = (at + stride) & most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    parser.add_argument("--full", action="store_true", help="200 Waymo-like and 400 nuScenes-like sweeps")
    parser.add_argument("--sensor", action="append", choices=list(DRIVES), help="this sensor only; may be repeated")
    parser.add_argument("--measure", metavar="URI", help=argparse.SUPPRESS)
    parser.add_argument("--keep", type=Path, help="folder that keeps the drives, or has them")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    command = f"python benchmarks/label_speed.py {' '.join(sys.argv[1:])}".strip()
    sensors = {}
    with tempfile.TemporaryDirectory() as scratch:
        for sensor in options.sensor or DRIVES:
            drive = DRIVES[sensor]
            num_sweeps = drive.full if options.full else drive.sweeps
            folder = (options.keep or Path(scratch)) / f"{sensor}-{num_sweeps}"
            if not folder.exists():
                write(str(folder), sensor, num_sweeps)
            done = subprocess.run(
                [sys.executable, __file__, "--measure", str(folder)],
                env={**os.environ, **ONE_THREAD},
                stdout=subprocess.PIPE,
                check=True,
                text=True,
            )
            sensors[sensor] = json.loads(done.stdout.splitlines()[-1])
            if not options.json:
                print(_summary(sensor, sensors[sensor]), flush=True)
    figures = {f"{sensor}_s_per_frame": found["s_per_frame"] for sensor, found in sensors.items()}
    report = {
        "benchmark": "label_speed",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} shared cores, {platform.machine()} {platform.system()}, no GPU; Python "
        f"{platform.python_version()}, numpy {np.__version__}, numba {numba.__version__}, scipy {scipy.__version__}, "
        f"pyarrow {pa.__version__}",
        "command": command,
        "load_average": round(os.getloadavg()[0], 1),
        **figures,
        "peak_gb": max(found["peak_gb"] for found in sensors.values()),
        "goals": GOALS,
        "limits": limits(),
        "sensors": sensors,
    }
    print(json.dumps(report))


def _summary(sensor: str, found: dict[str, Any]) -> str:
    lines = [
        f"{sensor}: {found['frames']} frames of {found['sweeps']} sweeps with {found['points_a_sweep']} points, "
        f"{found['s_per_frame']} s a frame ({found['clock_s_per_frame']} by the clock), {found['peak_gb']} GB"
    ]
    lines += [f"  {stage}: {seconds}" for stage, seconds in found["s_by_stage_and_frame"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
