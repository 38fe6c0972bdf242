"""Where does the processor time of one frame go, and what did each optimisation bring?

Waymo-like sweeps of the synthetic city (180 000 points in the order of a range image; coordinates, intensity,
elongation, ring, boxes) and the labels that `spot-ray label` makes of them are written, and read as `spot-waymo` reads
them: one frame after the other through all stages, one thread, files in the page cache. All times are those of the
processor; each figure is the median over frames and rounds.

`stages_ms` is what a stage takes now. `gains` sets each stage against the same in plain NumPy passes
(`frame_cost_before.py`), by turns in one run, after a check that the bits are the same; `predicted_ms` is what was
expected to be saved before it was built. `augment_on_the_training_device` is what the training process would pay if
the points were moved there, and not where they are read: as a product of torch, on the processor.

    python benchmarks/frame_cost.py [--json] [--full]

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import frame_cost_before as before
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from spot_ray.occupancy.config import LabelConfig
from spot_ray.occupancy.run import label_dataset
from spot_ray.operators.augment import move_bits, move_voxels
from spot_ray.operators.chain import DatasetChain, build_chain
from spot_ray.operators.config import BalanceConfig
from spot_ray.operators.features import point_features
from spot_ray.operators.mixture import common_grid, open_mixture
from spot_ray.operators.pack import STAGES, to_table, unpack
from spot_ray.operators.plan import Planner
from spot_ray.operators.point_kernels import move_points
from spot_ray.operators.read import locate, slots
from spot_ray.operators.sample import Sample, Slot
from spot_ray.recipes.pretraining import spot_waymo
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.lidars import WAYMO_TOP
from spot_ray.schema.sweep import POINT_DTYPES, Sweep
from spot_ray.schema.taxonomy import PAPER_TAXONOMY
from spot_ray.storage.blobs import STEP_M, decode_column, decode_xyz, encode_xyz
from spot_ray.storage.codec import (
    LABEL_COLUMNS,
    OCCUPANCY_SCHEMA,
    columns_for,
    decode_occupancy,
    decode_sweep,
    row_values,
)
from spot_ray.storage.dataset import DatasetWriter
from spot_ray.storage.shards import ShardReader
from spot_ray.synthetic.world import World

POINTS = 180_000
CONFIG = dataclasses.replace(spot_waymo().data, balance=BalanceConfig(enabled=False))
POINT_COLUMNS = ("intensity", "elongation", "ring")
NAMES = ("xyz", *POINT_COLUMNS, "lidar_id", "boxes")
"""What `spot-waymo` reads."""
QUARTER = np.array([[0.0, -1.0], [1.0, 0.0]])
TURN = np.array([[0.83, -0.56], [0.56, 0.83]])


@dataclass(frozen=True)
class Gain:
    """One optimisation.

    Args:
        what: What was done.
        predicted_ms: What it was expected to save.
        before: The stage without it.
        after: The stage with it; it returns the same.
    """

    what: str
    predicted_ms: float
    before: Callable[[], Any]
    after: Callable[[], Any]


def write(uri: str, frames: int) -> None:
    """Write one labelled sequence: a sweep and part of the next one a frame, beam by beam."""
    world = World("waymo", seed=0, sequence=0, num_frames=2 * frames)
    with DatasetWriter(uri, name="frame-cost", rig=[WAYMO_TOP], taxonomy=PAPER_TAXONOMY) as writer:
        for i in range(frames):
            pair = world.sweep(2 * i), world.sweep(2 * i + 1)
            columns = {
                name: np.concatenate([getattr(sweep, name) for sweep in pair])[:POINTS]
                for name in ("xyz", *POINT_DTYPES)
                if getattr(pair[0], name) is not None
            }
            order = np.argsort(columns["ring"], kind="stable")
            writer.add(dataclasses.replace(pair[0], **{name: column[order] for name, column in columns.items()}))
    label_dataset(uri, config=LabelConfig(), num_workers=1)


def milliseconds(work: Callable[[], Any]) -> float:
    """Return the processor time of a call."""
    start = time.process_time()
    work()
    return (time.process_time() - start) * 1e3


def frame_stages(chain: DatasetChain, slot: Slot, reader: ShardReader, info: DatasetInfo) -> dict[str, float]:
    """Return the processor time that each stage of one frame takes, ms."""
    result: dict[str, float] = {}
    last = time.process_time()

    def done(stage: str) -> None:
        nonlocal last
        now = time.process_time()
        result[stage] = (now - last) * 1e3
        last = time.process_time()

    assert slot.labels is not None
    table = reader.read(slot.sweep.shard, slot.sweep.row_group, columns_for(NAMES, info, bare=True))
    done("parquet: read, zstd, checksum")
    blobs, count, scale = _blobs(table)
    last = time.process_time()
    decode_xyz(blobs["xyz"], scale, count, "")
    done("decode xyz")
    for name in POINT_COLUMNS:
        decode_column(blobs[name], POINT_DTYPES[name], count, "", name)
    done("decode intensity, elongation, ring")
    decode_sweep(table, slot.sweep.row, info)
    done("whole sweep")
    labels = reader.read(slot.labels.shard, slot.labels.row_group, LABEL_COLUMNS)
    done("labels: parquet")
    decode_occupancy(labels, slot.labels.row)
    done("labels: decode")
    sample = chain.read(slot, reader)
    done("read, all of the above")
    sample = chain.beams(sample)
    done("beams")
    sample = chain.merge(chain.deskew(sample))
    done("de-skew, merge (off)")
    sample = chain.augment(sample)
    done("augment")
    packed = chain.pack(sample)
    done("features")
    rows = to_table([slot], [packed], [np.zeros(len(STAGES))], {})
    done("pack")
    unpack(rows, len(CONFIG.features))
    done("unpack")
    named = result["decode xyz"] + result["decode intensity, elongation, ring"]
    result["boxes, pose, checks"] = result.pop("whole sweep") - named
    return result


def _blobs(table: pa.Table) -> tuple[dict[str, pa.Buffer], int, float]:
    blobs = {name: table.column(name)[0].as_buffer() for name in ("xyz", *POINT_COLUMNS)}
    return blobs, table.column("num_points")[0].as_py(), table.column("xyz_scale_m")[0].as_py()


def gains(slot: Slot, sample: Sample, reader: ShardReader, info: DatasetInfo) -> list[Gain]:
    """Return every optimisation, on one frame."""
    assert slot.labels is not None
    sweep, (shard, group) = sample.sweep, (slot.sweep.shard, slot.sweep.row_group)
    label_shard, label_group = slot.labels.shard, slot.labels.row_group
    grid, bare = spot_waymo().grid, columns_for(NAMES, info, bare=True)
    table = reader.read(shard, group, bare)
    blobs, count, scale = _blobs(table)
    in_firing_order = _in_firing_order(sweep)
    return [
        Gain(
            "the columns that training needs: 12 of 43",
            0.40,
            lambda: reader.read(shard, group, columns_for(NAMES, info)).select(bare),
            lambda: reader.read(shard, group, bare).select(bare),
        ),
        Gain(
            "the columns of the labels that training needs: 5 of 7",
            0.05,
            lambda: reader.read(label_shard, label_group, OCCUPANCY_SCHEMA.names).select(LABEL_COLUMNS),
            lambda: reader.read(label_shard, label_group, LABEL_COLUMNS).select(LABEL_COLUMNS),
        ),
        Gain(
            "blobs read where they lie, not copied by Arrow's scalars",
            0.20,
            lambda: [value.as_buffer() for name, value in before.values(table).items() if name in blobs],
            lambda: [value for name, value in row_values(table, slot.sweep.row).items() if name in blobs],
        ),
        Gain(
            "xyz in a compiled loop",
            0.70,
            lambda: before.decode_xyz(blobs["xyz"], scale, count),
            lambda: decode_xyz(blobs["xyz"], scale, count, ""),
        ),
        Gain(
            "xyz of points in firing order (lanes) in compiled loops",
            1.20,
            lambda: before.decode_xyz(in_firing_order, STEP_M, count),
            lambda: decode_xyz(in_firing_order, STEP_M, count, ""),
        ),
        Gain(
            "intensity, elongation, ring in compiled loops",
            0.20,
            lambda: [before.decode_column(blobs[name], POINT_DTYPES[name], count) for name in POINT_COLUMNS],
            lambda: [decode_column(blobs[name], POINT_DTYPES[name], count, "", name) for name in POINT_COLUMNS],
        ),
        Gain(
            "points moved in a compiled loop",
            0.35,
            lambda: before.move_points(sweep.xyz, TURN),
            lambda: _moved(sweep),
        ),
        Gain(
            "voxels sorted by counting their columns",
            0.35,
            lambda: before.move_voxels(sample.occupancy_index, sample.occupancy_class, QUARTER, grid),
            lambda: move_voxels(sample.occupancy_index, sample.occupancy_class, QUARTER, grid),
        ),
        Gain(
            "a column of the mask moved as one number",
            0.30,
            lambda: before.move_bits(sample.observed, QUARTER, grid),
            lambda: move_bits(sample.observed, QUARTER, grid),
        ),
        Gain(
            "features put together in one pass",
            0.25,
            lambda: before.features(sweep),
            lambda: point_features(sweep, CONFIG.features, info.rig),
        ),
    ]


def _in_firing_order(sweep: Sweep) -> pa.Buffer:
    """Return the blob of the same points, the beams by turns."""
    assert sweep.ring is not None
    ring = sweep.ring
    # The n-th point of every beam, then the next of every beam.
    nth = np.arange(len(ring)) - np.searchsorted(ring, ring)
    order = np.lexsort((ring, nth))
    beam, xyz = ring[order], np.ascontiguousarray(sweep.xyz[order])
    _, data = encode_xyz(xyz, lambda part: beam[part], lossless=False)
    assert data[1], "no lanes"
    return pa.py_buffer(data)


def _moved(sweep: Sweep) -> npt.NDArray[np.float32]:
    moved = np.empty_like(sweep.xyz)
    move_points(sweep.xyz, TURN, moved)
    return moved


def same(one: Any, other: Any) -> bool:
    """Tell whether two results are the same, bit for bit."""
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, np.ndarray):
        return bool(one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes())
    return bool(one.equals(other))


def measure_gains(candidates: Sequence[Sequence[Gain]], rounds: int) -> list[dict[str, Any]]:
    """Return each optimisation's times, median over frames and rounds, before and after by turns."""
    result = []
    for frames in zip(*candidates, strict=True):
        for gain in frames:
            assert same(gain.before(), gain.after()), f"{gain.what}: another result"
        pairs = [(milliseconds(gain.before), milliseconds(gain.after)) for _ in range(rounds) for gain in frames]
        slow, fast = (statistics.median(times) for times in zip(*pairs, strict=True))
        result.append(
            {
                "what": frames[0].what,
                "before_ms": round(slow, 3),
                "after_ms": round(fast, 3),
                "ratio": round(slow / fast, 2),
                "saved_ms": round(slow - fast, 3),
                "predicted_ms": frames[0].predicted_ms,
            }
        )
    return result


def measure_training_device(samples: Sequence[Sample], rounds: int) -> dict[str, float]:
    """Return the processor time that moving a sample takes as operations of torch, ms."""
    size, _, layers = spot_waymo().grid.shape
    turn = torch.from_numpy(TURN)
    times: dict[str, list[float]] = {"points": [], "voxels": [], "mask": []}
    different = []
    for sample in samples:
        points = torch.from_numpy(sample.sweep.xyz.copy())
        index, semantic = (torch.from_numpy(a.copy()) for a in (sample.occupancy_index, sample.occupancy_class))
        mask = torch.from_numpy(sample.observed.view(np.int16).reshape(size, size).copy())

        def move_all(points: torch.Tensor = points) -> torch.Tensor:
            points[:, :2] = (points[:, :2].double() @ turn.T).float()
            return points

        def move_labels(index: torch.Tensor = index, semantic: torch.Tensor = semantic) -> tuple[torch.Tensor, ...]:
            column, z = index // layers, index % layers
            moved, order = torch.sort(((size - 1 - column % size) * size + column // size) * layers + z)
            return moved, semantic[order]

        for _ in range(rounds):
            times["points"].append(milliseconds(move_all))
            times["voxels"].append(milliseconds(move_labels))
            times["mask"].append(milliseconds(lambda mask=mask: torch.rot90(mask, -1).contiguous()))
        moved = (torch.from_numpy(sample.sweep.xyz)[:, :2].double() @ turn.T).float().numpy()
        different.append(float((moved != _moved(sample.sweep)[:, :2]).mean()))
    medians = {name: round(statistics.median(values), 3) for name, values in times.items()}
    return {**medians, "all": round(sum(medians.values()), 3), "share_of_other_bits": max(different)}


def measure(uri: str, rounds: int) -> dict[str, Any]:
    """Return all figures."""
    mixture = open_mixture(uri, labels="default")
    grid, info = common_grid(mixture), mixture.members[0].dataset.info
    planner = Planner(mixture, CONFIG, seed=0, global_batch_size=1)
    chain = build_chain(mixture, CONFIG, grid, seed=0, epoch=0).datasets[0]
    places = list(slots(locate(planner.plan(0, shuffle=False).share(), mixture)))
    reader = ShardReader(uri)
    frame_stages(chain, places[0], reader, info)
    found = [frame_stages(chain, slot, reader, info) for _ in range(rounds) for slot in places]
    stages = {name: round(statistics.median(times[name] for times in found), 3) for name in found[0]}
    samples = [chain.read(slot, reader) for slot in places]
    pairs = [gains(slot, sample, reader, info) for slot, sample in zip(places, samples, strict=True)]
    in_total = ("read, all of the above", "beams", "de-skew, merge (off)", "augment", "features", "pack", "unpack")
    return {
        "points": statistics.median(len(sample.sweep) for sample in samples),
        "occupied_voxels": statistics.median(len(sample.occupancy_index) for sample in samples),
        "boxes": statistics.median(len(sample.sweep.boxes or ()) for sample in samples),
        "stages_ms": stages,
        "total_ms": round(sum(stages[name] for name in in_total), 3),
        "gains": measure_gains(pairs, rounds),
        "augment_on_the_training_device": measure_training_device(samples, rounds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print only one JSON object, as the last line")
    parser.add_argument("--full", action="store_true", help="the size of the committed figures")
    options = parser.parse_args()
    frames, rounds = (24, 15) if options.full else (3, 3)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        uri = f"{folder}/dataset"
        write(uri, frames)
        report = {
            "benchmark": "frame_cost",
            "date": datetime.now(UTC).date().isoformat(),
            "load_average": round(os.getloadavg()[0], 1),
            "frames": frames,
            "rounds": rounds,
            **measure(uri, rounds),
        }
    if not options.json:
        for stage, value in report["stages_ms"].items():
            print(f"{stage:40} {value:8.3f} ms")
        for gain in report["gains"]:
            print("{what:60} {before_ms:7.3f} → {after_ms:7.3f} ms, expected to save {predicted_ms}".format(**gain))
        print("moved by torch", report["augment_on_the_training_device"])
    print(json.dumps(report))


if __name__ == "__main__":
    main()
