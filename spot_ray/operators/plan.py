"""The epoch plan: which frames an epoch uses, in which order, and which of them a worker computes.

It is made from the manifest alone, alike in every worker, and cut into global batches whose content does not depend on
the number of workers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from spot_ray.errors import ConfigError, DataError
from spot_ray.operators.balance import Balance, count_classes, foreground_classes
from spot_ray.operators.config import BalanceConfig, DataConfig
from spot_ray.operators.keys import Purpose, generator
from spot_ray.schema.subset import Subset
from spot_ray.storage.dataset import Dataset
from spot_ray.storage.subset import frames_of


@dataclass(frozen=True, eq=False)
class Share:
    """What one worker computes of an epoch: `batch_size` samples a step, L in all, in order.

    Args:
        batch_size: Samples of this worker in each global batch.
        frame: (L,) int64 index of the frame in the dataset.
        copy: (L,) int32 which of the frame's repeats.
        weight: (L,) float32: 1 for a planned sample, 0 for one that only fills the batch.
        step: (L,) int32 index of the global batch in the epoch.
        global_weight: (L,) float32 number of planned samples in that global batch, over all workers.
    """

    batch_size: int
    frame: npt.NDArray[np.int64]
    copy: npt.NDArray[np.int32]
    weight: npt.NDArray[np.float32]
    step: npt.NDArray[np.int32]
    global_weight: npt.NDArray[np.float32]

    def __len__(self) -> int:
        """Return the number of samples, those that only fill included."""
        return len(self.frame)


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """The samples of an epoch, S in all, in the order in which they are used.

    Args:
        frame: (S,) int64 index of the frame in the dataset.
        copy: (S,) int32 which of the frame's repeats.
        global_batch_size: Samples a step over all workers.
    """

    frame: npt.NDArray[np.int64]
    copy: npt.NDArray[np.int32]
    global_batch_size: int

    def __len__(self) -> int:
        """Return the number of planned samples."""
        return len(self.frame)

    @property
    def num_steps(self) -> int:
        """Number of global batches; the last may not be full."""
        return math.ceil(len(self) / self.global_batch_size)

    def share(self, *, rank: int = 0, world_size: int = 1, start_step: int = 0) -> Share:
        """Return what one worker computes.

        Each global batch is dealt out in consecutive parts of ceil(global_batch_size / world_size). Where the plan or
        the global batch ends within a part, the part is filled with samples of the plan that weigh nothing: every
        worker has the same number of steps and never an empty batch.

        Args:
            rank: The worker.
            world_size: Number of workers.
            start_step: Global batches to leave out at the start.
        """
        if not 0 <= rank < world_size or start_step < 0:
            raise ValueError(f"rank {rank} of {world_size}, start_step {start_step}")
        size = math.ceil(self.global_batch_size / world_size)
        step, place = np.meshgrid(np.arange(start_step, self.num_steps), rank * size + np.arange(size), indexing="ij")
        position = step * self.global_batch_size + place
        planned = (place < self.global_batch_size) & (position < len(self))
        source = (position % len(self)).reshape(-1)
        in_batch = np.minimum(self.global_batch_size, len(self) - step * self.global_batch_size)
        return Share(
            batch_size=size,
            frame=self.frame[source],
            copy=self.copy[source],
            weight=planned.reshape(-1).astype(np.float32),
            step=step.reshape(-1).astype(np.int32),
            global_weight=in_batch.reshape(-1).astype(np.float32),
        )


def plan_epoch(
    dataset: Dataset,
    config: DataConfig,
    *,
    seed: int,
    epoch: int,
    global_batch_size: int,
    subset: Subset | None = None,
    shuffle: bool = True,
) -> EpochPlan:
    """Return an epoch's plan: the frames, class-balanced repeats, then the order.

    Args:
        dataset: The dataset.
        config: The data plane; its `balance` counts.
        seed: Seed of the run.
        epoch: The epoch; each has its own repeats and order.
        global_batch_size: Samples a step over all workers.
        subset: The part of the dataset to use, or None: all of it. See :func:`select_frames`.
        shuffle: Whether the order is random; else it is that of the dataset, repeats one after the other.

    Raises:
        ConfigError: If `global_batch_size` is not positive, or the data has nothing of what `balance` names or counts.
        DataError: If the dataset lacks a part of the subset, or no frame is left.
    """
    _check_batch_size(global_batch_size)
    frames = select_frames(dataset, subset, config.frames)
    rng = generator(Purpose.REPEATS, seed=seed, epoch=epoch)
    count = _balance(dataset, config.balance, frames).uses(chance=_chance(dataset, frames, rng), rng=rng)
    frame = np.repeat(frames, count)
    copy = np.arange(len(frame)) - np.repeat(np.cumsum(count) - count, count)
    if shuffle:
        order = np.argsort(generator(Purpose.ORDER, seed=seed, epoch=epoch).random(len(frame)), kind="stable")
        frame, copy = frame[order], copy[order]
    return EpochPlan(frame, copy.astype(np.int32), global_batch_size)


def steps_by_epoch(
    dataset: Dataset,
    config: DataConfig,
    *,
    seed: int,
    epochs: int,
    global_batch_size: int,
    subset: Subset | None = None,
) -> list[int]:
    """Return the number of steps of each epoch; it varies, since repeats are drawn anew.

    Args:
        dataset: The dataset.
        config: The data plane; its `balance` counts.
        seed: Seed of the run.
        epochs: Number of epochs.
        global_batch_size: Samples a step over all workers.
        subset: The part of the dataset to use, or None: all of it. See :func:`select_frames`.

    Raises:
        ConfigError: If `global_batch_size` is not positive, or the data has nothing of what `balance` names or counts.
        DataError: If the dataset lacks a part of the subset, or no frame is left.
    """
    _check_batch_size(global_batch_size)
    frames = select_frames(dataset, subset, config.frames)
    balance = _balance(dataset, config.balance, frames)
    generators = (generator(Purpose.REPEATS, seed=seed, epoch=epoch) for epoch in range(epochs))
    samples = (balance.length(chance=_chance(dataset, frames, rng)) for rng in generators)
    return [math.ceil(number / global_batch_size) for number in samples]


def select_frames(dataset: Dataset, subset: Subset | None, which: Literal["keyframes", "all"]) -> npt.NDArray[np.int64]:
    """Return the ascending indices of the frames to train on.

    Args:
        dataset: The dataset.
        subset: The part of it, or None: all of it. A subset of frames names exactly those to use.
        which: Of the dataset or a subset of sequences: key frames alone, or the sweeps between them too.

    Raises:
        DataError: If the dataset lacks a part of the subset, or no frame is left.
    """
    frames = frames_of(dataset, subset)
    if not len(frames):
        raise DataError("there is no frame to use", where=dataset.uri, expected="at least one frame")
    if which == "all" or (subset is not None and subset.unit == "frame"):
        return frames
    is_keyframe = dataset.manifest.column("keyframe").to_numpy()[frames]
    if not is_keyframe.any():
        raise DataError(
            f"none of the {len(frames)} frames is a key frame",
            where=dataset.uri,
            remedy="set data.frames=all, which needs labels of all frames",
        )
    return frames[is_keyframe]


def _balance(dataset: Dataset, config: BalanceConfig, frames: npt.NDArray[np.int64]) -> Balance:
    taxonomy = dataset.info.taxonomy
    foreground = foreground_classes(taxonomy.class_names, taxonomy.mask("foreground"), config)
    return Balance(count_classes(dataset.manifest, taxonomy, frames), foreground, config)


def _chance(dataset: Dataset, frames: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    # One vector over the whole manifest: a hash a frame would take seconds for a fleet's data, and this way a frame's
    # number does not depend on which other sequences are used.
    return rng.random(len(dataset))[frames]


def _check_batch_size(global_batch_size: int) -> None:
    if global_batch_size < 1:
        raise ConfigError(f"global_batch_size is {global_batch_size}", expected="at least 1")
