"""The data plane of training, over Ray Data: plan → read → re-sample beams → de-skew → merge → augment → batches.

Beams are thinned first, sweep by sweep, since they are beams only in the frame in which their LiDAR recorded them;
sweeps are merged when each is in the one ego frame of its own time; what is augmented is whole.
"""

from __future__ import annotations

import contextlib
import functools
import math
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from spot_ray.errors import SpotRayError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.operators.augment import Augment, build_augment
from spot_ray.operators.batch import Batch
from spot_ray.operators.beams import BeamResample, build_beam_resample
from spot_ray.operators.config import DataConfig
from spot_ray.operators.deskew import Deskew
from spot_ray.operators.features import check_features
from spot_ray.operators.frame import input_columns
from spot_ray.operators.merge import Merge, build_merge
from spot_ray.operators.pack import Pack, pack_error, unpack
from spot_ray.operators.plan import plan_epoch
from spot_ray.operators.read import ReadFrame, locate, slots
from spot_ray.schema.occupancy import cell_offset
from spot_ray.schema.subset import Subset
from spot_ray.session import quiet_data_context
from spot_ray.storage.dataset import Dataset, open_dataset
from spot_ray.storage.occupancy import OccupancySet, open_occupancy
from spot_ray.storage.shards import ShardReader

if TYPE_CHECKING:
    from ray.data import Dataset as RayDataset

_FRAMES_PER_TASK = 8
"""Enough work to outweigh a task's own cost (10 to 20 ms), little enough to have a first batch soon."""

_MAX_TASKS = 2000
"""Tasks an epoch: each costs the worker 0.5 ms before the first batch comes, so long epochs get larger tasks."""


@dataclass(frozen=True)
class Chain:
    """The operators in their order; picklable, so that Ray can send it to where the work is done.

    Args:
        uri: The dataset.
        read: Reads a frame and the sweeps that are to be merged into it.
        beams: Re-samples their beams.
        deskew: Corrects each for the motion within it.
        merge: Merges them.
        augment: Moves the whole.
        pack: Packs samples to rows.
    """

    uri: str
    read: ReadFrame
    beams: BeamResample
    deskew: Deskew
    merge: Merge
    augment: Augment
    pack: Pack

    def __call__(self, places: pa.Table, reader: ShardReader) -> pa.Table:
        """Return the packed samples of some rows of the plan, in order."""
        read = (self.read(slot, reader) for slot in slots(places))
        return self.pack([self.augment(self.merge(self.deskew(self.beams(sample)))) for sample in read])


def iterate(
    uri: str,
    config: DataConfig,
    *,
    seed: int,
    epoch: int,
    global_batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    start_step: int = 0,
    subset: Subset | None = None,
    shuffle: bool = True,
    grid: VoxelGrid | None = None,
    parts: Sequence[str] | None = None,
) -> Iterator[Batch]:
    """Iterate over one worker's batches of an epoch, in this process and without Ray.

    The batches are those of :func:`stream`, bit for bit.

    Args:
        uri: The dataset, with labels.
        config: The data plane.
        seed: Seed of the run.
        epoch: The epoch.
        global_batch_size: Samples a step over all workers.
        rank: This worker.
        world_size: Number of workers.
        start_step: Steps of the epoch to leave out at the start; costs nothing.
        subset: The part of the dataset to use, or None: all of it. See
            :func:`~spot_ray.operators.plan.select_frames`.
        shuffle: Whether the order is random.
        grid: The label grid to crop the labels to, or None: the one that they were made on.
        parts: The dataset's manifest parts to use (`Dataset.parts`), so that logs which arrive during a run do not
            change its plan; None: all that are listed now.

    Returns:
        An iterator over the batches, one a step.

    Raises:
        ConfigError: If the config does not fit the dataset.
        DataError: If there is no dataset, frame or label, or, on the way, a frame cannot be read.
    """
    dataset, labels = _open(uri, config, parts)
    plan = plan_epoch(
        dataset,
        config,
        seed=seed,
        epoch=epoch,
        global_batch_size=global_batch_size,
        subset=subset,
        shuffle=shuffle,
    )
    share = plan.share(rank=rank, world_size=world_size, start_step=start_step)
    places = locate(share, dataset, labels, merge=config.merge, deskew=config.deskew)
    chain = _build_chain(dataset, labels, config, grid or labels.info.grid, seed=seed, epoch=epoch)
    return _iterate(chain, places, share.batch_size, len(config.features))


def stream(
    uri: str,
    config: DataConfig,
    *,
    seed: int,
    epoch: int,
    global_batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    start_step: int = 0,
    subset: Subset | None = None,
    shuffle: bool = True,
    grid: VoxelGrid | None = None,
    parts: Sequence[str] | None = None,
    cpus_per_task: float = 1.0,
    max_tasks: int | None = None,
    prefetch_batches: int = 2,
) -> Iterator[Batch]:
    """Iterate over one worker's batches of an epoch, prepared ahead by Ray Data on the whole cluster.

    Every worker streams its own share of the plan, in the plan's order: the samples of an epoch are the same for any
    number of workers, bit for bit, whatever finishes first.

    Args:
        uri: The dataset, with labels.
        config: The data plane.
        seed: Seed of the run.
        epoch: The epoch.
        global_batch_size: Samples a step over all workers.
        rank: This worker.
        world_size: Number of workers.
        start_step: Steps of the epoch to leave out at the start; costs nothing.
        subset: The part of the dataset to use, or None: all of it. See
            :func:`~spot_ray.operators.plan.select_frames`.
        shuffle: Whether the order is random.
        grid: The label grid to crop the labels to, or None: the one that they were made on.
        parts: The dataset's manifest parts to use (`Dataset.parts`), so that logs which arrive during a run do not
            change its plan; None: all that are listed now.
        cpus_per_task: CPUs that a reading task asks Ray for. Training workers must leave as many free, or nothing is
            ever read.
        max_tasks: Most reading tasks of this worker at once, or None: as many as there are CPUs for.
        prefetch_batches: Batches that are fetched ahead.

    Returns:
        An iterator over the batches, one a step.

    Raises:
        ConfigError: If the config does not fit the dataset.
        DataError: If there is no dataset, frame or label, or, on the way, a frame cannot be read.
    """
    dataset, labels = _open(uri, config, parts)
    plan = plan_epoch(
        dataset,
        config,
        seed=seed,
        epoch=epoch,
        global_batch_size=global_batch_size,
        subset=subset,
        shuffle=shuffle,
    )
    share = plan.share(rank=rank, world_size=world_size, start_step=start_step)
    if not len(share):
        return iter(())
    places = locate(share, dataset, labels, merge=config.merge, deskew=config.deskew)
    chain = _build_chain(dataset, labels, config, grid or labels.info.grid, seed=seed, epoch=epoch)
    rows = _prepare(chain, places, cpus_per_task=cpus_per_task, max_tasks=max_tasks)
    return _batches(rows, share.batch_size, len(config.features), prefetch_batches)


def _open(uri: str, config: DataConfig, parts: Sequence[str] | None) -> tuple[Dataset, OccupancySet]:
    dataset = open_dataset(uri, parts=parts)
    labels = open_occupancy(uri, config.labels)
    check_features(config.features, dataset.info)
    return dataset, labels


def _build_chain(
    dataset: Dataset, labels: OccupancySet, config: DataConfig, grid: VoxelGrid, *, seed: int, epoch: int
) -> Chain:
    info = dataset.info
    cell_offset(labels.info.grid, grid)  # fails now, not in the first task, if the labels do not cover the grid
    columns = input_columns(config.features, info, merge=config.merge, deskew=config.deskew)
    if config.beams.targets:
        columns = (*columns, "ring", "lidar_id")
    return Chain(
        uri=dataset.uri,
        read=ReadFrame(
            uri=dataset.uri,
            info=info,
            labels_grid=labels.info.grid,
            grid=grid,
            columns=columns,
            deskew=config.deskew,
        ),
        beams=build_beam_resample(config.beams, info.rig, seed=seed, epoch=epoch),
        deskew=Deskew(enabled=config.deskew),
        merge=build_merge(config.merge, info.rig),
        augment=build_augment(config.augment, grid, seed=seed, epoch=epoch),
        pack=Pack(features=config.features, rig=info.rig, class_of_source=info.taxonomy.lookup()),
    )


def _iterate(chain: Chain, places: pa.Table, batch_size: int, num_features: int) -> Iterator[Batch]:
    reader = ShardReader(chain.uri)
    try:
        for start in range(0, places.num_rows, batch_size):
            yield unpack(chain(places.slice(start, batch_size), reader), num_features)
    finally:
        reader.close()


def _prepare(chain: Chain, places: pa.Table, *, cpus_per_task: float, max_tasks: int | None) -> RayDataset:
    """Return the Ray dataset of the packed samples, in the plan's order."""
    import ray.data

    size = max(_FRAMES_PER_TASK, math.ceil(places.num_rows / _MAX_TASKS))
    with quiet_data_context() as context:
        context.execution_options.preserve_order = True
        tasks = ray.data.from_blocks([places.slice(start, size) for start in range(0, places.num_rows, size)])
        return tasks.map_batches(
            functools.partial(_run, chain=chain, token=uuid.uuid4().hex),
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            num_cpus=cpus_per_task,
            compute=ray.data.TaskPoolStrategy(size=max_tasks),
        )


def _run(places: pa.Table, chain: Chain, token: str) -> pa.Table:
    try:
        return chain(places, _reader(chain.uri, token))
    except SpotRayError as error:
        return pack_error(error, places.num_rows)


@functools.lru_cache(maxsize=2)
def _reader(uri: str, token: str) -> ShardReader:  # noqa: ARG001 - the key
    # Ray's processes outlive a stream. Each stream opens the files anew, since they may have been written again.
    return ShardReader(uri)


def _batches(rows: RayDataset, batch_size: int, num_features: int, prefetch_batches: int) -> Iterator[Batch]:
    tables = iter(rows.iter_batches(batch_size=batch_size, batch_format="pyarrow", prefetch_batches=prefetch_batches))
    # Closed at once where the caller stops early: collected later, perhaps after Ray has ended, it aborts the process.
    with contextlib.closing(tables):
        for table in tables:
            yield unpack(table, num_features)
