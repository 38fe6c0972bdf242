"""The public functions for a trainer of one's own: the data plane of a recipe, and the encoder of a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spot_ray.operators.feed import BatchFeed
from spot_ray.operators.mixture import Sources
from spot_ray.train.config import PretrainConfig

if TYPE_CHECKING:
    from spot_ray.models.encoder import VoxelResBackBone8x


def stream(
    data: Sources,
    recipe: PretrainConfig,
    *,
    seed: int,
    epoch: int,
    rank: int = 0,
    world_size: int = 1,
    start_step: int = 0,
) -> BatchFeed:
    """Stream one epoch of a recipe's training batches through Ray Data.

    Args:
        data: The labelled dataset, or several.
        recipe: The run whose features, labels, balancing, re-sampling, augmentation and batch size count.
        seed: Seed of order and augmentation.
        epoch: The epoch; each has its own order and augmentation.
        rank: This worker.
        world_size: Number of workers; the union over them is the same at any number.
        start_step: Global batches to skip, at no cost.

    Returns:
        An iterator over this worker's share of each global batch, in plan order.
    """
    from spot_ray.operators.stream import stream as stream_batches

    return stream_batches(
        data,
        recipe.data,
        grid=recipe.grid,
        seed=seed,
        epoch=epoch,
        rank=rank,
        world_size=world_size,
        global_batch_size=recipe.train.global_batch_size,
        start_step=start_step,
    )


def load_encoder(checkpoint: str, *, device: str = "cpu") -> VoxelResBackBone8x:
    """Return the pre-trained 3D encoder of a checkpoint (or of a run: its latest one), in evaluation mode.

    Raises:
        CheckpointError: If it is missing, incomplete or of another format.
    """
    from spot_ray.train.checkpoint import load_model

    return load_model(checkpoint, device=device).model.encoder.eval()
