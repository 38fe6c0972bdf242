"""Does streaming stay within its memory, and does it grow?

Two parts, on a Ray of its own with a store of 150 MB.

`store`: one epoch whose packed samples are many times larger than the store goes to a consumer that is slower than the
reading, at several limits (`stream(…, memory_limit=…)`). The raylet is asked every 20 ms what its store holds. Nothing
may spill, and the store's peak should be under the limit. By default Ray frees what nobody uses any more once a second,
so that the store's figure shows a second of samples too many; here it frees 50 times a second, unless `--lazy`.

`epochs`: short epochs, one after the other, in one worker. After each, the memory that each process alone holds
(`RssAnon`, so without the store's shared pages) is read; a line is fitted to the last three quarters, since allocators
and caches fill up first. The slope is what an epoch leaves behind.

`day` carries the slope to 24 hours of full Waymo (158 081 frames) on eight GPUs of 150 samples/s each: 656 epochs. What
a sample leaves behind would need hours to be told from an allocator's moods, and is not measured apart: 200 epochs of
16 samples bound both together.

    python benchmarks/stream_memory.py --json
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import tempfile
import threading
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from spot_ray.geometry.grid import VoxelGrid, pack_bits
from spot_ray.operators.batch import Batch
from spot_ray.operators.config import BalanceConfig, BeamConfig, DataConfig, ShuffleConfig
from spot_ray.operators.stream import stream
from spot_ray.schema.lidars import HDL_32E
from spot_ray.schema.occupancy import Occupancy, OccupancyInfo
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import PAPER_TAXONOMY
from spot_ray.storage.dataset import DatasetWriter
from spot_ray.storage.occupancy import OccupancyWriter

STORE_BYTES = 150_000_000
GRID = VoxelGrid((-25.6, -25.6, -2.2), (0.4, 0.4, 0.4), (128, 128, 16))
CONFIG = DataConfig(
    balance=BalanceConfig(enabled=False), shuffle=ShuffleConfig(window=200), beams=BeamConfig(targets=("once-40",))
)
RUN: dict[str, Any] = {"seed": 0, "global_batch_size": 4}
FRAMES_A_LOG = 40
GPUS, SAMPLES_A_SECOND, WAYMO_FRAMES, DAY_S = 8, 150, 158_081, 86_400
MEGABYTE = 1e6


def write(uri: str, *, frames: int, points: int) -> None:
    """Write labelled logs of random points."""
    rng = np.random.default_rng(0)
    logs = [range(start, min(start + FRAMES_A_LOG, frames)) for start in range(0, frames, FRAMES_A_LOG)]
    xyz = rng.uniform((-25, -25, -2), (25, 25, 4), (points, 3)).astype(np.float32)
    ring, intensity = rng.integers(0, 32, points).astype(np.uint16), rng.random(points, np.float32)
    voxel, inside = GRID.voxel_of(xyz)
    index = np.unique(GRID.linear(voxel[inside]))
    seen, classes = pack_bits(np.isin(np.arange(GRID.num_voxels), index)), np.full(len(index), 2, np.uint8)
    with DatasetWriter(uri, name="memory", rig=[HDL_32E], taxonomy=PAPER_TAXONOMY) as writer:
        for number, log in enumerate(logs):
            for i in log:
                moved = np.roll(xyz, i, axis=0)
                writer.add(Sweep(f"{number:04d}", f"{i:06d}", i * 10**8, moved, intensity=intensity, ring=ring))
    with OccupancyWriter(uri, OccupancyInfo("default", GRID, PAPER_TAXONOMY.classes, {})) as labels:
        for number, log in enumerate(logs):
            labels.add_sequence(
                f"{number:04d}", [Occupancy(f"{number:04d}", f"{i:06d}", index, classes, seen) for i in log]
            )


class StoreWatch:
    """Asks the raylet every 20 ms what its object store holds, from a thread."""

    def __init__(self) -> None:
        self._held: list[int] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        """Start."""
        self._before = _store()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._done.set()
        self._thread.join()

    def figures(self) -> dict[str, float]:
        """Return the most that the store held, at all and 95 % of the time, and what it put on disk, in MB."""
        after = _store()
        return {
            "peak_mb": round(max(self._held) / MEGABYTE, 1),
            "95_in_100_mb": round(float(np.percentile(self._held, 95)) / MEGABYTE, 1),
            "spilled_mb": (after.spilled_bytes_total - self._before.spilled_bytes_total) / MEGABYTE,
            "on_disk_mb": after.object_store_bytes_fallback / MEGABYTE,
        }

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self._held.append(_store().object_store_bytes_used)


def _store() -> Any:
    import ray
    from ray._private.internal_api import node_stats

    node = ray.nodes()[0]
    return node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False).store_stats


def packed_bytes(batch: Batch) -> int:
    """Return the bytes of a batch's arrays."""
    return sum(value.nbytes for value in vars(batch).values() if isinstance(value, np.ndarray))


def measure_store(uri: str, *, limit: int | None, pause_s: float) -> dict[str, Any]:
    """Return what the store held while an epoch went to a slow consumer."""
    samples, size, waited = 0, 0, []
    with StoreWatch() as watch:
        for batch in stream(uri, CONFIG, **RUN, epoch=0, memory_limit=limit):
            waited.append(batch.step)
            samples += int(batch.weight.sum())
            size += packed_bytes(batch)
            time.sleep(pause_s)
        figures = watch.figures()
    assert waited == list(range(len(waited)))
    return {
        "limit_mb": None if limit is None else limit / MEGABYTE,
        "samples": samples,
        "packed_mb": round(size / MEGABYTE, 1),
        **figures,
    }


def memory_by_process() -> dict[tuple[str, int], int]:
    """Return the bytes that this process and its descendants each hold alone, by (kind, process id)."""
    parents, kinds, held = {}, {}, {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line)
            command = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue  # ended meanwhile
        if "RssAnon" in status:
            pid = int(folder.name)
            parents[pid], held[pid] = int(status["PPid"]), int(status["RssAnon"].split()[0]) * 1024
            kinds[pid] = _kind(pid, command)

    def is_ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and is_ours(parents[pid]))

    return {(kinds[pid], pid): held[pid] for pid in held if is_ours(pid)}


def _kind(pid: int, command: str) -> str:
    if pid == os.getpid():
        return "worker"
    if command.startswith("ray::"):
        # Reading tasks, whether one runs or not; the others serve Ray itself: its metrics and dashboard.
        return "ray" if any(name in command for name in ("Stats", "Autoscal", "Agent")) else "reading"
    return "ray"


def slopes(x: npt.NDArray[np.float64], memory: list[dict[tuple[str, int], int]]) -> dict[str, dict[str, float]]:
    """Return the growth of each kind of process over the last three quarters, in bytes for each one of `x`.

    Args:
        x: (T,) epochs so far.
        memory: T times :func:`memory_by_process`.

    Returns:
        For each kind the slope, its standard error, processes that lived all the time, and MB at the end.
    """
    start = len(x) // 4
    lasting = set(memory[start]).intersection(*memory[start:])
    result = {}
    for kind in sorted({kind for kind, _ in lasting}):
        own = [key for key in lasting if key[0] == kind]
        y = np.array([sum(held[key] for key in own) for held in memory[start:]], dtype=np.float64)
        (slope, _), covariance = np.polyfit(x[start:], y, 1, cov=True)
        result[kind] = {
            "slope": round(float(slope), 1),
            "standard_error": round(math.sqrt(covariance[0, 0]), 1),
            "by_process": {
                str(pid): round(float(np.polyfit(x[start:], [held[kind, pid] for held in memory[start:]], 1)[0]), 1)
                for _, pid in sorted(own)
            },
            "processes": len(own),
            "end_mb": round(float(y[-1]) / MEGABYTE, 1),
        }
    return result


def measure_epochs(uri: str, *, epochs: int) -> dict[str, Any]:
    """Return what an epoch leaves behind, in bytes."""
    memory, samples, started = [], 0, time.perf_counter()
    for epoch in range(epochs):
        samples += _use(stream(uri, CONFIG, **RUN, epoch=epoch))
        memory.append(memory_by_process())
    return {
        "epochs": epochs,
        "samples_an_epoch": samples // epochs,
        "seconds": round(time.perf_counter() - started, 1),
        "threads_at_the_end": threading.active_count(),
        "bytes_an_epoch": slopes(np.arange(epochs, dtype=np.float64), memory),
    }


def _use(batches: Iterable[Batch]) -> int:
    return sum(int(batch.weight.sum()) for batch in batches)


def day(epochs: dict[str, Any]) -> dict[str, float]:
    """Return MB that 24 hours of real epochs would add to all processes of each kind."""
    passes = GPUS * SAMPLES_A_SECOND * DAY_S / WAYMO_FRAMES
    return {kind: round(passes * row["slope"] / MEGABYTE, 1) for kind, row in epochs["bytes_an_epoch"].items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print only one JSON object, as the last line")
    parser.add_argument("--full", action="store_true", help="the size of the committed figures")
    parser.add_argument("--lazy", action="store_true", help="free once a second, as Ray does by default")
    parser.add_argument("--part", choices=("store", "epochs"), help="this part alone")
    options = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a cluster of this process alone
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    parts = (options.part,) if options.part else ("store", "epochs")
    report: dict[str, Any] = {
        "benchmark": "stream_memory",
        "date": datetime.now(UTC).date().isoformat(),
        "cpus": os.cpu_count(),
        "store_mb": STORE_BYTES / MEGABYTE,
    }
    with tempfile.TemporaryDirectory() as folder:
        ray.init(
            "local",
            num_cpus=2,
            object_store_memory=STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _system_config=None if options.lazy else {"free_objects_period_milliseconds": 20},
        )
        if "store" in parts:
            large = f"{folder}/large"
            write(large, frames=600 if options.full else 240, points=100_000)
            limits = (60, 90, None) if options.full else (60,)
            report["store"] = [measure_store(large, limit=limit and limit * 1_000_000, pause_s=0.1) for limit in limits]
        if "epochs" in parts:
            small = f"{folder}/small"
            write(small, frames=16, points=5_000)
            report["epochs"] = measure_epochs(small, epochs=200 if options.full else 40)
        gc.collect()  # a stream that is left still talks to Ray when it goes
        ray.shutdown()
    if "epochs" in report:
        report["day_mb"] = day(report["epochs"])
    if not options.json:
        print(json.dumps(report, indent=2))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
