"""From what a sample costs to what 8, 64 and 512 GPUs need, for `ingest.py`: arithmetic, and the two figures it lacks.

What a frame costs in the store is read off the files' footers. What planning costs a frame is measured on manifests of
many rows that all name the same few files: the time to an epoch's first batch, and the memory, in a process of its own.

    python benchmarks/ingest_scale.py --plan URI
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ingest_frames import BATCH_SIZE, CONFIG, SEED

from spot_ray.operators.mixture import open_mixture
from spot_ray.operators.plan import Planner
from spot_ray.operators.stream import iterate
from spot_ray.storage import manifest
from spot_ray.storage.codec import LABEL_COLUMNS, columns_for
from spot_ray.storage.dataset import Dataset, open_dataset
from spot_ray.storage.occupancy import open_occupancy

GPUS = (8, 64, 512)
FRAMES = {"Waymo": 158_000, "a fleet": 100_000_000}
SAMPLES_A_GPU = 150
"""Samples a second that one GPU takes."""

GPUS_A_NODE = 8
LIMITS = {
    "cores a node": 192,
    "memory a node, GB": 2000,
    "network a node, GB/s": 12.5,
    "disk a node, TB": 30,
    "requests a second": 5500,
    "planning, share of an epoch": 0.02,
}
"""A usual node of eight GPUs; requests that S3 promises under one prefix; what planning may take."""

_HOLE = 8192
"""Arrow joins ranges with gaps up to this many bytes into one request."""
_FRAMES_A_SEQUENCE = 200
_PLANNED = (20_000, 200_000)
_WORLD_SIZE = 64


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one sample costs.

    Args:
        cpu_s: CPU seconds, all processes.
        stored_bytes: Bytes that are read from the store.
        shard_bytes: Bytes that its files have for each frame: what a cache fetches.
        requests: Requests to the store without a cache, where files stay open.
        packed_bytes: Bytes that cross Ray's object store to the training worker.
        open_s: CPU seconds that a worker takes a frame when a run starts: manifests, labels, classes.
        plan_s: The same, before an epoch's first batch.
        plan_bytes: Bytes that a worker holds for it at most.
    """

    cpu_s: float
    stored_bytes: float
    shard_bytes: float
    requests: float
    packed_bytes: float
    open_s: float
    plan_s: float
    plan_bytes: float


def cost(uri: str, cpu_s: float) -> Cost:
    """Return what a sample of a dataset costs."""
    stored_bytes, shard_bytes, requests = _stored(uri)
    batches = list(itertools.islice(iterate(uri, CONFIG, seed=SEED, epoch=0, global_batch_size=BATCH_SIZE), 8))
    packed = [np.asarray(value).nbytes for batch in batches for value in vars(batch).values() if _is_array(value)]
    return Cost(cpu_s, stored_bytes, shard_bytes, requests, sum(packed) / len(batches) / BATCH_SIZE, *_planning(uri))


def scale(one: Cost) -> list[dict[str, Any]]:
    """Return what so many GPUs need for a dataset of so many frames, and which need comes nearest to its limit."""
    rows = []
    for gpus, (name, frames) in itertools.product(GPUS, FRAMES.items()):
        nodes, rate = gpus / GPUS_A_NODE, gpus * SAMPLES_A_GPU
        epoch_s = frames / rate
        always = {
            "cores a node": rate * one.cpu_s / nodes,
            "memory a node, GB": frames * one.plan_bytes * GPUS_A_NODE / 1e9,
            "planning, share of an epoch": frames * one.plan_s / epoch_s,
        }
        direct = {
            "network a node, GB/s": rate * one.stored_bytes / nodes / 1e9,
            "requests a second": rate * one.requests,
        }
        # Samples are dealt out to workers, not shards: a node needs some frame of nearly every shard.
        shards = frames * one.shard_bytes / 1e12
        touched = 1 - (1 - 1 / nodes) ** _FRAMES_A_SEQUENCE
        fits = touched * shards <= LIMITS["disk a node, TB"]
        cached = {} if fits else {"network a node, GB/s": touched * shards * 1e3 / epoch_s}
        rows.append(
            {
                "gpus": gpus,
                "frames": frames,
                "dataset": name,
                "samples_per_s": rate,
                "epoch_s": round(epoch_s, 1),
                "cores": round(rate * one.cpu_s),
                "bucket_gb_per_s": round(rate * one.stored_bytes / 1e9, 2),
                "object_store_gb_per_s_a_node": round(rate * one.packed_bytes / nodes / 1e9, 2),
                "open_s": round(frames * one.open_s, 1),
                "plan_s": round(frames * one.plan_s, 1),
                "fits_a_nodes_disk": fits,
                "without_a_cache": _pressed(always | direct),
                "with_a_cache": _pressed(always | cached),
            }
        )
    return rows


def _pressed(needs: dict[str, float]) -> dict[str, Any]:
    """Return needs, how many times their limits they are, and the one that is most."""
    times = {need: value / LIMITS[need] for need, value in needs.items()}
    return {
        "needs": {need: float(f"{value:.3g}") for need, value in needs.items()},
        "times_the_limit": {need: float(f"{value:.2g}") for need, value in times.items()},
        "breaks_first": max(times, key=times.__getitem__),
    }


def _is_array(value: object) -> bool:
    return isinstance(value, np.ndarray)


def _stored(uri: str) -> tuple[float, float, float]:
    """Return the mean bytes that are read, bytes of files, and requests a frame, of its sweep and its labels."""
    dataset, labels = open_dataset(uri), open_occupancy(uri, CONFIG.labels)
    sweeps = columns_for(("xyz", "intensity", "elongation", "ring", "lidar_id", "boxes"), dataset.info, bare=True)
    places = ((dataset.manifest, sweeps), (labels.manifest, list(LABEL_COLUMNS)))
    total_bytes = file_bytes = total_requests = 0
    for rows, columns in places:
        file_bytes += sum(Path(f"{uri}/{shard}").stat().st_size for shard in set(rows["shard"].to_pylist()))
        for place in rows.select(["shard", "row_group"]).to_pylist():
            ranges = _ranges(_footer(f"{uri}/{place['shard']}"), place["row_group"], columns)
            total_bytes += sum(size for _, size in ranges)
            total_requests += 1 + sum(after[0] - sum(before) > _HOLE for before, after in itertools.pairwise(ranges))
    return total_bytes / len(dataset), file_bytes / len(dataset), total_requests / len(dataset)


@functools.cache
def _footer(path: str) -> pq.FileMetaData:
    return pq.read_metadata(path)


def _ranges(footer: pq.FileMetaData, row_group: int, columns: list[str]) -> list[tuple[int, int]]:
    """Return (start, bytes) of some columns' chunks in a row group, ascending."""
    group = footer.row_group(row_group)
    chunks = [group.column(i) for i in range(group.num_columns)]
    read = [chunk for chunk in chunks if chunk.path_in_schema.split(".list.")[0] in columns]
    return sorted((chunk.data_page_offset, chunk.total_compressed_size) for chunk in read)


def _planning(uri: str) -> tuple[float, ...]:
    """Return the seconds to open and to plan, and the bytes, that a frame costs a worker: what more of them add."""
    found = []
    for frames in _PLANNED:
        with tempfile.TemporaryDirectory() as folder:
            _tile(uri, folder, frames)
            command = [sys.executable, __file__, "--plan", folder]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
    few, many = found
    more = _PLANNED[1] - _PLANNED[0]
    return tuple((many[name] - few[name]) / more for name in ("open_s", "plan_s", "bytes"))


def _tile(uri: str, folder: str, frames: int) -> None:
    """Write a dataset of many frames, whose manifests name the files of another one again and again."""
    for file in ("dataset.json", f"occupancy/{CONFIG.labels}/info.json"):
        (Path(folder) / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(f"{uri}/{file}", f"{folder}/{file}")
    dataset = open_dataset(uri)
    for parts, rows in ((".", dataset.manifest), (f"occupancy/{CONFIG.labels}", _labels(uri, dataset))):
        shards = Path(folder) / parts / "shards"
        shards.symlink_to(Path(uri).resolve() / parts / "shards")
        tiled = rows.take(pa.array(np.arange(frames) % len(dataset)))
        at = np.arange(frames)
        ids = {
            "sequence_id": pa.array([f"drive-{i // _FRAMES_A_SEQUENCE:08d}" for i in at]),
            "frame_id": pa.array([f"{i % _FRAMES_A_SEQUENCE:06d}" for i in at]),
        }
        for name, values in ids.items():
            tiled = tiled.set_column(tiled.schema.get_field_index(name), tiled.schema.field(name), values)
        if "timestamp_ns" in tiled.column_names:
            field = tiled.schema.get_field_index("timestamp_ns")
            tiled = tiled.set_column(field, tiled.schema.field(field), pa.array(at * 100_000_000))
        manifest.append_part(f"{folder}/{parts}/manifest", tiled)


def _labels(uri: str, dataset: Dataset) -> pa.Table:
    """Return the manifest rows of the labels, in the order of the dataset's frames."""
    rows = open_occupancy(uri, CONFIG.labels).manifest
    place = {(row["sequence_id"], row["frame_id"]): i for i, row in enumerate(rows.to_pylist())}
    frames = dataset.manifest.select(["sequence_id", "frame_id"]).to_pylist()
    return rows.take([place[frame["sequence_id"], frame["frame_id"]] for frame in frames])


def _plan(uri: str) -> dict[str, float]:
    """Return the CPU seconds to open a dataset and from there to an epoch's first batch, and the most memory taken."""
    start = time.process_time()
    mixture = open_mixture(uri, labels=CONFIG.labels)
    size = BATCH_SIZE * _WORLD_SIZE
    planner = Planner(mixture, CONFIG, seed=SEED, global_batch_size=size)
    opened = time.process_time()
    options = {"seed": SEED, "epoch": 0, "global_batch_size": size, "world_size": _WORLD_SIZE}
    batch = next(iterate(mixture, CONFIG, planner=planner, **options))
    assert len(batch) == BATCH_SIZE
    return {
        "open_s": opened - start,
        "plan_s": time.process_time() - opened,
        "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", metavar="URI", required=True)
    print(json.dumps(_plan(parser.parse_args().plan)))


if __name__ == "__main__":
    main()
