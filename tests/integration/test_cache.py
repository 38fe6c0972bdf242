"""The cache before an S3 server, over HTTP: what the store is asked for, epoch by epoch."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from faulty_store import Fault, FaultyStore
from moto.server import ThreadedMotoServer

from spot_ray.errors import StoreError
from spot_ray.geometry.grid import VoxelGrid, pack_bits
from spot_ray.operators.batch import Batch
from spot_ray.operators.config import DataConfig
from spot_ray.operators.stream import iterate
from spot_ray.schema.lidars import WAYMO_TOP
from spot_ray.schema.occupancy import Occupancy, OccupancyInfo
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import PAPER_TAXONOMY
from spot_ray.storage import download, s3
from spot_ray.storage import uri as uris
from spot_ray.storage.cache import CacheConfig, Traffic
from spot_ray.storage.dataset import DatasetWriter
from spot_ray.storage.occupancy import OccupancyWriter
from spot_ray.storage.shards import ShardReader, ShardWriter

SCHEMA = pa.schema([("blob", pa.binary()), ("other", pa.binary()), ("number", pa.int32())])
SHARDS, ROWS = 4, 6
COLUMNS = ["blob", "number"]
TAIL_BYTES = 2**17
"""Of a file that are read first."""


@pytest.fixture(scope="module")
def server(faulty_store: FaultyStore) -> Iterator[FaultyStore]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    faulty_store.target = f"http://{host}:{port}"
    yield faulty_store
    moto.stop()


@pytest.fixture
def bucket(server: FaultyStore) -> str:
    """A dataset's folder with some shards; what was asked for is forgotten."""
    name = f"cache-{uuid.uuid4().hex[:12]}"
    s3.client().mkdir(name)
    for shard in range(SHARDS):
        write_shard(f"s3://{name}/{shard}.parquet", shard)
    server.requests.clear()
    return f"s3://{name}"


@pytest.fixture
def config(tmp_path: Path) -> CacheConfig:
    return CacheConfig(str(tmp_path / "cache"), 100_000_000)


def write_shard(uri: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    with ShardWriter(uri, SCHEMA, compression="none") as writer:
        for i in range(ROWS):
            writer.add({"blob": rng.bytes(50_000), "other": rng.bytes(50_000), "number": 100 * seed + i})


def write_dataset(uri: str) -> None:
    """Write two logs of three frames with a label each."""
    grid = VoxelGrid((-8.0, -8.0, -2.2), (0.4, 0.4, 0.4), (40, 40, 16))
    rng = np.random.default_rng(0)
    sweeps = [
        Sweep(log, f"{i}", i * 10**8, rng.uniform(-2, 2, (50, 3)).astype(np.float32)) for log in "ab" for i in range(3)
    ]
    with DatasetWriter(uri, name="cache", rig=[WAYMO_TOP], taxonomy=PAPER_TAXONOMY) as writer:
        for sweep in sweeps:
            writer.add(sweep)
    with OccupancyWriter(uri, OccupancyInfo("default", grid, PAPER_TAXONOMY.classes, {})) as labels:
        for log in "ab":
            labels.add_sequence(log, [_label(sweep, grid) for sweep in sweeps if sweep.sequence_id == log])


def _label(sweep: Sweep, grid: VoxelGrid) -> Occupancy:
    index = np.array([1, 2, 40], np.int32)
    observed = np.zeros(grid.num_voxels, dtype=bool)
    observed[index] = True
    return Occupancy(sweep.sequence_id, sweep.frame_id, index, np.array([1, 2, 3], np.uint8), pack_bits(observed))


def epoch(reader: ShardReader, seed: int) -> list[int]:
    """Read all frames in a random order and return the number of each."""
    order = np.random.default_rng(seed).permutation(SHARDS * ROWS)
    tables = [reader.read(f"{i // ROWS}.parquet", int(i % ROWS), COLUMNS) for i in order]
    reader.close()
    return [table["number"][0].as_py() for table in tables]


def asked(server: FaultyStore) -> dict[str, int]:
    """Return how many requests of each method came since the last call."""
    methods = [request.method for request in server.requests]
    server.requests.clear()
    return {method: methods.count(method) for method in sorted(set(methods))}


def ranges(server: FaultyStore) -> list[int]:
    """Return the bytes that each GET since the last call asked for."""
    found = [re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range", "")) for request in server.requests]
    server.requests.clear()
    return [int(match[2]) - int(match[1]) + 1 for match in found if match]


def test_the_second_epoch_asks_the_store_for_nothing(
    server: FaultyStore, bucket: str, config: CacheConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "RANGE_BYTES", 2**18)
    sizes = list(uris.file_sizes(bucket).values())
    server.requests.clear()
    first = ShardReader(bucket, cache=config)
    numbers = epoch(first, seed=0)
    num_ranges = sum(-(-size // 2**18) for size in sizes)
    assert asked(server) == {"GET": num_ranges, "HEAD": 2 * SHARDS}
    assert first.traffic.requests == num_ranges + 2 * SHARDS
    assert first.traffic.bytes_from_store == sum(sizes)
    assert first.traffic.misses == SHARDS
    second = ShardReader(bucket, cache=config)
    assert sorted(epoch(second, seed=1)) == sorted(numbers)
    assert asked(server) == {}
    assert second.traffic == Traffic(hits=second.traffic.hits, bytes_from_cache=first.traffic.bytes_from_cache)


def test_a_second_epoch_of_training_reads_no_shard_from_the_store(
    server: FaultyStore, bucket: str, config: CacheConfig
) -> None:
    uri = f"{bucket}/dataset"
    write_dataset(uri)
    data = DataConfig(features=("x", "y", "z"))

    def of_shards(epoch: int, cache: CacheConfig | None) -> tuple[list[Batch], int]:
        server.requests.clear()
        batches = list(iterate(uri, data, seed=0, epoch=epoch, global_batch_size=2, cache=cache))
        return batches, sum("/shards/" in request.path for request in server.requests)

    batches, requests = of_shards(0, config)
    assert requests == 4 * 3  # sweeps and labels of two logs: asked about, fetched, asked about again
    assert of_shards(1, config)[1] == 0
    plain, requests = of_shards(0, None)
    assert requests > 0
    assert [batch.frames for batch in batches] == [batch.frames for batch in plain]
    for cached, direct in zip(batches, plain, strict=True):
        np.testing.assert_array_equal(cached.points, direct.points)
        np.testing.assert_array_equal(cached.occupancy_index, direct.occupancy_index)


def test_the_next_run_asks_for_each_shard_once_and_fetches_what_was_written_again(
    server: FaultyStore, bucket: str, config: CacheConfig
) -> None:
    epoch(ShardReader(bucket, cache=config), seed=0)
    write_shard(f"{bucket}/2.parquet", seed=7)  # as large as before
    server.requests.clear()
    later = ShardReader(bucket, cache=CacheConfig(config.dir, config.limit_bytes))
    numbers = epoch(later, seed=0)
    assert asked(server) == {"GET": 1, "HEAD": SHARDS + 1}
    assert sorted(numbers) == sorted(100 * shard + i for shard in (0, 1, 7, 3) for i in range(ROWS))
    assert later.traffic.misses == 1


def test_without_a_cache_each_frame_costs_a_request_and_each_shard_two_more(server: FaultyStore, bucket: str) -> None:
    reader = ShardReader(bucket)
    epoch(reader, seed=0)
    assert sum(request.method == "HEAD" for request in server.requests) == SHARDS
    sizes = ranges(server)
    footers = [size for size in sizes if size == TAIL_BYTES]
    assert len(footers) == SHARDS
    assert SHARDS * ROWS <= len(sizes) - len(footers) <= 2 * SHARDS * ROWS
    # Of three columns the middle one is left out; gaps between pages may be read along.
    assert 0 <= sum(sizes) - sum(footers) - reader.traffic.bytes_direct < 1000 * SHARDS * ROWS


def test_a_store_that_fails_amid_a_download_is_told_and_leaves_nothing(
    server: FaultyStore, bucket: str, config: CacheConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "ATTEMPTS", 1)
    monkeypatch.setenv("AWS_SPOT_RAY_TEST", uuid.uuid4().hex)  # another environment: other clients
    monkeypatch.setattr(download, "RANGE_BYTES", 2**17)
    reader = ShardReader(bucket, cache=config)
    denied = Fault(status=403, code="AccessDenied")
    with (
        server.misbehaving(lambda request: denied if request.headers.get("range", "").startswith("bytes=3") else None),
        pytest.raises(StoreError, match="ACCESS_DENIED"),
    ):
        reader.read("0.parquet", 0, COLUMNS)
    assert [path.suffix for path in Path(config.dir, "files").iterdir()] == []
    assert reader.read("0.parquet", 3, COLUMNS)["number"].to_pylist() == [3]
    reader.close()


@pytest.mark.parametrize("rows", [3, 60])
def test_a_shard_that_is_written_again_in_the_store_is_read_anew_without_a_cache(bucket: str, rows: int) -> None:
    # Smaller or larger than before: the footer that was kept leads nowhere, and is read again.
    reader = ShardReader(bucket)
    assert reader.read("1.parquet", 2, COLUMNS)["number"][0].as_py() == 102
    rng = np.random.default_rng(9)
    with ShardWriter(f"{bucket}/1.parquet", SCHEMA, compression="none") as writer:
        for i in range(rows):
            writer.add({"blob": rng.bytes(3_000), "other": rng.bytes(70_000), "number": 900 + i})
    assert reader.read("1.parquet", 2, COLUMNS)["number"][0].as_py() == 902
    reader.close()
