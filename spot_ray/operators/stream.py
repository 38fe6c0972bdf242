"""The data plane of training: plan → read → operators → batches, over Ray Data or in one process."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from spot_ray.errors import SpotRayError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.operators.batch import Batch
from spot_ray.operators.chain import Chain, build_chain
from spot_ray.operators.config import DataConfig
from spot_ray.operators.feed import BatchFeed
from spot_ray.operators.mixture import Mixture, Sources, common_grid, open_mixture
from spot_ray.operators.pack import pack_error, unpack
from spot_ray.operators.plan import Planner
from spot_ray.operators.read import locate
from spot_ray.operators.series import named_series
from spot_ray.session import quiet_data_context
from spot_ray.storage.cache import CacheConfig
from spot_ray.storage.shards import ShardReader

if TYPE_CHECKING:
    from ray.data import Dataset as RayDataset

_FRAMES_PER_TASK = 64
"""A task costs some 30 ms of processor time beside its work, so that 64 frames pay 0.5 ms each for it."""

_LEAST_TASKS = 16
"""Tasks that a short epoch is cut into at least, so that there is work for all processors."""

_MAX_TASKS = 2000
"""Tasks an epoch: each costs the worker 0.5 ms before the first batch comes, so long epochs get larger tasks."""

_BLOCK_BYTES = 32 << 20
"""Samples that a task hands over at a time: the first ones are there long before the task is done, what waits in the
object store is counted in small pieces, and a process goes on with the memory that the last ones have left."""

_BLOCKS_A_LIMIT = 16
"""Pieces that a limit of memory is cut into. Ray Data keeps to limits by whole pieces and holds six to ten at least:
what tasks have begun, what waits for its turn, and what is being cut into batches."""


@dataclass(frozen=True)
class _Work:
    """What one worker is to deliver of an epoch.

    Args:
        chain: The operators.
        places: The rows of its share.
        batch_size: Rows a batch.
        num_features: Input features of a point.
        point_labels: Whether batches hold the points' classes.
    """

    chain: Chain
    places: pa.Table
    batch_size: int
    num_features: int
    point_labels: bool

    def unpacked(self, table: pa.Table) -> Batch:
        """Return the batch of some packed rows."""
        return unpack(table, self.num_features, point_labels=self.point_labels)


def iterate(
    sources: Sources | Mixture,
    config: DataConfig,
    *,
    seed: int,
    epoch: int,
    global_batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    start_step: int = 0,
    shuffle: bool = True,
    grid: VoxelGrid | None = None,
    planner: Planner | None = None,
    cache: CacheConfig | None = None,
) -> Generator[Batch, None, None]:
    """Iterate over one worker's batches of an epoch, in this process and without Ray.

    The batches are those of :func:`stream`, bit for bit.

    Args:
        sources: The datasets, with labels unless the config names none; or a mixture that was opened before.
        config: The data plane.
        seed: Seed of the run.
        epoch: The epoch.
        global_batch_size: Samples a step over all workers.
        rank: This worker.
        world_size: Number of workers.
        start_step: Steps of the epoch to leave out at the start; costs nothing.
        shuffle: Whether the order is random.
        grid: The label grid to crop the labels to, or None: the one that they were made on.
        planner: What plans the run's epochs, made before of the same mixture, config, seed and batch size; None: it is
            made here.
        cache: Where shards of a remote store are kept on this machine, or None: they are read from the store.

    Returns:
        An iterator over the batches, one a step.

    Raises:
        ConfigError: If the config does not fit a dataset.
        DataError: If there is no dataset, frame or label, or, on the way, a frame cannot be read.
    """
    work = _plan(
        sources,
        config,
        seed=seed,
        epoch=epoch,
        global_batch_size=global_batch_size,
        rank=rank,
        world_size=world_size,
        start_step=start_step,
        shuffle=shuffle,
        grid=grid,
        planner=planner,
    )
    return _iterate(work, cache)


def stream(
    sources: Sources | Mixture,
    config: DataConfig,
    *,
    seed: int,
    epoch: int,
    global_batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    start_step: int = 0,
    shuffle: bool = True,
    grid: VoxelGrid | None = None,
    planner: Planner | None = None,
    cache: CacheConfig | None = None,
    cpus_per_task: float = 1.0,
    max_tasks: int | None = None,
    prefetch_batches: int = 2,
    memory_limit: int | None = None,
) -> BatchFeed:
    """Iterate over one worker's batches of an epoch, prepared ahead by Ray Data on the whole cluster.

    Every worker streams its own share of the plan, in the plan's order: the samples of an epoch are the same for any
    number of workers, bit for bit, whatever finishes first.

    Args:
        sources: The datasets, with labels unless the config names none; or a mixture that was opened before.
        config: The data plane.
        seed: Seed of the run.
        epoch: The epoch.
        global_batch_size: Samples a step over all workers.
        rank: This worker.
        world_size: Number of workers.
        start_step: Steps of the epoch to leave out at the start; costs nothing.
        shuffle: Whether the order is random.
        grid: The label grid to crop the labels to, or None: the one that they were made on.
        planner: What plans the run's epochs, made before of the same mixture, config, seed and batch size; None: it is
            made here.
        cache: Where shards of a remote store are kept on each machine, or None: they are read from the store. Reading
            then stays on this worker's machine where that has CPUs, so that each shard is fetched by few.
        cpus_per_task: CPUs that a reading task asks Ray for. Training workers must leave as many free, or nothing is
            ever read.
        max_tasks: Most reading tasks of this worker at once, or None: as many as there are CPUs for.
        prefetch_batches: Batches that are ready ahead.
        memory_limit: Bytes of the object store that this worker's samples may take, or None: Ray Data's own limit, half
            of the store. It is kept from some 30 samples on. Ray frees what has been used once a second, so that what
            was used within a second comes on top.

    Returns:
        An iterator over the batches, one a step.

    Raises:
        ConfigError: If the config does not fit a dataset.
        DataError: If there is no dataset, frame or label, or, on the way, a frame cannot be read.
    """
    work = _plan(
        sources,
        config,
        seed=seed,
        epoch=epoch,
        global_batch_size=global_batch_size,
        rank=rank,
        world_size=world_size,
        start_step=start_step,
        shuffle=shuffle,
        grid=grid,
        planner=planner,
    )
    options: dict[str, Any] = {"num_cpus": cpus_per_task}
    if cache is not None:
        options["scheduling_strategy"] = _here()
    return BatchFeed(
        _stream(work, cache, max_tasks=max_tasks, memory_limit=memory_limit, options=options), depth=prefetch_batches
    )


def _plan(
    sources: Sources | Mixture,
    config: DataConfig,
    *,
    seed: int,
    epoch: int,
    global_batch_size: int,
    rank: int,
    world_size: int,
    start_step: int,
    shuffle: bool,
    grid: VoxelGrid | None,
    planner: Planner | None,
) -> _Work:
    mixture = sources if isinstance(sources, Mixture) else open_mixture(sources, labels=config.labels)
    chain = build_chain(mixture, config, grid or common_grid(mixture), seed=seed, epoch=epoch)
    planner = planner or Planner(mixture, config, seed=seed, global_batch_size=global_batch_size)
    share = planner.plan(epoch, shuffle=shuffle).share(rank=rank, world_size=world_size, start_step=start_step)
    places = locate(share, mixture, merge=config.merge, deskew=config.deskew)
    return _Work(chain, places, share.batch_size, len(config.features), config.point_labels)


def _iterate(work: _Work, cache: CacheConfig | None) -> Generator[Batch, None, None]:
    with contextlib.ExitStack() as stack:
        readers = [ShardReader(chain.uri, cache=cache) for chain in work.chain.datasets]
        for reader in readers:
            stack.callback(reader.close)
        for start in range(0, work.places.num_rows, work.batch_size):
            yield work.unpacked(work.chain(work.places.slice(start, work.batch_size), readers))


def _stream(
    work: _Work,
    cache: CacheConfig | None,
    *,
    max_tasks: int | None,
    memory_limit: int | None,
    options: dict[str, Any],
) -> Generator[Batch, None, None]:
    if not work.places.num_rows:
        return
    rows = _prepare(work, cache, max_tasks=max_tasks, memory_limit=memory_limit, options=options)
    with named_series() as name:
        rows.set_name("spot_ray")
        rows._set_uuid(name)
        # Blocks as they come, cut into batches here: Ray's own cutting copies what it cuts.
        blocks = iter(rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1))
        # Closed at once where the caller stops early: collected later, perhaps after Ray has ended, it aborts the
        # process.
        with contextlib.closing(blocks):
            for table in _cut(blocks, work.batch_size):
                yield work.unpacked(table)


def _cut(blocks: Iterator[pa.Table], size: int) -> Iterator[pa.Table]:
    """Cut tables into tables of `size` rows; the last may have fewer."""
    waiting: list[pa.Table] = []
    count = 0
    for block in blocks:
        waiting.append(block)
        count += block.num_rows
        while count >= size:
            whole = pa.concat_tables(waiting)
            yield whole.slice(0, size)
            count -= size
            waiting = [whole.slice(size)] if count else []
    if count:
        yield pa.concat_tables(waiting)


def _prepare(
    work: _Work,
    cache: CacheConfig | None,
    *,
    max_tasks: int | None,
    memory_limit: int | None,
    options: dict[str, Any],
) -> RayDataset:
    """Return the Ray dataset of the packed samples, in the plan's order."""
    import ray.data
    from ray.data import ExecutionResources

    places = work.places
    count = places.num_rows
    size = max(min(_FRAMES_PER_TASK, math.ceil(count / _LEAST_TASKS)), math.ceil(count / _MAX_TASKS))
    limit = memory_limit if memory_limit is not None else _store_bytes() // 2
    block_bytes = max(1, min(_BLOCK_BYTES, limit // _BLOCKS_A_LIMIT))
    with quiet_data_context() as context:
        context.execution_options.preserve_order = True
        context.target_max_block_size = block_bytes
        if memory_limit is not None:
            # Ray Data does not count what is being cut into batches.
            counted = memory_limit - 2 * block_bytes
            context.execution_options.resource_limits = ExecutionResources(object_store_memory=counted)
        tasks = ray.data.from_blocks([places.slice(start, size) for start in range(0, count, size)])
        return tasks.map_batches(
            functools.partial(_run, chain=work.chain, cache=cache, block_bytes=block_bytes),
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ray.data.TaskPoolStrategy(size=max_tasks),
            **options,
        )


def _store_bytes() -> int:
    """Return the bytes of the cluster's object stores; Ray Data takes half of them for what is on its way."""
    import ray

    return int(ray.cluster_resources().get("object_store_memory", 2 * _BLOCKS_A_LIMIT * _BLOCK_BYTES))


def _here() -> Any:
    """Return the scheduling of tasks on this machine, as long as it has CPUs for them."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)


def _run(places: pa.Table, chain: Chain, cache: CacheConfig | None, block_bytes: int) -> Iterator[pa.Table]:
    readers = [_reader(one.uri, cache) for one in chain.datasets]
    done = 0
    try:
        for table in chain.blocks(places, readers, block_bytes=block_bytes):
            yield table
            done += table.num_rows
    except SpotRayError as error:
        yield pack_error(error, places.num_rows - done)


@functools.lru_cache(maxsize=16)
def _reader(uri: str, cache: CacheConfig | None) -> ShardReader:
    # Ray's processes outlive a task, a stream and an epoch, and so do the footers that a reader keeps. It notices
    # shards that have been written again.
    return ShardReader(uri, cache=cache)
