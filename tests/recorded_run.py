"""A small run on two labelled datasets that records, with its weights, which samples they have learned from.

Workers get these functions with their work, so that they need not find this file.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray.cloudpickle
import ray.train
import torch

from spot_ray.geometry import se3
from spot_ray.geometry.grid import VoxelGrid, pack_bits
from spot_ray.models.config import BevConfig, ComputeConfig, DecoderConfig, EncoderConfig, ModelConfig, VoxelConfig
from spot_ray.operators.batch import Batch
from spot_ray.operators.config import BeamConfig, DataConfig
from spot_ray.operators.mixture import DataSource, open_mixture
from spot_ray.operators.plan import Planner
from spot_ray.operators.stream import iterate
from spot_ray.schema.lidars import HDL_32E, WAYMO_TOP
from spot_ray.schema.occupancy import Occupancy, OccupancyInfo
from spot_ray.schema.sensors import LidarSpec
from spot_ray.schema.sweep import Boxes, Sweep
from spot_ray.schema.taxonomy import SemanticClass, Taxonomy
from spot_ray.storage.dataset import DatasetWriter
from spot_ray.storage.occupancy import OccupancyWriter
from spot_ray.train import trainer
from spot_ray.train.checkpoint import read_weights
from spot_ray.train.config import PretrainConfig, TrainConfig
from spot_ray.train.trainer import pretrain

if __name__ != "__main__":
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

GRID = VoxelGrid((-12.8, -12.8, -2.2), (0.8, 0.8, 0.8), (32, 32, 8))
CAR, CYCLIST = (SemanticClass(name, (0, 0, 255), foreground=True) for name in ("car", "cyclist"))
ROAD, TREE = SemanticClass("road", (90, 90, 90), ground=True), SemanticClass("tree", (0, 200, 0))
PLAIN = DataConfig(beams=BeamConfig(targets=("hdl-32e", "once-40")), point_labels=True)
TRAINED = PretrainConfig(
    recipe="test",
    grid=GRID,
    data=PLAIN,
    model=ModelConfig(
        voxel=VoxelConfig((-12.8, -12.8, -2.2, 12.8, 12.8, 4.2), (0.4, 0.4, 0.16)),
        encoder=EncoderConfig((4, 8, 8, 8), 8, 1),
        bev=BevConfig((1,), (1,), (16,), (1,), (16,)),
        decoder=DecoderConfig((16, 16), (2, 2)),
    ),
    train=TrainConfig(epochs=2, global_batch_size=6, checkpoint_every_steps=4, log_every_steps=1),
    compute=ComputeConfig(sparse="spconv"),
)

UNRECORDED = trainer._work
DRIVER, DRIVER_FILE = -1, "driver"
Key = tuple[Any, ...]


def write(folder: Path, name: str, lidar: LidarSpec, classes: tuple[SemanticClass, ...], logs: dict[str, int]) -> str:
    """Write labelled logs of a vehicle that drives and turns, at 20 Hz; the last class is rare."""
    uri, taxonomy = str(folder / name), Taxonomy.from_classes(name, classes)
    rng = np.random.default_rng(len(name))
    rarity = np.linspace(1, 0.02, len(classes))

    def sweep(log: str, i: int) -> Sweep:
        count, num_boxes, last = 150 + i, 1 + i % 3, len(classes)
        point_class = rng.choice(np.arange(1, last + 1), count, p=rarity / rarity.sum()) if i % 3 else np.ones(count)
        return Sweep(
            log,
            f"{i:03d}",
            i * 50_000_000,
            rng.uniform((-12, -12, -2), (12, 12, 4), (count, 3)).astype(np.float32),
            world_SE3_ego=se3.from_yaw(0.03 * i, (0.5 * i, 0.0, 0.0)),
            time_offset_ns=rng.integers(-50_000_000, 1, count).astype(np.int32),
            motion_compensated=False,
            intensity=rng.random(count, np.float32),
            ring=rng.integers(0, lidar.num_beams, count).astype(np.uint16),
            point_source_class=point_class.astype(np.uint16),
            boxes=Boxes(
                rng.uniform(1, 5, (num_boxes, 7)).astype(np.float32),
                np.full(num_boxes, last if i % 5 else 1, np.uint16),
            ),
        )

    sweeps = {log: [sweep(log, i) for i in range(count)] for log, count in logs.items()}
    with DatasetWriter(uri, name=name, rig=[lidar], taxonomy=taxonomy) as writer:
        for log in sweeps.values():
            for one in log:
                writer.add(one)
    with OccupancyWriter(uri, OccupancyInfo("default", GRID, classes, {})) as labels:
        for log_id, log in sweeps.items():
            labels.add_sequence(log_id, [label(one, taxonomy.num_classes) for one in log])
    return uri


def label(sweep: Sweep, num_classes: int) -> Occupancy:
    voxel, inside = GRID.voxel_of(sweep.xyz)
    index = np.unique(GRID.linear(voxel[inside]))
    semantic = (1 + index % num_classes).astype(np.uint8)
    observed = pack_bits(np.isin(np.arange(GRID.num_voxels) // 2, index // 2))
    return Occupancy(sweep.sequence_id, sweep.frame_id, index, semantic, observed)


def write_sources(folder: Path) -> list[DataSource]:
    """Write two datasets of other classes and LiDARs, of which the second counts twice."""
    city = write(folder, "city", WAYMO_TOP, (ROAD, CAR, CYCLIST), {"a": 14, "b": 9, "c": 5})
    forest = write(folder, "forest", HDL_32E, (TREE, ROAD, CYCLIST), {"d": 8, "e": 3})
    return [DataSource(city, 1.0), DataSource(forest, 2.0)]


def samples(batch: Batch) -> Iterator[tuple[int, Key]]:
    """Give each planned sample's number in the batch and all that is known of it; arrays as a digest of their bytes."""
    for b in np.flatnonzero(batch.weight).tolist():
        points, voxels, boxes = (
            slice(*offsets[b : b + 2].tolist())
            for offsets in (batch.point_offsets, batch.occupancy_offsets, batch.box_offsets)
        )
        arrays = [
            batch.points[points],
            batch.occupancy_index[voxels],
            batch.occupancy_class[voxels],
            batch.boxes[boxes],
            batch.box_class[boxes],
            batch.observed[b],
            batch.labelled[b],
            batch.network_from_label[b],
        ]
        if batch.point_class is not None:
            arrays.append(batch.point_class[points])
        digest = hashlib.blake2b(digest_size=16)
        for array in arrays:
            digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
        place = (batch.step, int(batch.datasets[b]), batch.frames[b], int(batch.copies[b]))
        yield b, (*place, float(batch.weight[b]), batch.global_weight, digest.hexdigest())


def planned(sources: list[DataSource]) -> dict[tuple[int, Key], int]:
    """Return the number of each sample, by epoch and content, that a run is to learn from."""
    train = TRAINED.train
    run = {"seed": train.seed, "global_batch_size": train.global_batch_size}
    keys = [
        (epoch, key)
        for epoch in range(train.epochs)
        for batch in iterate(sources, PLAIN, **run, epoch=epoch, grid=GRID)
        for _, key in samples(batch)
    ]
    # Not what the iterator happens to give, but what is planned.
    planner = Planner(open_mixture(sources, labels="default"), PLAIN, **run)
    assert len(set(keys)) == len(keys) == sum(len(planner.plan(epoch)) for epoch in range(train.epochs))
    return {key: i for i, key in enumerate(keys)}


def recorded(number: dict[tuple[int, Key], int], kills: dict[int, tuple[int, float]], folder: Path) -> Callable:
    """Return Ray Train's work with a record of the samples that each step learned from, kept with the weights.

    What is in a checkpoint's weights is in its record: a step that was done again after a kill counts once, and a
    checkpoint that is older or newer than where the run goes on shows.

    Args:
        number: See :func:`planned`.
        kills: Step to (the worker that dies, or `DRIVER`, seconds after the step began); three steps later it dies in
            any case.
        folder: Remembers who died, and has the driver's process in `DRIVER_FILE` if that is to die.
    """

    def die(marker: Path, victim: int) -> None:
        marker.touch()
        os.kill(int((folder / DRIVER_FILE).read_text()) if victim == DRIVER else os.getpid(), signal.SIGKILL)

    def work(options: dict[str, Any]) -> dict[str, Any]:
        from spot_ray.train.learner import Learner
        from spot_ray.train.pretraining import PretrainTask

        build, train_step = PretrainTask.build_model, Learner.train_step
        steps_by_epoch = options["orders"].run.record.steps_by_epoch
        rank = ray.train.get_context().get_world_rank()

        def build_model(task, sparse=None):
            model = build(task, sparse)
            model.register_buffer("consumed", torch.zeros(len(number), dtype=torch.int64))
            return model

        def recording_step(learner, batch, step):
            for due, (victim, after_s) in kills.items():
                marker = folder / f"killed-{due}"
                if rank != max(victim, 0) or marker.exists():
                    continue
                if due == step:
                    threading.Timer(after_s, die, [marker, victim]).start()
                elif due < step - 2:
                    die(marker, victim)  # steps are so quick that the moment would come after the run's end
            result = train_step(learner, batch, step)
            epoch = int(np.searchsorted(np.cumsum(steps_by_epoch), step, side="right"))
            used = torch.zeros(len(number), dtype=torch.int64)
            for _, key in samples(batch):
                used[number[epoch, key]] += 1
            if torch.distributed.is_initialized():
                torch.distributed.all_reduce(used)
            learner.model.consumed += used
            return result

        PretrainTask.build_model, Learner.train_step = build_model, recording_step
        try:
            return UNRECORDED(options)
        finally:  # the process of a worker whose neighbour died may work on
            PretrainTask.build_model, Learner.train_step = build, train_step

    return work


def consumed(run: str) -> list[int]:
    """Return how often the newest weights have learned from each planned sample."""
    return read_weights(run).tensors["consumed"].tolist()


def recipe() -> PretrainConfig:
    """The run, for the command line: `recorded_run:recipe`."""
    return TRAINED


def main(out: str, data: str, kills: str) -> None:
    """Begin or go on with the run as a driver with a Ray of its own; `kills` as for :func:`recorded`, in JSON."""
    folder = Path(out).parent
    (folder / DRIVER_FILE).write_text(str(os.getpid()))
    sources = [DataSource(uri, proportion) for uri, proportion in json.loads(data)]
    due = {int(step): (victim, after_s) for step, (victim, after_s) in json.loads(kills).items()}
    trainer._work = recorded(planned(sources), due, folder)
    pretrain(TRAINED, data=sources, out=out, resume="auto", num_workers=2, max_failures=10, progress=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
