"""How many frames a second does the data plane deliver, and how soon is the first batch there?

Writes Waymo-sized sweeps (170 000 points, default label grid), then measures the operators one by one in one process,
the plain iterator, and Ray Data over several epochs, as a training run starts them.

    python benchmarks/stream_speed.py --json
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

import numpy as np

from spot_ray.geometry import se3
from spot_ray.geometry.grid import VoxelGrid, pack_bits
from spot_ray.operators.chain import build_chain
from spot_ray.operators.config import BalanceConfig, BeamConfig, DataConfig
from spot_ray.operators.mixture import open_mixture
from spot_ray.operators.pack import STAGES, to_table, unpack
from spot_ray.operators.plan import Planner
from spot_ray.operators.read import locate, slots
from spot_ray.operators.stream import iterate, stream
from spot_ray.schema.lidars import WAYMO_TOP
from spot_ray.schema.occupancy import Occupancy, OccupancyInfo
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import PAPER_TAXONOMY
from spot_ray.storage.dataset import DatasetWriter
from spot_ray.storage.occupancy import OccupancyWriter
from spot_ray.storage.shards import ShardReader

COLUMNS = 2650
GRID = VoxelGrid()
CONFIG = DataConfig(balance=BalanceConfig(enabled=False), beams=BeamConfig(targets=("hdl-64e", "hdl-32e")))


def write(uri: str, frames: int) -> None:
    """Write one sequence of sweeps from a spinning 64-beam sensor over rough ground, in the order of a range image."""
    rng = np.random.default_rng(0)
    beams = np.array(WAYMO_TOP.inclinations_deg)
    ring = np.repeat(np.arange(len(beams), dtype=np.uint16), COLUMNS)
    inclination = np.radians(beams)[ring]
    azimuth = np.tile(np.linspace(np.pi, -np.pi, COLUMNS, endpoint=False), len(beams))
    to_ground = np.where(inclination < -0.03, WAYMO_TOP.height_m / np.maximum(np.tan(-inclination), 1e-3), 70)
    sweeps = []
    for i in range(frames):
        wall = 15 + 50 * np.abs(np.sin(azimuth * 3 + i / 10))
        flat = np.minimum(to_ground, wall) * (1 + 0.002 * rng.standard_normal(len(ring)))
        lidar = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), flat * np.tan(inclination)], axis=1)
        sweeps.append(
            Sweep(
                "s",
                f"{i:06d}",
                i * 100_000_000,
                se3.transform_points(WAYMO_TOP.pose, lidar).astype(np.float32),
                intensity=rng.gamma(1.0, 0.2, len(ring)).astype(np.float32),
                ring=ring,
            )
        )
    with DatasetWriter(uri, name="speed", rig=[WAYMO_TOP], taxonomy=PAPER_TAXONOMY) as writer:
        for sweep in sweeps:
            writer.add(sweep)
    with OccupancyWriter(uri, OccupancyInfo("default", GRID, PAPER_TAXONOMY.classes, {})) as labels:
        labels.add_sequence("s", [_label(sweep) for sweep in sweeps])


def _label(sweep: Sweep) -> Occupancy:
    voxel, inside = GRID.voxel_of(sweep.xyz)
    index = np.unique(GRID.linear(voxel[inside]))
    observed = np.zeros(GRID.num_voxels, dtype=bool)
    observed[index] = True
    semantic = (index % PAPER_TAXONOMY.num_classes + 1).astype(np.uint8)
    return Occupancy(sweep.sequence_id, sweep.frame_id, index, semantic, pack_bits(observed))


def milliseconds(work: Callable[[Any], Any], items: Iterable[Any]) -> tuple[float, list[Any]]:
    """Return the processor time a call in ms, which other programs on the machine do not change, and the results."""
    items = list(items)
    start = time.process_time()
    results = [work(item) for item in items]
    return round((time.process_time() - start) / len(items) * 1e3, 2), results


def measure_operators(uri: str) -> dict[str, float]:
    """Return the processor time a frame of each operator in ms, files in the page cache."""
    mixture = open_mixture(uri, labels="default")
    plan = Planner(mixture, CONFIG, seed=0, global_batch_size=1).plan(0)
    places = list(slots(locate(plan.share(), mixture)))
    chain = build_chain(mixture, CONFIG, GRID, seed=0, epoch=0).datasets[0]
    reader = ShardReader(chain.uri)
    result = {}
    milliseconds(lambda slot: chain.read(slot, reader), places)
    result["read"], samples = milliseconds(lambda slot: chain.read(slot, reader), places)
    result["beams"], samples = milliseconds(chain.beams, samples)
    result["augment"], samples = milliseconds(chain.augment, samples)
    result["pack"], packed = milliseconds(chain.pack, samples)
    nothing = np.zeros(len(STAGES))
    tables = [to_table([slot], [sample], [nothing], {}) for slot, sample in zip(places, packed, strict=True)]
    result["unpack"], _ = milliseconds(lambda table: unpack(table, len(CONFIG.features)), tables)
    return result


def measure_plan(uri: str, epochs: int) -> float:
    """Return the seconds that opening the dataset and counting the steps of a run take."""
    start = time.perf_counter()
    planner = Planner(open_mixture(uri, labels=None), DataConfig(), seed=0, global_batch_size=4)
    _ = [planner.num_steps(epoch) for epoch in range(epochs)]
    return round(time.perf_counter() - start, 3)


def measure_epoch(batches: Iterable[Any]) -> dict[str, float]:
    """Return seconds to the first batch and frames a second, from the first call to the last batch."""
    start = time.perf_counter()
    first, frames = None, 0
    for batch in batches:
        first = first or time.perf_counter() - start
        frames += len(batch)
    seconds = time.perf_counter() - start
    return {"first_batch_s": round(first or seconds, 3), "frames_per_s": round(frames / seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print only one JSON object, as the last line")
    parser.add_argument("--full", action="store_true", help="the size of the committed figures")
    options = parser.parse_args()
    frames, epochs = (400, 4) if options.full else (64, 3)
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a cluster of this process alone
    import ray

    with tempfile.TemporaryDirectory() as folder:
        uri = f"{folder}/dataset"
        write(uri, frames)
        run = {"seed": 0, "global_batch_size": 4}
        report: dict[str, Any] = {
            "benchmark": "stream_speed",
            "date": datetime.now(UTC).date().isoformat(),
            "load_average": round(os.getloadavg()[0], 1),
            "frames": frames,
            "points": COLUMNS * WAYMO_TOP.num_beams,
            "cpus": os.cpu_count(),
            "plan_30_epochs_s": measure_plan(uri, 30),
            "operators_cpu_ms": measure_operators(uri),
            "iterate": measure_epoch(iterate(uri, CONFIG, epoch=0, **run)),
        }
        ray.init(log_to_driver=False, include_dashboard=False, logging_level="ERROR")
        report["stream"] = [measure_epoch(stream(uri, CONFIG, epoch=epoch, **run)) for epoch in range(epochs)]
        ray.shutdown()
    if not options.json:
        for name, value in report.items():
            print(f"{name:18} {value}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
