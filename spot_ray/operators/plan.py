"""The epoch plan: which frames an epoch uses, in which order, and which of them a worker computes.

It is made from the manifests alone, alike in every worker, and cut into global batches whose content does not depend on
the number of workers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from spot_ray.errors import ConfigError, DataError
from spot_ray.operators.balance import Balance, ClassCounts, count_classes, foreground_classes
from spot_ray.operators.config import DataConfig
from spot_ray.operators.keys import Purpose, generator
from spot_ray.operators.mixture import Member, Mixture, box_taxonomies, class_ids
from spot_ray.operators.shuffle import merge_orders, separate, window_of, window_order
from spot_ray.schema.subset import Subset
from spot_ray.schema.taxonomy import EMPTY, Taxonomy
from spot_ray.storage.dataset import Dataset
from spot_ray.storage.subset import frames_of


@dataclass(frozen=True, eq=False)
class Share:
    """What one worker computes of an epoch: `batch_size` samples a step, L in all, in order.

    Args:
        batch_size: Samples of this worker in each global batch.
        frame: (L,) int64 index of the frame in the mixture.
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
        frame: (S,) int64 index of the frame in the mixture.
        copy: (S,) int32 which of the frame's repeats.
        affinity: (S,) float32 in [0, 1), one number a shard: within a global batch, samples go to workers in this
            order. So a shard is read by few workers, the same in all epochs, and not by all: of 8, by 3.8 at batches of
            32, by 2.1 at 256.
        global_batch_size: Samples a step over all workers.
        num_too_near: Samples that are in a batch with a neighbour of theirs, because they could not be kept apart.
    """

    frame: npt.NDArray[np.int64]
    copy: npt.NDArray[np.int32]
    affinity: npt.NDArray[np.float32]
    global_batch_size: int
    num_too_near: int = 0

    def __len__(self) -> int:
        """Return the number of planned samples."""
        return len(self.frame)

    @property
    def num_steps(self) -> int:
        """Number of global batches; the last may not be full."""
        return math.ceil(len(self) / self.global_batch_size)

    def share(self, *, rank: int = 0, world_size: int = 1, start_step: int = 0) -> Share:
        """Return what one worker computes.

        Each global batch is dealt out in parts of ceil(global_batch_size / world_size), by affinity; within a part
        samples are in the plan's order. Where the plan or the global batch ends within a part, the part is filled with
        samples of the plan that weigh nothing: every worker has the same number of steps and never an empty batch.

        Args:
            rank: The worker.
            world_size: Number of workers.
            start_step: Global batches to leave out at the start.
        """
        if not 0 <= rank < world_size or start_step < 0:
            raise ValueError(f"rank {rank} of {world_size}, start_step {start_step}")
        size = math.ceil(self.global_batch_size / world_size)
        step, place = np.meshgrid(np.arange(start_step, self.num_steps), np.arange(size * world_size), indexing="ij")
        position = step * self.global_batch_size + place
        planned = (place < self.global_batch_size) & (position < len(self))
        source = position % max(len(self), 1)
        # What only fills comes last, as infinity.
        dealt = np.argsort(np.where(planned, self.affinity[source], np.inf), axis=1, kind="stable")
        mine = np.sort(dealt[:, rank * size : (rank + 1) * size], axis=1)
        sample = np.take_along_axis(source, mine, axis=1).reshape(-1)
        weight = np.take_along_axis(planned, mine, axis=1).reshape(-1)
        steps = np.repeat(np.arange(start_step, self.num_steps), size)
        in_batch = np.minimum(self.global_batch_size, len(self) - steps * self.global_batch_size)
        return Share(
            batch_size=size,
            frame=self.frame[sample],
            copy=self.copy[sample],
            weight=weight.astype(np.float32),
            step=steps.astype(np.int32),
            global_weight=in_batch.astype(np.float32),
        )


class Planner:
    """Plans the epochs of a run.

    Args:
        mixture: The datasets; their labels do not matter here.
        config: The data plane; its `frames`, `boxes`, `balance` and `shuffle` count.
        seed: Seed of the run.
        global_batch_size: Samples a step over all workers.

    Raises:
        ConfigError: If `global_batch_size` is not positive, or the data has nothing of what `balance` names or counts.
        DataError: If a dataset lacks a part of its subset, has no frame left, or detection is to be learned of frames
            that are not annotated.
    """

    def __init__(self, mixture: Mixture, config: DataConfig, *, seed: int, global_batch_size: int) -> None:
        if global_batch_size < 1:
            raise ConfigError(f"global_batch_size is {global_batch_size}", expected="at least 1")
        self._mixture = mixture
        self._config = config
        self._seed = seed
        self._global_batch_size = global_batch_size
        own = [select_frames(member.dataset, member.subset, config.frames) for member in mixture.members]
        self._frames = np.concatenate([f + m.first for f, m in zip(own, mixture.members, strict=True)])
        self._ends = np.cumsum([len(frames) for frames in own])
        taxonomy, taxonomies = box_taxonomies(mixture, config.boxes.classes)
        detection = config.boxes.classes == "detection"
        counts = ClassCounts.join(
            [
                _counts(member, frames, of, taxonomy, detection=detection)
                for member, frames, of in zip(mixture.members, own, taxonomies, strict=True)
            ]
        )
        foreground = foreground_classes(taxonomy.class_names, taxonomy.mask("foreground"), config.balance)
        self._balance = Balance(counts, foreground, config.balance)
        self._shard, self._sequence, self._time_s = _places(mixture)

    def num_steps(self, epoch: int) -> int:
        """Return the number of steps of an epoch; it varies, since repeats are drawn anew."""
        if all(member.proportion is None for member in self._mixture.members):
            chance, _ = self._chance(epoch)
            samples = self._balance.length(chance=chance)
        else:
            samples = int(self._uses(epoch).sum())
        return math.ceil(samples / self._global_batch_size)

    def plan(self, epoch: int, *, shuffle: bool = True) -> EpochPlan:
        """Return an epoch's plan: the frames, class-balanced repeats, then the order.

        Args:
            epoch: The epoch; each has its own repeats and order.
            shuffle: Whether the order is random; else it is that of the datasets, repeats one after the other.
        """
        count = self._uses(epoch)
        frame = np.repeat(self._frames, count)
        copy = np.arange(len(frame)) - np.repeat(np.cumsum(count) - count, count)
        num_too_near = 0
        if shuffle:
            order, num_too_near = self._order(frame, count, epoch)
            frame, copy = frame[order], copy[order]
        affinity = generator(Purpose.AFFINITY, seed=self._seed, epoch=0).random(int(self._shard.max()) + 1)
        return EpochPlan(
            frame,
            copy.astype(np.int32),
            affinity[self._shard[frame]].astype(np.float32),
            self._global_batch_size,
            num_too_near,
        )

    def _chance(self, epoch: int) -> tuple[npt.NDArray[np.float64], np.random.Generator]:
        # One vector over the whole manifest: a hash a frame would take seconds for a fleet's data, and this way a
        # frame's number does not depend on which other sequences are used.
        rng = generator(Purpose.REPEATS, seed=self._seed, epoch=epoch)
        return rng.random(len(self._mixture))[self._frames], rng

    def _uses(self, epoch: int) -> npt.NDArray[np.int64]:
        """Return the (F,) number of times that each frame is used."""
        chance, rng = self._chance(epoch)
        count = self._balance.uses(chance=chance, rng=rng)
        weights = [member.proportion for member in self._mixture.members if member.proportion is not None]
        if weights:
            rng = generator(Purpose.PROPORTIONS, seed=self._seed, epoch=epoch)
            parts = np.split(count, self._ends[:-1])
            for member, part in zip(self._mixture.members, parts, strict=True):
                if not part.any():
                    raise DataError(
                        "balancing draws no frame of the dataset, so that it cannot have a share of the epoch",
                        where=member.dataset.uri,
                        remedy="set data.balance.method=repeat, or name the datasets without proportions",
                    )
            lengths = proportioned([int(part.sum()) for part in parts], weights)
            count = np.concatenate([_stretched(part, n, rng) for part, n in zip(parts, lengths, strict=True)])
        return count

    def _order(
        self, frame: npt.NDArray[np.int64], count: npt.NDArray[np.int64], epoch: int
    ) -> tuple[npt.NDArray[np.int64], int]:
        config, total = self._config.shuffle, len(frame)
        whole = window_of(config.window, self._global_batch_size)
        rng = generator(Purpose.ORDER, seed=self._seed, epoch=epoch)
        begin, orders = 0, []
        for end in np.cumsum(count)[self._ends - 1].tolist():
            shard = self._shard[frame[begin:end]]
            if not len(shard):
                continue
            # A window of the whole is one of each dataset's samples, in proportion.
            window = math.ceil(whole * (end - begin) / total)
            orders.append(begin + window_order(shard - shard.min(), window=window, rng=rng))
            begin = end
        return separate(
            merge_orders(orders, rng),
            batch_size=self._global_batch_size,
            sequence=self._sequence[frame],
            time_s=self._time_s[frame],
            apart_s=config.apart_s,
            window=whole,
            rng=rng,
        )


def proportioned(lengths: list[int], proportions: list[float]) -> list[int]:
    """Return how many samples each dataset gives to an epoch in which their shares are as asked for.

    The epoch is as long as it takes for no dataset to be cut: what is over-represented gives its samples once, the
    others some of theirs again.

    Args:
        lengths: Samples that each dataset has of its own, at least one.
        proportions: Their shares, in any unit.
    """
    scale = max(length / proportion for length, proportion in zip(lengths, proportions, strict=True))
    return [max(length, round(scale * p)) for length, p in zip(lengths, proportions, strict=True)]


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


def check_annotated(dataset: Dataset, frames: npt.NDArray[np.int64]) -> None:
    """Check that frames were annotated with boxes, be it with none: a detector would take others for empty.

    Args:
        dataset: The dataset.
        frames: Indices of the frames.

    Raises:
        DataError: If one was not.
    """
    missing = frames[dataset.manifest.column("class_box_counts").is_null().to_numpy()[frames]]
    if len(missing):
        row = dataset.manifest.slice(int(missing[0]), 1).to_pylist()[0]
        first = f"{row['sequence_id']}/{row['frame_id']}"
        raise DataError(
            f"{len(missing)} of {len(frames)} frames are not annotated with boxes, the first is {first}",
            where=dataset.uri,
            expected="frames whose objects are annotated, if only to say that there are none",
            remedy="draw a subset or a split of annotated frames (spot-ray subset), or set data.boxes.classes=taxonomy",
        )


def _counts(
    member: Member, frames: npt.NDArray[np.int64], own: Taxonomy, united: Taxonomy, *, detection: bool
) -> ClassCounts:
    if detection:
        check_annotated(member.dataset, frames)
    counts = count_classes(member.dataset.manifest, own, frames, boxes_only=detection)
    counts = counts.in_space(class_ids(own, united)[: own.num_classes + 1], united.num_classes)
    if detection:
        counts.held[:, EMPTY] = True  # what holds none of the classes is background, not unlabelled
    return counts


def _places(
    mixture: Mixture,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    """Return the number of the shard and of the sequence, and the time in seconds, of each frame of a mixture."""
    numbered: dict[str, list[npt.NDArray[np.int32]]] = {"shard": [], "sequence_id": []}
    for name, codes in numbered.items():
        first = 0
        for member in mixture.members:
            column = member.dataset.manifest.column(name).combine_chunks().dictionary_encode()
            codes.append(column.indices.to_numpy() + np.int32(first))
            first += len(column.dictionary)
    times = [member.dataset.manifest.column("timestamp_ns").to_numpy() * 1e-9 for member in mixture.members]
    return np.concatenate(numbered["shard"]), np.concatenate(numbered["sequence_id"]), np.concatenate(times)


def _stretched(count: npt.NDArray[np.int64], length: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return the (F,) uses of a dataset's frames made `length` in all, each as many times more as the others."""
    again, rest = divmod(length, int(count.sum()))
    stretched = count * again
    sample_of = np.repeat(np.arange(len(count)), count)
    chosen = np.argsort(rng.random(len(sample_of)), kind="stable")[:rest]
    return stretched + np.bincount(sample_of[chosen], minlength=len(count))
