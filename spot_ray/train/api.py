"""The public functions for a trainer of one's own: the data plane of a recipe, and the encoder of a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spot_ray.errors import ConfigError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.operators.config import DataConfig
from spot_ray.operators.loader import BatchStream
from spot_ray.operators.mixture import Sources
from spot_ray.storage.cache import CacheConfig
from spot_ray.train.config import PretrainConfig, RunConfig

if TYPE_CHECKING:
    from spot_ray.models.encoder import SparseEncoder


def stream(
    data: Sources,
    recipe: RunConfig | DataConfig,
    *,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    global_batch_size: int | None = None,
    grid: VoxelGrid | None = None,
    shuffle: bool = True,
    cache: CacheConfig | None = None,
    with_ray: bool | None = None,
    prefetch_batches: int = 2,
    max_tasks: int | None = None,
    memory_limit: int | None = None,
) -> BatchStream:
    """Stream training batches into a loop of one's own, epoch by epoch, in any number of workers.

    Args:
        data: The dataset, or several; labelled, unless the recipe names no labels (`labels=None`).
        recipe: The run whose features, labels, balancing, re-sampling, augmentation, grid and batch size count, e.g.
            `spot_ray.pretraining_recipe("spot-waymo")` or `detection_recipe("kitti-second")`; or the data plane alone.
        seed: Seed of order and augmentation.
        rank: This worker.
        world_size: Number of workers; the union over them is the same at any number.
        global_batch_size: Samples a step over all workers; None: the recipe's.
        grid: The label grid to crop the labels to; None: the recipe's, or else the one that they were made on.
        shuffle: See :class:`~spot_ray.operators.loader.BatchStream`, as for all below.
        cache: Where shards of a remote store are kept on this machine.
        with_ray: Prepare batches by Ray Data, or in a thread of this process.
        prefetch_batches: Batches that are ready ahead.
        max_tasks: Most reading tasks of this worker at once.
        memory_limit: Bytes of Ray's object store that this worker's samples may take.

    Returns:
        The stream; its `state_dict` tells where it is.

    Raises:
        ConfigError: If the recipe does not fit the data or has no batch size, or there is no such rank.
        DataError: If there is no dataset, frame or label.
        InstallError: If Ray is asked for and not installed.
    """
    if isinstance(recipe, PretrainConfig):
        grid = recipe.grid if grid is None else grid
    if isinstance(recipe, RunConfig):
        global_batch_size = recipe.train.global_batch_size if global_batch_size is None else global_batch_size
        recipe = recipe.data
    if global_batch_size is None:
        raise ConfigError(
            "there is no batch size", where="global_batch_size", expected="samples a step, over all workers"
        )
    return BatchStream(
        data,
        recipe,
        seed=seed,
        global_batch_size=global_batch_size,
        rank=rank,
        world_size=world_size,
        grid=grid,
        shuffle=shuffle,
        cache=cache,
        with_ray=with_ray,
        prefetch_batches=prefetch_batches,
        max_tasks=max_tasks,
        memory_limit=memory_limit,
    )


def load_encoder(checkpoint: str, *, device: str = "cpu") -> SparseEncoder:
    """Return the pre-trained 3D encoder of a checkpoint (or of a run: its latest one), in evaluation mode.

    Raises:
        CheckpointError: If it is missing, incomplete or of another format.
    """
    from spot_ray.train.checkpoint import load_model

    return load_model(checkpoint, device=device).model.encoder.eval()
