"""The contenders of `ingest.py` that live in this environment; each turn is a process of its own.

    python benchmarks/ingest_contenders.py --name NAME --folder FOLDER --epoch 1 --workers 2

The last line of its output is one JSON object, see :func:`ingest_meter.measure`. Contenders:

- `ours`: a Ray Train worker, or several, that iterates over `spot_ray.operators.stream.stream`.
- `dataloader`: `torch.utils.data.DataLoader` over `.npy` files, see `ingest_numpy.py`.
- `dataloader_shipped`: the same, with labels as Occ3D ships them.
- `dataloader_with_voxels`: the same as `dataloader`, with spconv's voxels made in its workers, as OpenPCDet does.
- `floor`: our storage and operators, called one after the other in one bare loop, in one process or several.
- `floor_packed`: the same, packed into batches.
- `against`: a loader of the user's own, see `ingest.py`.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import itertools
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from ingest_frames import BATCH_SIZE, CONFIG, SEED
from ingest_meter import Pass, measure, touch
from ingest_numpy import Frames, Moved, collate, transform

from spot_ray.operators.batch import Batch
from spot_ray.operators.chain import build_chain
from spot_ray.operators.mixture import common_grid, open_mixture
from spot_ray.operators.pack import STAGES, Packed, to_table, unpack
from spot_ray.operators.plan import Planner
from spot_ray.operators.read import locate, slots
from spot_ray.operators.sample import Sample
from spot_ray.operators.stream import stream
from spot_ray.session import ray_session
from spot_ray.storage.shards import ShardReader

VOXELS = {
    "vsize_xyz": [0.1, 0.1, 0.15],
    "coors_range_xyz": [-75.2, -75.2, -2, 75.2, 75.2, 4],
    "max_num_points_per_voxel": 5,
    "max_num_voxels": 150_000,
}
"""OpenPCDet's for Waymo."""

BARRIER_S = 300
"""How long processes wait for each other."""

Voxels = tuple[npt.NDArray[np.float32], npt.NDArray[np.int32], npt.NDArray[np.int32]]


class FrameDataset:
    """Frames for a `DataLoader`: read and augmented one by one, their voxels made if asked for.

    Args:
        frames: The frames.
        voxels: Make voxels.
    """

    def __init__(self, frames: Frames, *, voxels: bool) -> None:
        self._frames = frames
        self._voxels = voxels

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self._frames)

    def __getitem__(self, i: int) -> tuple[Moved, Voxels | None]:
        """Return a frame, augmented, and its voxels."""
        moved = transform(self._frames.read(i), self._frames.draw(i))
        return moved, make_voxels(moved.points) if self._voxels else None


@functools.cache
def _generator(num_features: int) -> Any:
    # Made in the worker: it holds a table of all places, 360 MB, that cannot be sent.
    from spconv.pytorch.utils import PointToVoxel

    return PointToVoxel(num_point_features=num_features, **VOXELS)


def make_voxels(points: npt.NDArray[np.float32]) -> Voxels:
    """Return (V, 5, C) points by voxel, (V, 3) voxel indices z, y, x, and (V,) how many points each voxel has."""
    import torch

    found = _generator(points.shape[1])(torch.from_numpy(points))
    voxels, places, counts = (tensor.numpy() for tensor in found)
    return voxels, places, counts


def collate_tensors(samples: Sequence[tuple[Moved, Voxels | None]]) -> dict[str, Any]:
    """Return a batch of tensors, which cross to another process in shared memory; OpenPCDet's arrays are pickled."""
    import torch

    batch = collate([moved for moved, _ in samples])
    own = [voxels for _, voxels in samples if voxels is not None]
    if own:
        batch["voxels"] = np.concatenate([voxels for voxels, _, _ in own])
        batch["voxel_coords"] = np.concatenate(
            [np.pad(places, ((0, 0), (1, 0)), constant_values=b) for b, (_, places, _) in enumerate(own)]
        )
        batch["voxel_num_points"] = np.concatenate([counts for _, _, counts in own])
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def data_loader(folder: Path, epoch: int, *, workers: int, voxels: bool = False, shipped: bool = False) -> Any:
    """Return the `DataLoader`."""
    import torch

    return torch.utils.data.DataLoader(
        FrameDataset(Frames(folder, epoch, shipped=shipped), voxels=voxels),  # type: ignore[arg-type]
        batch_size=BATCH_SIZE,
        shuffle=True,
        generator=torch.Generator().manual_seed(SEED),
        num_workers=workers,
        collate_fn=collate_tensors,
        persistent_workers=workers > 0,
        prefetch_factor=2 if workers else None,
    )


def dataloader(folder: Path, epoch: int, workers: int, **options: bool) -> dict[str, Any]:
    """Measure the `DataLoader`."""
    loader = data_loader(folder, epoch, workers=workers, **options)

    def batches() -> Pass:
        for batch in loader:
            touch(*batch.values())
            yield len(batch["labels"]), len(batch["points"])

    return measure(batches)


def ours(folder: Path, epoch: int, workers: int) -> dict[str, Any]:
    """Measure the stream in the workers of a Ray Train run, as `spot_ray.train.trainer` starts it."""
    from ray.train import LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from spot_ray.train.trainer import WORKER_ENVIRONMENT

    with tempfile.TemporaryDirectory() as scratch, ray_session(spare_cpus=workers):
        trainer = TorchTrainer(
            _train,
            train_loop_config={"uri": str(folder / "dataset"), "epoch": epoch, "driver": os.getpid()},
            scaling_config=ScalingConfig(num_workers=workers),
            run_config=RunConfig(
                name="ingest",
                storage_path=scratch,
                logging_config=LoggingConfig(log_level="ERROR"),
                worker_runtime_env={"env_vars": WORKER_ENVIRONMENT},
            ),
        )
        return trainer.fit().return_value


def _train(options: Mapping[str, Any]) -> dict[str, Any]:
    """Iterate as one worker of a Ray Train group; return what all measured."""
    import ray.train
    import torch

    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()

    mixture, size = open_mixture(options["uri"], labels=CONFIG.labels), BATCH_SIZE * world_size
    planner = Planner(mixture, CONFIG, seed=SEED, global_batch_size=size)

    def batches() -> Pass:
        for batch in stream(
            mixture,
            CONFIG,
            seed=SEED,
            epoch=options["epoch"],
            rank=rank,
            world_size=world_size,
            global_batch_size=size,
            planner=planner,
        ):
            touch(*map(torch.from_numpy, (batch.points, batch.occupancy_index, batch.occupancy_class, batch.observed)))
            # Samples that only fill the last batch are no samples.
            points = np.diff(batch.point_offsets)[batch.weight > 0].sum()
            yield int(batch.weight.sum()), int(points)

    own = measure(batches, root=options["driver"], kind=_ray_kind, together=torch.distributed.barrier)
    every: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(every, own)
    return {
        **every[0],
        **{name: sum(one[name] for one in every) for name in ("samples", "points")},
        **{name: max(one[name] for one in every) for name in ("seconds", "first_batch_s", "cold_first_batch_s")},
    }


def _ray_kind(command: str) -> str:
    for part, kind in (
        ("RayTrainWorker", "training workers"),
        ("TrainController", "driver and controller"),
        ("gcs_server", "raylet, GCS and agents"),
        ("raylet/raylet", "raylet, GCS and agents"),
        ("agent", "raylet, GCS and agents"),
        ("dashboard", "raylet, GCS and agents"),
        ("monitor", "raylet, GCS and agents"),
        ("ray::", "reading processes"),
    ):
        if part in command:
            return kind
    return "driver and controller"


class Bare:
    """Our storage and operators, in order and without an engine.

    Args:
        folder: The frames.
        epoch: The epoch.
        part: Which of `parts` equal parts of the frames.
        parts: How many.
    """

    def __init__(self, folder: Path, epoch: int, *, part: int = 0, parts: int = 1) -> None:
        mixture = open_mixture(str(folder / "dataset"), labels=CONFIG.labels)
        chain = build_chain(mixture, CONFIG, common_grid(mixture), seed=SEED, epoch=epoch).datasets[0]
        planner = Planner(mixture, CONFIG, seed=SEED, global_batch_size=BATCH_SIZE)
        places = slots(locate(planner.plan(epoch, shuffle=False).share(), mixture))
        self._slots = [slot for slot in places if slot.weight and slot.step % parts == part]
        reader = ShardReader(chain.uri)
        self._operators: dict[str, Callable[[Any], Any]] = {
            "read and decode": lambda slot: chain.read(slot, reader),
            "re-sample beams": chain.beams,
            "augment": chain.augment,
        }
        self._pack = chain.pack

    def samples(self) -> Iterator[Sample]:
        """Iterate over the augmented samples."""
        operators = tuple(self._operators.values())
        for slot in self._slots:
            sample: Any = slot
            for operator in operators:
                sample = operator(sample)
            yield sample

    def batches(self) -> Iterator[Batch]:
        """Iterate over the batches that they are packed into."""
        samples = self.samples()
        while some := list(itertools.islice(samples, BATCH_SIZE)):
            yield _unpacked(_table(some, [self._pack(sample) for sample in some]))

    def touched(self, *, packed: bool) -> Pass:
        """Iterate over what :func:`measure` counts: samples, or batches."""
        if packed:
            for batch in self.batches():
                touch(batch.points, batch.occupancy_index, batch.occupancy_class, batch.observed)
                yield len(batch), len(batch.points)
        else:
            for sample in self.samples():
                touch(sample.sweep.xyz, sample.occupancy_index, sample.occupancy_class, sample.observed)
                yield 1, len(sample.sweep)

    def stages(self) -> dict[str, float]:
        """Return the CPU milliseconds a sample of each stage, packing into batches included."""
        spent: dict[str, float] = defaultdict(float)

        def timed(name: str, work: Callable[..., Any], *arguments: Any) -> Any:
            start = time.thread_time()
            result = work(*arguments)
            spent[name] += time.thread_time() - start
            return result

        for first in range(0, len(self._slots), BATCH_SIZE):
            samples: list[Any] = list(self._slots[first : first + BATCH_SIZE])
            for name, operator in self._operators.items():
                samples = [timed(name, operator, sample) for sample in samples]
            packed = [timed("features", self._pack, sample) for sample in samples]
            table = timed("pack into tables", _table, samples, packed)
            timed("unpack into batches", _unpacked, table)
        return {name: round(seconds / len(self._slots) * 1e3, 3) for name, seconds in spent.items()}


def _table(samples: Sequence[Sample], packed: Sequence[Packed]) -> pa.Table:
    return to_table([sample.slot for sample in samples], packed, [np.zeros(len(STAGES))] * len(samples), {})


def _unpacked(table: pa.Table) -> Batch:
    return unpack(table, len(CONFIG.features))


def floor(folder: Path, epoch: int, workers: int, *, packed: bool = False) -> dict[str, Any]:
    """Measure the bare loop, in several processes at once that share the frames if so asked."""
    if workers == 1:
        bare = Bare(folder, epoch)
        found = measure(lambda: bare.touched(packed=packed))
        return {**found, "stages_ms": bare.stages()}
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(workers, timeout=BARRIER_S)
    with ProcessPoolExecutor(workers, context, initializer=_meet_at, initargs=(barrier,)) as pool:
        parts = [pool.submit(_floor_part, folder, epoch, packed, part, workers) for part in range(workers)]
        every = [part.result() for part in parts]
    return {
        **every[0],
        **{name: sum(one[name] for one in every) for name in ("samples", "points", "memory_mb")},
        "seconds": max(one["seconds"] for one in every),
        "cpu_s": {"processes": sum(one["cpu_s"]["processes"] for one in every)},
    }


_barriers: list[Barrier] = []


def _meet_at(barrier: Barrier) -> None:
    _barriers.append(barrier)


def _floor_part(folder: Path, epoch: int, packed: bool, part: int, parts: int) -> dict[str, Any]:
    bare = Bare(folder, epoch, part=part, parts=parts)
    return measure(lambda: bare.touched(packed=packed), together=_barriers[0].wait)


def against(folder: Path, name: str) -> dict[str, Any]:
    """Measure a loader of the user's own."""
    module, _, function = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    loader: Iterable[Any] = getattr(importlib.import_module(module), function)(folder, BATCH_SIZE)

    def batches() -> Pass:
        for batch in loader:
            yield batch["batch_size"] if isinstance(batch, Mapping) else len(batch), 0

    return measure(batches)


def turn(name: str, folder: Path, *, epoch: int, workers: int, loader: str | None = None) -> dict[str, Any]:
    """Return what a contender took in a turn."""
    if name == "against":
        assert loader is not None
        return against(folder, loader)
    contenders: dict[str, Callable[[Path, int, int], dict[str, Any]]] = {
        "ours": ours,
        "dataloader": dataloader,
        "dataloader_shipped": functools.partial(dataloader, shipped=True),
        "dataloader_with_voxels": functools.partial(dataloader, voxels=True),
        "floor": floor,
        "floor_packed": functools.partial(floor, packed=True),
    }
    return contenders[name](folder, epoch, workers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--epoch", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--loader")
    options = parser.parse_args()
    found = turn(options.name, options.folder, epoch=options.epoch, workers=options.workers, loader=options.loader)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
