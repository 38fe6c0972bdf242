"""How large are frames in Parquet, how fast are they read, and which encodings lose?

Real sweeps, where they are found, and synthetic ones of Waymo's size (180 000 points: a sweep and part of the next one,
in the order of a range image, and once in the order of firing) are written by `DatasetWriter` and read by `Dataset`,
then by every candidate: three binary columns a frame, one frame a row group. Raw is what the source's own file takes
as float32: x, y, z, intensity, and elongation (Waymo) or ring (nuScenes). One thread, warm file cache; candidates take
turns, and each figure is the median over the rounds.

    python benchmarks/parquet_encoding.py [--json] [--full] [--data DIR]

One JSON object is the last line of the output. `--json` prints nothing else. `--full` measures more frames and rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from spot_ray.geometry import se3
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.lidars import HDL_32E, HDL_64E, ONCE_40, WAYMO_TOP
from spot_ray.schema.sensors import LidarSpec
from spot_ray.schema.sweep import POINT_DTYPES, Sweep
from spot_ray.schema.taxonomy import PAPER_TAXONOMY
from spot_ray.storage import sequence
from spot_ray.storage.blobs import STEP_M, decode_column, decode_xyz, encode_column, encode_xyz
from spot_ray.storage.codec import encode_sweep
from spot_ray.storage.dataset import DatasetWriter, open_dataset
from spot_ray.synthetic.world import World

WAYMO_POINTS = 180_000
REAL: dict[str, tuple[str, int, LidarSpec, str]] = {
    "nuscenes": ("nuscenes/samples/LIDAR_TOP/*.pcd.bin", 5, HDL_32E, "ring"),
    "semantickitti": ("semantickitti/sequences/00/velodyne/*.bin", 4, HDL_64E, ""),
    "once": ("once/data/*/lidar_roof/*.bin", 4, ONCE_40, ""),
}
"""Files, float32 values a point, the LiDAR, and the fifth value."""


@dataclass
class Source:
    """Sweeps of one dataset, with the columns that its own files hold."""

    lidar: LidarSpec
    columns: tuple[str, ...]
    sweeps: list[Sweep]

    @property
    def info(self) -> DatasetInfo:
        """The dataset that they would be."""
        return DatasetInfo("encoding", (self.lidar,), PAPER_TAXONOMY)

    def raw_bytes(self) -> int:
        """What the columns take as float32."""
        return sum(len(sweep) for sweep in self.sweeps) * 4 * (3 + len(self.columns))


Blobs = dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """One way to write a frame's columns and to read them as NumPy arrays: xyz (N, 3) and the others (N,)."""

    pack: Callable[[Sweep, Source], Blobs]
    unpack: Callable[[dict[str, pa.Scalar], int, Source], dict[str, npt.NDArray[Any]]]
    codec: str = "zstd"
    level: int | None = 1
    types: dict[str, pa.DataType] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


def waymo_like(num_sweeps: int, *, firing_order: bool) -> Source:
    """Return synthetic sweeps of Waymo's size, points in the order of a range image or of firing."""
    world = World("waymo", seed=0, sequence=0, num_frames=2 * num_sweeps)
    sweeps = []
    for i in range(num_sweeps):
        pair = world.sweep(2 * i), world.sweep(2 * i + 1)
        columns = {
            name: np.concatenate([getattr(sweep, name) for sweep in pair])[:WAYMO_POINTS]
            for name in ("xyz", *POINT_DTYPES)
            if getattr(pair[0], name) is not None
        }
        if not firing_order:
            order = np.argsort(columns["ring"], kind="stable")
            columns = {name: values[order] for name, values in columns.items()}
        sweeps.append(Sweep("s", f"{i:06d}", i + 1, **columns))
    return Source(WAYMO_TOP, ("intensity", "elongation"), sweeps)


def real(folder: Path, name: str, most: int) -> Source | None:
    """Return the sweeps of a real dataset at its LiDAR's nominal mount, or None if there are none."""
    pattern, values, lidar, fifth = REAL[name]
    sweeps = []
    for i, file in enumerate(sorted(folder.glob(pattern))[:most]):
        points = np.fromfile(file, "<f4").reshape(-1, values)
        columns = {"intensity": points[:, 3].copy()}
        if fifth:
            columns[fifth] = points[:, 4].astype(POINT_DTYPES[fifth])
        xyz = se3.transform_points(lidar.pose, points[:, :3])
        sweeps.append(Sweep("s", f"{i:06d}", i + 1, xyz, **columns))  # type: ignore[arg-type]
    return Source(lidar, ("intensity", fifth) if fifth else ("intensity",), sweeps) if sweeps else None


def _chosen(sweep: Sweep, source: Source) -> Blobs:
    row = encode_sweep(sweep, source.info)
    return {name: row[name] for name in ("xyz", *source.columns)}


def _attributes(sweep: Sweep, source: Source) -> Blobs:
    return {name: encode_column(getattr(sweep, name), lossless=False) for name in source.columns}


def _read_attributes(row: dict[str, pa.Scalar], count: int, source: Source) -> dict[str, npt.NDArray[Any]]:
    return {name: decode_column(row[name].as_buffer(), POINT_DTYPES[name], count, "", name) for name in source.columns}


def _unpack(row: dict[str, pa.Scalar], count: int, source: Source) -> dict[str, npt.NDArray[Any]]:
    return {"xyz": decode_xyz(row["xyz"].as_buffer(), STEP_M, count, ""), **_read_attributes(row, count, source)}


def _in_order(sweep: Sweep, source: Source) -> Blobs:
    return {"xyz": encode_xyz(sweep.xyz, None, lossless=False)[1], **_attributes(sweep, source)}


def _float32(sweep: Sweep, source: Source) -> Blobs:
    columns = {name: encode_column(getattr(sweep, name), lossless=True) for name in source.columns}
    return {"xyz": encode_xyz(sweep.xyz, None, lossless=True)[1], **columns}


def _unpack_float32(row: dict[str, pa.Scalar], count: int, source: Source) -> dict[str, npt.NDArray[Any]]:
    return {"xyz": decode_xyz(row["xyz"].as_buffer(), 0, count, ""), **_read_attributes(row, count, source)}


def _interleaved(sweep: Sweep, source: Source) -> Blobs:
    values = [getattr(sweep, name).astype(np.float32) for name in source.columns]
    return {"points": np.column_stack([sweep.xyz, *values]).tobytes()}


def _unpack_interleaved(row: dict[str, pa.Scalar], count: int, source: Source) -> dict[str, npt.NDArray[Any]]:
    points = np.frombuffer(row["points"].as_buffer(), np.float32).reshape(count, -1)
    values = {name: points[:, 3 + k].astype(POINT_DTYPES[name]) for k, name in enumerate(source.columns)}
    return {"xyz": np.ascontiguousarray(points[:, :3]), **values}


def _lists(sweep: Sweep, source: Source) -> Blobs:
    values = {name: getattr(sweep, name).astype(np.float32) for name in source.columns}
    return {**{axis: sweep.xyz[:, k] for k, axis in enumerate("xyz")}, **values}


def _unpack_lists(row: dict[str, pa.Scalar], count: int, source: Source) -> dict[str, npt.NDArray[Any]]:
    xyz = np.empty((count, 3), np.float32)
    for k, axis in enumerate("xyz"):
        xyz[:, k] = row[axis].values.to_numpy(zero_copy_only=False)
    return {"xyz": xyz, **{name: row[name].values.to_numpy().astype(POINT_DTYPES[name]) for name in source.columns}}


def _steps(sweep: Sweep) -> npt.NDArray[np.int32]:
    return np.rint(sweep.xyz.T / STEP_M).astype(np.int32)


def _narrow(numbers: npt.NDArray[np.int32]) -> bytes:
    return numbers.astype("<i2" if np.abs(numbers).max() < 2**15 else "<i4").tobytes()


def _read_narrow(row: dict[str, pa.Scalar], count: int) -> npt.NDArray[Any]:
    buffer = row["xyz"].as_buffer()
    return np.frombuffer(buffer, f"<i{buffer.size // (3 * count)}").reshape(3, count)


def _as_xyz(steps: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    xyz = np.empty((steps.shape[1], 3), np.float32)
    xyz.T[...] = steps
    xyz *= np.float32(STEP_M)
    return xyz


def _plain_steps(sweep: Sweep, source: Source) -> Blobs:
    halves = {  # as in version 1 of the schema: whole numbers to 255 in a byte, else float16
        name: (
            values.astype(np.uint8 if values.max() <= 255 and (values == np.rint(values)).all() else np.float16)
        ).tobytes()
        for name, values in ((name, getattr(sweep, name)) for name in source.columns)
    }
    return {"xyz": _narrow(_steps(sweep)), **halves}


def _unpack_plain(row: dict[str, pa.Scalar], count: int, source: Source) -> dict[str, npt.NDArray[Any]]:
    found = {"xyz": _as_xyz(_read_narrow(row, count))}
    for name in source.columns:
        buffer = row[name].as_buffer()
        found[name] = np.frombuffer(buffer, "<u1" if buffer.size == count else "<f2").astype(POINT_DTYPES[name])
    return found


def _planes_only(sweep: Sweep, source: Source) -> Blobs:
    steps = _steps(sweep)
    planes = np.stack([(steps >> (8 * k)).astype(np.uint8) for k in range(2 + int(np.abs(steps).max() >= 2**15))])
    return {"xyz": planes.tobytes(), **_attributes(sweep, source)}


def _unpack_planes(row: dict[str, pa.Scalar], count: int, source: Source) -> dict[str, npt.NDArray[Any]]:
    planes = np.frombuffer(row["xyz"].as_buffer(), np.uint8).reshape(-1, 3, count)
    steps = planes[-1].view(np.int8).astype(np.int16 if len(planes) == 2 else np.int32)
    for plane in planes[-2::-1]:
        steps <<= 8
        steps |= plane
    return {"xyz": _as_xyz(steps), **_read_attributes(row, count, source)}


def _whole_differences(sweep: Sweep, source: Source) -> Blobs:
    return {"xyz": _narrow(np.diff(_steps(sweep), axis=1, prepend=np.int32(0))), **_attributes(sweep, source)}


def _unpack_whole(row: dict[str, pa.Scalar], count: int, source: Source) -> dict[str, npt.NDArray[Any]]:
    steps = np.cumsum(_read_narrow(row, count), axis=1, dtype=np.int32)
    return {"xyz": _as_xyz(steps), **_read_attributes(row, count, source)}


def _second(sweep: Sweep, source: Source) -> Blobs:
    # The chosen encoding of the differences: their own differences are stored.
    first = np.diff(_steps(sweep), axis=1, prepend=np.int32(0)).T * np.float32(STEP_M)
    return {"xyz": encode_xyz(first, None, lossless=False)[1], **_attributes(sweep, source)}


def _unpack_second(row: dict[str, pa.Scalar], count: int, source: Source) -> dict[str, npt.NDArray[Any]]:
    first = np.rint(decode_xyz(row["xyz"].as_buffer(), STEP_M, count, "").T / STEP_M).astype(np.int32)
    return {"xyz": _as_xyz(np.cumsum(first, axis=1, dtype=np.int32)), **_read_attributes(row, count, source)}


def _sorted(sweep: Sweep, source: Source) -> Blobs:
    if sweep.ring is None:
        return _in_order(sweep, source)
    order = np.argsort(sweep.ring, kind="stable")
    columns = {name: getattr(sweep, name)[order] for name in ("xyz", *source.columns)}
    return _in_order(dataclasses.replace(Sweep("s", "f", 1, **columns)), source)


_LIST_TYPES = dict.fromkeys(("x", "y", "z", "intensity", "elongation", "ring"), pa.list_(pa.float32()))
CANDIDATES: dict[str, Candidate] = {
    "chosen": Candidate(_chosen, _unpack),
    "float32 in lists": Candidate(_lists, _unpack_lists, types=_LIST_TYPES),
    "float32 in lists, byte-stream-split": Candidate(
        _lists, _unpack_lists, types=_LIST_TYPES, options={"use_byte_stream_split": True}
    ),
    "float32 interleaved": Candidate(_interleaved, _unpack_interleaved),
    "float32 in byte planes (lossless)": Candidate(_float32, _unpack_float32),
    "steps as int16 or int32, float16 (version 1)": Candidate(_plain_steps, _unpack_plain),
    "steps in byte planes": Candidate(_planes_only, _unpack_planes),
    "differences as int16 or int32": Candidate(_whole_differences, _unpack_whole),
    "differences in byte planes": Candidate(_in_order, _unpack),
    "second differences in byte planes": Candidate(_second, _unpack_second),
    "sorted by ring, order lost": Candidate(_sorted, _unpack),
    "chosen, no codec": Candidate(_chosen, _unpack, "none", None),
    "chosen, snappy": Candidate(_chosen, _unpack, "snappy", None),
    "chosen, lz4": Candidate(_chosen, _unpack, "lz4", None),
    "chosen, zstd 3": Candidate(_chosen, _unpack, level=3),
    "chosen, zstd 9": Candidate(_chosen, _unpack, level=9),
}


def write_candidate(candidate: Candidate, source: Source, path: Path, frames_a_group: int = 1) -> None:
    """Write all sweeps as Parquet."""
    rows = [candidate.pack(sweep, source) for sweep in source.sweeps]
    table = pa.table(
        {name: pa.array([row[name] for row in rows], candidate.types.get(name, pa.binary())) for name in rows[0]}
    )
    with pq.ParquetWriter(
        path,
        table.schema,
        compression=candidate.codec,
        compression_level=candidate.level,
        use_dictionary=False,
        write_statistics=False,
        **candidate.options,
    ) as writer:
        writer.write_table(table, row_group_size=frames_a_group)


def compare(source: Source, folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Return bytes, rates and errors of every candidate, measured in turns."""
    readers: dict[str, pq.ParquetFile] = {}
    read: dict[str, list[float]] = {name: [] for name in CANDIDATES}
    written: dict[str, list[float]] = {name: [] for name in CANDIDATES}
    result: dict[str, dict[str, float]] = {}

    def frame(name: str, i: int) -> dict[str, npt.NDArray[Any]]:
        table = readers[name].read_row_group(i, use_threads=False)
        row = {column: table.column(column)[0] for column in table.column_names}
        return CANDIDATES[name].unpack(row, len(source.sweeps[i]), source)

    for turn in range(rounds + 1):  # the first one warms up
        for number, (name, candidate) in enumerate(CANDIDATES.items()):
            path = folder / f"{number}.parquet"
            if turn < 3:
                start = time.perf_counter()
                write_candidate(candidate, source, path)
                written[name].append((time.perf_counter() - start) / len(source.sweeps))
                readers[name] = pq.ParquetFile(path)
            start = time.perf_counter()
            for i in range(len(source.sweeps)):
                frame(name, i)
            if turn:
                read[name].append((time.perf_counter() - start) / len(source.sweeps))
    for name in CANDIDATES:
        metadata = readers[name].metadata
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        size = sum(g.column(c).total_compressed_size for g in groups for c in range(g.num_columns))
        result[name] = {
            "bytes_ratio": round(size / source.raw_bytes(), 4),
            "frames_per_s": round(1 / statistics.median(read[name]), 1),
            "best_frames_per_s": round(1 / min(read[name]), 1),
            "written_frames_per_s": round(1 / statistics.median(written[name]), 1),
        }
        if not name.startswith("sorted"):
            result[name] |= errors([frame(name, i) for i in range(len(source.sweeps))], source)
    return result


def errors(found: list[dict[str, npt.NDArray[Any]]], source: Source) -> dict[str, float]:
    """Return the largest error of a coordinate in mm, and of intensity and elongation relative to the value."""
    xyz, relative = 0.0, 0.0
    for got, sweep in zip(found, source.sweeps, strict=True):
        xyz = max(xyz, float(np.abs(got["xyz"].astype(np.float64) - sweep.xyz).max()))
        for name in source.columns:
            value = getattr(sweep, name).astype(np.float64)
            relative = max(relative, float((np.abs(got[name] - value) / np.maximum(np.abs(value), 1e-12)).max()))
    return {"max_error_mm": round(xyz * 1000, 4), "max_relative_error": round(relative, 6)}


def row_groups(source: Source, folder: Path, rounds: int) -> dict[str, float]:
    """Return the milliseconds to read one frame of an open file, by frames a row group."""
    path, result = folder / "groups.parquet", {}
    for size in (1, 2, 4, 8):
        write_candidate(CANDIDATES["chosen"], source, path, size)
        file, times = pq.ParquetFile(path), []
        for i in np.random.default_rng(0).integers(0, len(source.sweeps), 5 * rounds).tolist():
            start = time.perf_counter()
            table = file.read_row_group(i // size, use_threads=False)
            row = {name: table.column(name)[i % size] for name in table.column_names}
            _unpack(row, len(source.sweeps[i]), source)
            times.append(time.perf_counter() - start)
        result[str(size)] = round(statistics.median(times) * 1000, 2)
    return result


def through_dataset(source: Source, folder: Path, rounds: int) -> dict[str, float]:
    """Return what a user gets from `DatasetWriter` and `Dataset`.

    A lone frame is one of a file of the longest length (its other frames are small), opened anew each time.
    """
    uri, count = str(folder / "dataset"), len(source.sweeps)
    described = {"name": "encoding", "rig": [source.lidar], "taxonomy": PAPER_TAXONOMY}
    start = time.perf_counter()
    with DatasetWriter(uri, **described) as writer:
        for sweep in source.sweeps:
            writer.add(sweep)
    written = (time.perf_counter() - start) / count
    shards = list((folder / "dataset" / "shards").iterdir())
    data, times, cpu, alone = open_dataset(uri), [], [], []
    for _ in range(rounds):
        start, own = time.perf_counter(), time.process_time()
        for i in range(count):
            data.read(i, source.columns)
        times.append((time.perf_counter() - start) / count)
        cpu.append((time.process_time() - own) / count)
    found = [{name: getattr(s, name) for name in ("xyz", *source.columns)} for s in data]
    tiny = Sweep("s", "tiny", 1, np.zeros((1, 3), np.float32))
    with DatasetWriter(str(folder / "long"), **described) as writer:
        for i in range(sequence.FRAMES_A_PART):
            sweep = source.sweeps[i] if i < count else tiny
            writer.add(dataclasses.replace(sweep, frame_id=f"{i:06d}", timestamp_ns=i + 1))
    for i in range(2 * rounds):
        long = open_dataset(str(folder / "long"))
        start = time.perf_counter()
        long.read(i % count, source.columns)
        alone.append((time.perf_counter() - start) * 1000)
    return {
        "frames": count,
        "points": round(statistics.mean(len(sweep) for sweep in source.sweeps)),
        "values": 3 + len(source.columns),
        "bytes_ratio_all_columns": round(sum(f.stat().st_size for f in shards) / source.raw_bytes(), 4),
        "bytes_a_frame_all_columns": round(sum(f.stat().st_size for f in shards) / count),
        "frames_per_s": round(1 / statistics.median(times), 1),
        "best_frames_per_s": round(1 / min(times), 1),
        "frames_per_cpu_s": round(1 / statistics.median(cpu), 1),
        "written_frames_per_s": round(1 / written, 1),
        "random_read_ms": round(statistics.median(alone), 2),
        **errors(found, source),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    parser.add_argument("--full", action="store_true", help="more frames and rounds")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(__file__).parents[2] / "shared" / "data",
        help="folder of the real datasets; those that are absent are left out",
    )
    args = parser.parse_args()
    most, rounds = (10, 15) if args.full else (4, 5)
    sources = {
        "waymo": waymo_like(most, firing_order=False),
        "waymo in firing order": waymo_like(most, firing_order=True),
        **{name: source for name in REAL if (source := real(args.data, name, most)) is not None},
    }
    datasets: dict[str, Any] = {}
    # All datasets come before any candidate: what those leave of the heap slows down whoever comes after them.
    for name, source in sources.items():
        with tempfile.TemporaryDirectory() as folder:
            datasets[name] = through_dataset(source, Path(folder), rounds)
    for name, source in sources.items():
        with tempfile.TemporaryDirectory() as folder:
            candidates = compare(source, Path(folder), rounds)
            datasets[name] |= {"bytes_ratio": candidates["chosen"]["bytes_ratio"], "candidates": candidates}
            if name == "waymo":
                datasets[name]["random_read_ms_by_frames_a_row_group"] = row_groups(source, Path(folder), rounds)
    report = {
        "benchmark": "parquet_encoding",
        "date": datetime.now(UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        **{name: datasets["waymo"][name] for name in ("bytes_ratio", "frames_per_s", "random_read_ms")},
        "max_error_mm": max(figures["max_error_mm"] for figures in datasets.values()),
        "left_out": sorted(set(REAL) - set(sources)),
        "datasets": datasets,
    }
    if not args.json:
        for name, figures in datasets.items():
            print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in figures.items() if key != "candidates"))
            for candidate, row in figures["candidates"].items():
                print(
                    f"  {candidate:46s}",
                    *(f"{row[key]:8.4g}" for key in ("bytes_ratio", "frames_per_s", "written_frames_per_s")),
                )
    print(json.dumps(report))


if __name__ == "__main__":
    main()
